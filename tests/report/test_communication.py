"""The arithmetic of collectives, on ranks with known calls."""

import pytest

from tests.report import synthetic_run as made
from traceml_agent.report.fold import fold
from traceml_agent.schema.collectives import CollectiveKey, Collectives, CollectiveSums, DdpTimes
from traceml_agent.spool.call_sums import without_calls
from traceml_agent.spool.plausible import check

STATUSES = {**made.ACTIVE, "collectives": "active"}
ALL_REDUCE = CollectiveKey("all_reduce", "0-abc", 2, "gloo", 1)
STEPS = 40


def calls(durations_ms, key=ALL_REDUCE, first_step=1, sums=(), part=0, **columns):
    """One call a step of these durations, in no phase."""
    count = len(durations_ms)
    step = list(range(first_step, first_step + count))
    return Collectives(
        keys=[key],
        key=[0] * count,
        step=columns.get("step", step),
        seq=columns.get("seq", step),
        start_ns=[made.FIRST_STEP_NS + (s - 1) * 10 * made.MS for s in step],
        duration_ns=[round(ms * made.MS) for ms in durations_ms],
        bytes=columns.get("bytes", [400] * count),
        phase=[None] * count,
        part=[part] * count,
        sums=list(sums),
        lost=0,
        cost_ns=0,
    )


def communication(run_dir, *ranks, steps=STEPS, world_size=None):
    """The section of a run whose ranks left these records."""
    for rank, records in enumerate(ranks):
        header = made.rank_header(rank, world_size or len(ranks))
        made.run_of(run_dir, made.steps(steps), statuses=STATUSES, more=records, header=header)
    return fold(run_dir).payload


def test_the_rank_that_comes_last_tells_the_transfer_and_the_other_waited(tmp_path):
    found = communication(tmp_path, [calls([3.0] * STEPS)], [calls([1.0] * STEPS)])["communication"]
    assert found["ranks"]["0"]["transfer_ms"] == pytest.approx([1.0, 1.0])
    assert found["ranks"]["0"]["waiting_ms"] == pytest.approx([2.0, 2.0])
    assert found["ranks"]["1"]["waiting_ms"] == pytest.approx([0.0, 0.0])
    assert found["last_arrival"] == {
        "rank": 1, "share": 1.0, "chance": 0.5, "calls": STEPS, "wait_ms": pytest.approx(2.0),
        "costly_rank": 1, "costly_share": 1.0,
    }  # fmt: skip
    assert found["what_if_no_transfer"]["without_transfer_ms"] == pytest.approx([9.0, 9.0])
    assert found["ranks"]["0"]["operations"][0]["bytes_per_step"] == 400


@pytest.mark.parametrize(("transfer", "severity"), [(0.9, None), (1.1, "warn"), (2.1, "crit")])
def test_a_finding_rests_on_the_least_that_transfers_took(tmp_path, transfer, severity):
    own = [calls([transfer] * STEPS)]
    payload = communication(tmp_path, own, [calls([transfer + 5.0] * STEPS)])
    found = [f["severity"] for f in payload["findings"] if f["kind"] == "COMMUNICATION_BOUND"]
    assert found == ([] if severity is None else [severity])


def test_transfers_of_changing_length_give_an_interval(tmp_path):
    times = [1.0] * 10 + [3.0] * 30
    found = communication(tmp_path, [calls(times)], [calls(times)])["communication"]
    assert found["ranks"]["0"]["transfer_ms"] == pytest.approx([1.0, 2.5])
    assert found["ranks"]["0"]["waiting_ms"] == pytest.approx([0.0, 1.5])


@pytest.mark.parametrize(
    "second",
    [
        None,
        [calls([1.0] * STEPS, CollectiveKey("broadcast", "0-abc", 2, "gloo", 1))],
        [calls([1.0] * STEPS, seq=[n + 1 for n in range(1, STEPS + 1)])],
        [],
    ],
    ids=["missing rank", "another operation", "shifted numbers", "no calls"],
)
def test_what_cannot_be_aligned_is_an_interval_and_no_finding(tmp_path, second):
    ranks = [[calls([6.0] * STEPS)]] + ([] if second is None else [second])
    payload = communication(tmp_path, *ranks, world_size=2)
    row = payload["communication"]["ranks"]["0"]
    assert row["transfer_ms"] == pytest.approx([0.0, 6.0])
    assert row["waiting_ms"] == pytest.approx([0.0, 6.0])
    assert "rank" in row["operations"][0]["reason"]
    assert payload["communication"]["issues"] == []


def test_calls_that_are_only_enqueued_say_nothing_about_transfer(tmp_path):
    key = CollectiveKey("all_reduce", "0-abc", 2, "nccl", 0)
    found = communication(tmp_path, *[[calls([6.0] * STEPS, key)]] * 2)["communication"]
    row = found["ranks"]["0"]
    assert row["enqueue_ms"] == pytest.approx(6.0)
    assert (row["host_ms"], row["share"]) == (None, None)
    assert (row["transfer_ms"], row["waiting_ms"]) == (None, None)
    assert "on this backend" in row["operations"][0]["reason"]
    assert found["what_if_no_transfer"] is None


def test_calls_kept_as_sums_count_with_the_shares_of_those_kept_one_by_one(tmp_path):
    def rank(ms):
        sums = CollectiveSums(0, 0, 21, 40, 20, round(20 * ms * made.MS), 20 * 400)
        return [calls([ms] * 20, sums=[sums])]

    found = communication(tmp_path, rank(4.0), rank(1.0))["communication"]
    row = found["ranks"]["0"]
    assert row["calls_per_step"] == pytest.approx(1.0)
    assert row["host_ms"] == pytest.approx(4.0)
    assert row["transfer_ms"] == pytest.approx([1.0, 1.0])


def test_an_async_call_counts_with_the_wait_for_its_handle(tmp_path):
    def rank(ms):
        return [calls([0.1] * STEPS, part=1), calls([ms - 0.1] * STEPS, part=2)]

    found = communication(tmp_path, rank(5.0), rank(2.0))["communication"]
    row = found["ranks"]["0"]
    assert row["calls_per_step"] == pytest.approx(1.0)
    assert row["host_ms"] == pytest.approx(5.0)
    assert row["transfer_ms"] == pytest.approx([2.0, 2.0])


@pytest.mark.parametrize(
    ("calls_ms", "kind"), [((5.4, 0.5), "RESIDUAL_HEAVY"), ((5.0, 5.0), "COMMUNICATION_BOUND")]
)
def test_time_in_no_phase_that_was_collectives_is_named_in_the_verdict(tmp_path, calls_ms, kind):
    phases = {"forward": 2.0, "backward": 2.0, "optimizer": 0.5}
    for rank, ms in enumerate(calls_ms):
        batch = made.steps(STEPS, phases=phases)
        header = made.rank_header(rank, 2)
        records = [calls([ms] * STEPS)]
        made.run_of(tmp_path, batch, statuses=STATUSES, more=records, header=header)
    primary = fold(tmp_path).payload["primary_diagnosis"]
    assert primary["kind"] == kind
    if kind == "RESIDUAL_HEAVY":
        assert "waiting for another rank" in primary["summary"]
        assert primary["evidence"]["collectives_ms"] == pytest.approx(2.95)


def test_a_spool_at_its_cap_keeps_exact_sums_of_calls():
    single = calls([1.0, 2.0, 3.0], sums=[CollectiveSums(0, 0, 9, 10, 4, 40, 8)])
    [sums] = without_calls(single).sums
    assert sums == CollectiveSums(0, 0, 1, 10, 7, 6 * made.MS + 40, 3 * 400 + 8)
    check(without_calls(single))


def test_what_ddp_measured_is_bounded_by_the_rank_that_waited_least(tmp_path):
    def ddp(exposed_ms):
        return DdpTimes(1, 0, 40, 10, "gloo", 80, 1, 10**6, 9 * 10**6,
                        round((exposed_ms + 2) * 1e6), 2 * 10**6)  # fmt: skip

    found = communication(tmp_path, [ddp(7.0)], [ddp(3.0)])["communication"]
    assert [row["exposed_ms"] for row in found["ddp"]["rows"]] == pytest.approx([7.0, 3.0])
    assert found["ddp"]["exposed_transfer_ms"] == pytest.approx([0.0, 3.0])


def test_a_call_belongs_to_the_step_of_its_time_whatever_was_closed_when_it_was_noted(tmp_path):
    late = [max(1, step - 1) for step in range(1, STEPS + 1)]
    records = [calls([3.0] * STEPS, step=late)]
    row = communication(tmp_path, records, [calls([1.0] * STEPS)])["communication"]["ranks"]["0"]
    assert row["calls_per_step"] == 1.0
    assert row["transfer_ms"] == pytest.approx([1.0, 1.0])


def test_a_run_without_collectives_has_a_calm_section_and_no_line(tmp_path):
    payload = communication(tmp_path, [])
    assert payload["communication"]["status"] == "none"
    assert "Communication" not in payload["text"]


def test_a_torch_without_distributed_says_so(tmp_path):
    statuses = {**made.ACTIVE, "collectives": "not in: this torch was built without it"}
    made.run_of(tmp_path, made.steps(STEPS), statuses=statuses)
    assert fold(tmp_path).payload["communication"]["status"].startswith("not in")
