"""Records of collectives that a digest joins say what the spool says."""

import os

import pytest

from tests.report import synthetic_run as made
from tests.report.test_communication import ALL_REDUCE, STATUSES, STEPS, calls, entered
from tests.spool.test_digest import blank, follow, summary_of
from traceml_agent.schema.collectives import CollectiveKey, CollectiveSums, DdpTimes
from traceml_agent.spool import call_sums
from traceml_agent.spool.call_sums import joined, newest_calls
from traceml_agent.spool.digested import read_spool
from traceml_agent.spool.plausible import check

BARRIER = CollectiveKey("barrier", "0-abc", 2, "gloo", 1)


def pieces(ms):
    """The calls of a rank as the agent writes them: a record for each half second."""
    parts = [
        calls([ms] * 5, key, first_step=first, seq=list(range(first, first + 5)))
        for first in range(1, STEPS + 1, 5)
        for key in ([ALL_REDUCE] if first % 2 else [BARRIER])
    ]
    sums = CollectiveSums(0, 0, 1, STEPS, 7, 7 * made.MS, None)
    return [*parts, calls([], BARRIER, sums=[sums])]


def test_a_job_that_talks_folds_to_the_same_summary_by_its_digests(tmp_path):
    ddp = DdpTimes(1, 0, 40, 10, "gloo", 80, 1, 10**6, 9 * 10**6, 4 * 10**6, 10**6)
    for rank, ms in enumerate((3.0, 1.0)):
        more = [*pieces(ms), entered(ms), ddp]
        header = made.rank_header(rank, 2)
        made.run_of(tmp_path, made.steps(STEPS), statuses=STATUSES, more=more, header=header)
    by_spools = summary_of(tmp_path)
    assert by_spools["communication"]["aligned_calls"] == STEPS
    assert by_spools["communication"]["flight_recorder"] is not None
    for path in tmp_path.glob("*.jsonl"):
        follow(path, 2)
        blank(path)  # so that only a digest can give these calls
        os.utime(path, (1_700_000_000, 1_700_000_000))
    assert len(read_spool(path).collectives) <= 2
    assert summary_of(tmp_path) == by_spools


def test_joined_records_keep_every_call_and_sum():
    records = pieces(2.0)
    [one] = joined(records)
    check(one)
    assert one.step == list(range(1, STEPS + 1))
    assert [one.keys[number].op for number in one.key][4:6] == ["all_reduce", "barrier"]
    assert one.keys[one.sums[0].key] == BARRIER
    assert joined([one]) == [one]


@pytest.mark.parametrize("limit", [10, 20, 100])
def test_a_digest_keeps_the_newest_calls_one_by_one_and_the_others_as_exact_sums(
    monkeypatch, limit
):
    monkeypatch.setattr(call_sums, "DIGEST_CALLS", limit)
    records = pieces(2.0)
    kept = newest_calls(records)
    single = [step for record in kept for step in record.step]
    newest = STEPS if 2 * limit >= STEPS else limit
    assert single == list(range(STEPS - newest + 1, STEPS + 1))
    assert sum(s.calls for record in kept for s in record.sums) == STEPS - newest + 7
