"""Which spools belong together: attempts, doubles, other runs, sizes and clocks that do not fit."""

import json
import shutil

import pytest

from tests.report import synthetic_run as made
from tests.report.synthetic_run import MS
from traceml_agent.errors import PartsOfSeveralRuns
from traceml_agent.report.fold import fold, fold_and_write, is_folded
from traceml_agent.schema.records import Identity

S = 1_000 * MS
HOUR_NS = 3_600 * S


def life(
    run_dir, rank=0, world=1, at_s=0.0, count=30, attempt=0, host="node-a", ending=True,
    run_id="run-1", pid=None, parent=1, wall_off_ns=0, first_steps=None, more=(), **columns
):  # fmt: skip
    """A process that is born at `at_s`, trains from 2 s later on with steps of 10 ms."""
    start = made.BORN_NS + round(at_s * S)
    header = made.replace(
        made.HEADER,
        identity=Identity(rank, rank, 0, world, world, attempt, "torchrun"),
        pid=pid or 1000 + round(at_s * 10) * 100 + rank,
        parent_pid=parent,
        run_id=run_id,
        hostname=host,
        boot_id=f"boot of {host}",
        process_start_ns=start,
        monotonic_ns=start + 1 * S,
        wall_ns=made.HEADER.wall_ns + start + 1 * S + wall_off_ns,
    )
    first = start + 2 * S
    batch = made.steps(count, start_ns=first, durations=first_steps or [10.0] * count, **columns)
    last = first + sum(batch.duration_ns)
    records = [made.Patches(start, dict(made.ACTIVE)), batch, *more]
    if ending:
        records.append(made.end([batch], at_ns=last))
    return made.write_spool(run_dir, records, header)


def payload_of(run_dir, **options):
    return fold(run_dir, **options).payload


def kinds(payload):
    return [finding["kind"] for finding in payload["findings"] if finding["section"] == "run"]


def attempts(payload):
    return [
        (a["attempt"], a["ranks"], a["steps"], a["status"]) for a in payload["ledger"]["attempts"]
    ]


def test_a_run_in_order_has_no_finding_and_one_attempt(tmp_path):
    for rank in (0, 1):
        life(tmp_path, rank, 2)
    payload = payload_of(tmp_path)
    assert kinds(payload) == []
    assert attempts(payload) == [(0, 2, 30, "finished")]
    assert "Goodput" not in payload["text"]


def test_a_rank_that_starts_again_after_its_end_is_a_new_attempt_though_nobody_counts(tmp_path):
    for at_s, ending in ((0, False), (10, False), (20, True)):
        for rank in (1, 0):
            life(tmp_path, rank, 2, at_s + rank / 10, 20 + round(at_s), ending=ending)
    payload = payload_of(tmp_path)
    assert attempts(payload) == [(0, 2, 20, "killed"), (1, 2, 30, "killed"), (2, 2, 40, "finished")]
    assert payload["traceml_agent"]["attempt"] == 2
    assert payload["step_time"]["metadata"]["training_total_steps"] == 40
    assert payload["analysis_window"]["attempt"] == 2
    assert "Attempts      3: #0 killed after 20 steps" in payload["text"]


def test_a_resumption_that_counts_restarts_from_0_again_comes_after_the_earlier_ones(tmp_path):
    life(tmp_path, at_s=0, attempt=0, count=11)
    life(tmp_path, at_s=10, attempt=1, count=12)
    life(tmp_path, at_s=20, attempt=0, count=13)
    life(tmp_path, at_s=30, attempt=1, count=14)
    assert [a[2] for a in attempts(payload_of(tmp_path))] == [11, 12, 13, 14]


def test_a_job_that_shrank_between_attempts_is_no_mismatch(tmp_path):
    for rank in range(4):
        life(tmp_path, rank, 4, 0, ending=False)
    for rank in range(2):
        life(tmp_path, rank, 2, 10)
    payload = payload_of(tmp_path)
    assert [a[1] for a in attempts(payload)] == [4, 2]
    assert "WORLD_SIZE_MISMATCH" not in kinds(payload)
    assert payload["traceml_agent"]["missing_ranks"] == []
    assert payload["meta"]["world_size"] == 2


def test_a_job_that_grew_is_told_apart_though_its_new_rank_starts_first(tmp_path):
    life(tmp_path, 0, 1, 0, ending=False)
    life(tmp_path, 1, 2, 10)
    life(tmp_path, 0, 2, 10.1)
    assert [a[1] for a in attempts(payload_of(tmp_path))] == [1, 2]


def test_a_rank_that_goes_on_while_another_is_started_again_is_not_missing(tmp_path):
    life(tmp_path, 0, 2, 0, count=100, ending=False)
    life(tmp_path, 1, 2, 0, count=2000)
    life(tmp_path, 0, 2, 6, count=1500)
    payload = payload_of(tmp_path)
    assert [a[1] for a in attempts(payload)] == [1, 2]
    assert payload["traceml_agent"]["missing_ranks"] == []


def test_two_processes_of_one_rank_at_the_same_time_are_a_finding(tmp_path):
    for parent, offsets in ((7, (0.0, 0.3)), (8, (0.1, 0.2))):
        for rank, offset in enumerate(offsets):
            life(tmp_path, rank, 2, offset, 30 + parent, parent=parent, pid=parent * 10 + rank)
    payload = payload_of(tmp_path)
    (finding,) = [f for f in payload["findings"] if f["section"] == "run"]
    assert (finding["kind"], finding["severity"]) == ("DUPLICATE_RANKS", "crit")
    assert finding["ranks"] == [0, 1]
    assert "process 80 on node-a" in finding["summary"]
    # Never a mixture of the two jobs.
    assert attempts(payload) == [(0, 2, 37, "finished")]
    rows = payload["step_time"]["metadata"]["training_total_steps"]
    assert rows == 37
    assert "DUPLICATE RANKS" in payload["text"]


def test_a_slow_death_beside_the_next_start_is_no_double(tmp_path):
    for rank in (0, 1):
        life(tmp_path, rank, 2, 0, count=1000, ending=False)
        life(tmp_path, rank, 2, 9.8 if rank else 10.2, count=1000)  # the old ones end at 12 s
    payload = payload_of(tmp_path)
    assert attempts(payload) == [(0, 2, 1000, "killed"), (1, 2, 1000, "finished")]
    assert "DUPLICATE_RANKS" not in kinds(payload)
    ledger = payload["ledger"]["goodput"]
    assert sum(p["seconds"] for p in ledger["parts"].values() if p["seconds"]) == pytest.approx(
        ledger["wall_s"], rel=0.01
    )
    assert ledger["wall_s"] == pytest.approx(22.2)


def test_ranks_of_one_attempt_with_different_world_sizes_are_a_finding(tmp_path):
    life(tmp_path, 0, 2)
    life(tmp_path, 1, 4)
    payload = payload_of(tmp_path)
    assert kinds(payload) == ["WORLD_SIZE_MISMATCH", "MISSING_RANKS"]
    assert payload["traceml_agent"]["missing_ranks"] == [2, 3]


def test_a_rank_beyond_its_world_size_is_a_finding(tmp_path):
    life(tmp_path, 0, 2)
    life(tmp_path, 5, 2)
    payload = payload_of(tmp_path)
    assert kinds(payload) == ["WORLD_SIZE_MISMATCH", "MISSING_RANKS"]


def test_spools_of_another_run_are_left_out_and_named(tmp_path):
    run_dir = tmp_path / "mine"
    life(run_dir, run_id="mine", count=30)
    for rank in range(3):
        life(run_dir, rank, 3, run_id="other", count=99, pid=rank + 1)
    payload = payload_of(run_dir)
    assert payload["traceml_agent"]["run_id"] == "mine"
    assert payload["step_time"]["metadata"]["training_total_steps"] == 30
    assert kinds(payload) == ["SEVERAL_RUNS"]
    assert "other (3)" in payload["findings"][0]["summary"]


def test_a_rank_that_never_started_is_named(tmp_path):
    for rank in (0, 1, 2, 5):
        life(tmp_path, rank, 6)
    payload = payload_of(tmp_path)
    assert kinds(payload) == ["MISSING_RANKS"]
    assert payload["findings"][0]["summary"].startswith("Ranks 3-4 of 6 left no spool")
    assert payload["traceml_agent"]["complete"] is False


def test_a_directory_that_appears_late_is_folded_in(tmp_path):
    life(tmp_path / "run", 0, 2)
    late = life(tmp_path / "late", 1, 2, host="node-b")
    fold_and_write(tmp_path / "run")
    assert is_folded(tmp_path / "run")
    late.rename(tmp_path / "run" / late.name)
    assert not is_folded(tmp_path / "run")
    summary = fold_and_write(tmp_path / "run")
    assert kinds(summary.payload) == []
    assert is_folded(tmp_path / "run")


def two_nodes(run_dir, wall_off_ns=0, count=60):
    """Two attempts of two ranks on two nodes; the second one's clock may be off."""
    for at_s, ending in ((0, False), (10, True)):
        more = made.process_samples([1] * 9)
        life(run_dir, 0, 2, at_s, count, ending=ending, more=more)
        life(run_dir, 1, 2, at_s + 0.004, count, host="node-b", ending=ending, more=more,
             wall_off_ns=wall_off_ns)  # fmt: skip
    return payload_of(run_dir)


@pytest.mark.parametrize("hours", [1, -1])
def test_a_clock_that_is_an_hour_off_is_a_finding_and_changes_no_figure(tmp_path, hours):
    right, wrong = two_nodes(tmp_path / "a"), two_nodes(tmp_path / "b", hours * HOUR_NS)
    assert kinds(right) == []
    assert kinds(wrong) == ["CLOCK_OFFSET"]
    # It ends its steps 4 ms later, and could not do so by more than a step.
    assert right["clocks"][1]["offset_s"] == pytest.approx(0.004, abs=1e-5)
    assert wrong["clocks"][1]["offset_s"] == pytest.approx(3600 * hours, abs=0.02)
    assert wrong["clocks"][1]["error_s"] <= 0.03
    for section in ("ledger", "step_time", "process", "system", "analysis_window", "duration_s"):
        # Times of day hold for the clock of the first node.
        left, other = (json.dumps(p[section], sort_keys=True) for p in (right, wrong))
        if section == "ledger":
            left, other = (json.dumps(p[section]["goodput"]) for p in (right, wrong))
        assert left == other, section
    ends = [[e["ended_ts_s"] for e in p["run_context"]["exit"].values()] for p in (right, wrong)]
    assert ends[0] == pytest.approx(ends[1], abs=0.05)


def test_clocks_without_common_steps_stay_unknown(tmp_path):
    life(tmp_path, 0, 2, 0, count=10)
    life(tmp_path, 1, 2, 0, count=10, host="node-b", wall_off_ns=HOUR_NS)
    payload = payload_of(tmp_path)
    assert payload["clocks"][1] == {
        "hostname": "node-b", "offset_s": None, "error_s": None, "common_steps": 10
    }  # fmt: skip
    assert kinds(payload) == ["CLOCK_OFFSET"]
    assert payload["run_context"]["exit"]["1"]["ended_ts_s"] is None


def test_ranks_that_do_not_wait_for_each_other_say_nothing_about_clocks(tmp_path):
    life(tmp_path, 0, 2, 0, count=60)
    life(tmp_path, 1, 2, 0, count=60, host="node-b", first_steps=[13.0] * 60)
    payload = payload_of(tmp_path)
    assert payload["clocks"][1]["offset_s"] is None


def test_a_restart_on_another_node_is_a_new_attempt(tmp_path):
    life(tmp_path, 0, 1, 0, ending=False)
    life(tmp_path, 0, 1, 20, host="node-b")
    payload = payload_of(tmp_path)
    assert [a[2] for a in attempts(payload)] == [30, 30]
    second = payload["ledger"]["attempts"][1]
    assert second["restart_clock"] == "wall clocks"
    assert second["restart_gap_s"] == pytest.approx(17.7)


def test_a_node_that_was_replaced_is_told_apart_though_its_clock_is_off(tmp_path):
    for at_s, other, steps in ((0, "node-b", 40), (30, "node-c", 70)):
        life(tmp_path, 0, 2, at_s, steps, ending=at_s > 0)
        life(tmp_path, 1, 2, at_s, steps, host=other, ending=at_s > 0,
             wall_off_ns=-HOUR_NS if other == "node-c" else 0)  # fmt: skip
    payload = payload_of(tmp_path)
    assert attempts(payload) == [(0, 2, 40, "killed"), (1, 2, 70, "finished")]
    assert kinds(payload)[-1] == "CLOCK_OFFSET"


# Parts


def bare(payload, run_dir):
    """The summary without what names its time and place."""
    assert payload["traceml_agent"]["run_dir"] == str(run_dir)
    text = payload["text"].splitlines()[:-1]
    about = {**payload["traceml_agent"], "run_dir": ""}
    return {**payload, "generated_at": "", "text": text, "traceml_agent": about}


def shared_and_parts(tmp_path):
    for at_s, ending in ((0, False), (10, True)):
        for rank in range(4):
            host = "node-a" if rank % 2 == 0 else "node-b"
            for run_dir in (tmp_path / "shared", tmp_path / host):
                life(run_dir, rank, 4, at_s, 25 + rank, host=host, ending=ending)
    return tmp_path / "shared", [tmp_path / "node-a", tmp_path / "node-b"]


@pytest.mark.parametrize("turned", [False, True])
def test_parts_fold_to_what_one_shared_directory_folds_to(tmp_path, turned):
    shared, parts = shared_and_parts(tmp_path)
    if turned:
        parts.reverse()
    whole = payload_of(shared)
    merged = payload_of(parts[0], parts=parts)
    assert json.dumps(bare(merged, parts[0])) == json.dumps(bare(whole, shared))
    assert whole["traceml_agent"]["complete"] is True
    alone = payload_of(parts[0])
    assert "MISSING_RANKS" in kinds(alone)


def test_a_part_that_was_copied_counts_once(tmp_path):
    _, parts = shared_and_parts(tmp_path)
    shutil.copytree(parts[1], tmp_path / "copy")
    once = payload_of(parts[0], parts=parts)
    twice = payload_of(parts[0], parts=[*parts, tmp_path / "copy"])
    assert bare(once, parts[0]) == bare(twice, parts[0])


def test_a_copy_of_a_spool_beside_it_counts_once_and_is_named(tmp_path):
    path = life(tmp_path)
    shutil.copy(path, tmp_path / "backup.jsonl")
    data = path.read_bytes().splitlines(True)
    (tmp_path / "a-torn-one.jsonl").write_bytes(b"".join(data[:2]))
    payload = payload_of(tmp_path)
    assert attempts(payload) == [(0, 1, 30, "finished")]
    assert any("2 spool(s) are copies" in p for p in payload["traceml_agent"]["problems"])
    fold_and_write(tmp_path)
    assert is_folded(tmp_path)


def test_parts_of_different_runs_are_refused(tmp_path):
    life(tmp_path / "a", 0, 2, run_id="one")
    life(tmp_path / "b", 1, 2, run_id="two")
    with pytest.raises(PartsOfSeveralRuns, match=r"a is of run one; .*b is of run two"):
        fold(tmp_path / "a", parts=[tmp_path / "a", tmp_path / "b"])
