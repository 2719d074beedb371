"""Who waits for whom: stalls of several ranks folded."""

import os
from dataclasses import replace

import pytest

from tests.report import synthetic_run as made
from traceml_agent.report.fold import fold
from traceml_agent.report.places import intervals, place_of
from traceml_agent.schema.records import Event, Patches
from traceml_agent.schema.stalls import Operation, ProcessGroup, ProcessGroups, Stall, ThreadStack

MS = made.MS
SECOND = 1000 * MS
SITE = "/venv/lib/python3.11/site-packages/torch"
LOADING = '  File "/job/train.py", line 90, in <module>\n  File "/job/data.py", line 40, in load'
REDUCING = (
    '  File "/job/train.py", line 88, in <module>\n'
    f'  File "{SITE}/distributed/c10d_logger.py", line 83, in _exc.<locals>.wrapper\n'
    f'  File "{SITE}/distributed/distributed_c10d.py", line 3252, in all_reduce'
)
LAST_NS = made.FIRST_STEP_NS + 200 * MS


def stall(stack, step=20, phase=None, quiet=60, input_from=None, at_s=60):
    return Stall(
        monotonic_ns=LAST_NS + at_s * SECOND,
        step=step,
        since_ns=LAST_NS,
        limit_ns=60 * SECOND,
        quiet_ns=quiet * SECOND,
        phase=phase,
        input_from=input_from,
        threads=[ThreadStack("MainThread", True, stack, "S")],
    )


def group(entered, *operations, ranks=(0, 1, 2, 3)):
    return ProcessGroup("0", "default_pg", "gloo", list(ranks), entered, list(operations))


def write_rank(run_dir, rank, *records, world=4, count=20, status=None):
    header = made.rank_header(rank, world)
    batch = made.steps(count)
    ending = [made.end([batch], status=status)] if status else []
    made.write_spool(run_dir, [Patches(1, made.ACTIVE), batch, *records, *ending], header)


def hung(tmp_path):
    payload = fold(tmp_path).payload
    return payload, payload["hangs"][0], payload["primary_diagnosis"]


def test_a_rank_in_its_own_code_is_the_cause_and_those_in_a_collective_wait(tmp_path):
    for rank in range(4):
        write_rank(tmp_path, rank, stall(LOADING if rank == 2 else REDUCING))
    payload, hang, primary = hung(tmp_path)
    assert (primary["kind"], primary["severity"]) == ("HANG", "crit")
    assert hang["culprits"] == [2]
    places = [(place["ranks"], place["at"]) for place in hang["places"]]
    assert places == [("2", "load at data.py:40"), ("0-1,3", "all_reduce at train.py:88")]
    assert "rank 2: load at data.py:40; 3 ranks (0-1,3): all_reduce at" in primary["summary"]
    assert [f["kind"] for f in payload["findings"] if f["section"] == "hangs"] == ["HANG"]


def test_the_rank_that_never_entered_a_collective_is_named_by_its_number(tmp_path):
    done, inside = Operation(30, "all_reduce", "4", True), Operation(31, "all_reduce", "4", False)
    for rank in range(4):
        operations = [done] if rank == 1 else [done, inside]
        groups = [group(operations[-1].sequence, *operations)]
        write_rank(tmp_path, rank, stall(REDUCING), ProcessGroups(LAST_NS, 20, groups))
    _, hang, primary = hung(tmp_path)
    assert hang["culprits"] == [1]
    assert hang["collectives"][0]["missing"] == [1]
    assert "rank 1 never entered collective 31 (all_reduce) of the default group" in hang["cause"]
    assert primary["evidence"]["basis"] == "sequence_numbers"


@pytest.mark.parametrize(
    ("name", "sizes", "differs"),
    [("broadcast", "4", True), ("all_reduce", "5", True), ("all_reduce", "4", False)],
)
def test_another_call_under_the_same_number_is_a_mismatch(tmp_path, name, sizes, differs):
    for rank in range(4):
        last = (name, sizes) if rank == 3 else ("all_reduce", "4")
        groups = [group(31, Operation(31, *last, False))]
        write_rank(tmp_path, rank, stall(REDUCING), ProcessGroups(LAST_NS, 20, groups))
    _, hang, _ = hung(tmp_path)
    assert hang["culprits"] == ([3] if differs else [])
    assert ("different calls" in hang["cause"]) == differs
    assert ("none came out" in hang["cause"]) != differs


def test_sizes_of_a_gather_may_differ(tmp_path):
    for rank in range(4):
        groups = [group(31, Operation(31, "all_gather", str(rank), False))]
        write_rank(tmp_path, rank, stall(REDUCING), ProcessGroups(LAST_NS, 20, groups))
    assert hung(tmp_path)[1]["collectives"][0]["mismatch"] is None


def test_ranks_of_different_groups_are_not_compared(tmp_path):
    for rank in range(4):
        ranks = (0, 1) if rank < 2 else (2, 3)
        groups = [group(10 if rank < 2 else 99, ranks=ranks)]
        write_rank(tmp_path, rank, stall(REDUCING), ProcessGroups(LAST_NS, 20, groups))
    assert hung(tmp_path)[1]["collectives"] == []


def test_a_rank_that_saves_a_checkpoint_is_no_hang(tmp_path):
    for rank in range(4):
        write_rank(tmp_path, rank, stall(LOADING if rank == 0 else REDUCING, phase="checkpoint"))
        if rank:
            write_rank(tmp_path, rank, stall(REDUCING))
    payload, hang, primary = hung(tmp_path)
    assert (hang["kind"], hang["culprits"]) == ("LONG_PHASE", [0])
    assert primary["kind"] != "LONG_PHASE"
    assert [f for f in payload["findings"] if f["section"] == "hangs"] == []
    assert "rank 0: load at data.py:40 (checkpoint)" in payload["text"]


def test_ranks_that_wait_for_one_in_the_gather_of_an_evaluation_hang(tmp_path):
    for rank in range(4):
        write_rank(tmp_path, rank, stall(LOADING if rank == 2 else REDUCING, phase="eval"))
    assert hung(tmp_path)[1]["kind"] == "LONG_PHASE"  # rank 2 still evaluates
    write_rank(tmp_path, 2, stall(LOADING))
    _, hang, primary = hung(tmp_path)
    assert (primary["kind"], hang["culprits"]) == ("HANG", [2])


def test_a_phase_of_more_than_half_an_hour_is_a_warning(tmp_path):
    write_rank(
        tmp_path,
        0,
        stall(LOADING, phase="checkpoint"),
        Event("x", LAST_NS + 1900 * SECOND, None, 20),
        world=1,
    )
    primary = hung(tmp_path)[2]
    assert (primary["kind"], primary["severity"]) == ("LONG_PHASE", "warn")


def test_a_process_that_calls_the_model_without_an_update_is_busy(tmp_path):
    write_rank(tmp_path, 0, stall(LOADING, quiet=1), world=1)
    assert hung(tmp_path)[1]["kind"] == "LONG_PHASE"


def test_a_person_at_a_debugger_is_waited_for(tmp_path):
    write_rank(tmp_path, 0, stall(LOADING, input_from="debugger"), world=2)
    write_rank(tmp_path, 1, stall(REDUCING), world=2)
    payload, hang, _ = hung(tmp_path)
    assert (hang["kind"], hang["culprits"]) == ("WAITING_FOR_INPUT", [0])
    assert "waits for a person: debugger" in payload["text"]


def test_a_stall_before_a_later_step_has_ended(tmp_path):
    late = made.steps(1, first=21, start_ns=LAST_NS, durations=[90_000.0])
    write_rank(tmp_path, 0, stall(LOADING), late, world=1)
    payload, hang, primary = hung(tmp_path)
    assert (hang["kind"], hang["ended"], hang["duration_s"]) == ("STALL", True, 90.0)
    assert primary["kind"] != "STALL"
    (finding,) = [f for f in payload["findings"] if f["section"] == "hangs"]
    assert finding["severity"] == "warn"
    assert "once, 90.0 s in all" in finding["summary"]


def test_a_run_that_ended_in_order_after_its_last_step_did_not_hang(tmp_path):
    write_rank(tmp_path, 0, stall(LOADING), world=1, status="finished")
    assert fold(tmp_path).payload["hangs"] == []


@pytest.mark.parametrize(("late_s", "state"), [(60, "silent"), (0, "ended")])
def test_a_rank_that_wrote_nothing_while_others_did_is_the_cause(tmp_path, late_s, state):
    for rank in range(4):
        write_rank(tmp_path, rank, *([] if rank == 2 else [stall(REDUCING)]))
    (spool,) = tmp_path.glob("rank00002*")
    os.utime(spool, (spool.stat().st_mtime - late_s,) * 2)
    _, hang, primary = hung(tmp_path)
    assert (primary["kind"], hang["culprits"]) == ("HANG", [2])
    assert hang["places"][0]["state"] == state


def test_a_rank_that_was_never_seen_is_the_cause(tmp_path):
    for rank in (0, 1, 3):
        write_rank(tmp_path, rank, stall(REDUCING))
    _, hang, _ = hung(tmp_path)
    assert (hang["culprits"], hang["places"][0]["state"]) == ([2], "missing")


def test_a_clock_an_hour_off_makes_no_rank_silent(tmp_path):
    for rank in range(3):
        write_rank(tmp_path, rank, stall(REDUCING), world=4)
    batch = made.steps(20)
    header = made.rank_header(3, 4)
    header = replace(header, wall_ns=header.wall_ns - 3600 * SECOND)
    made.write_spool(tmp_path, [Patches(1, made.ACTIVE), batch, stall(LOADING)], header)
    _, hang, _ = hung(tmp_path)
    assert hang["culprits"] == [3]
    assert hang["places"][0]["state"] == "elsewhere"


def test_five_hundred_ranks_fit_in_the_summary(tmp_path):
    for rank in range(512):
        write_rank(tmp_path, rank, stall(LOADING if rank == 7 else REDUCING), world=512)
    payload, hang, _ = hung(tmp_path)
    assert hang["places"][1]["ranks"] == "0-6,8-511"
    assert len(payload["text"].splitlines()) <= 40


def test_the_place_is_the_innermost_line_of_the_user_and_what_it_called():
    assert place_of(REDUCING).text == "all_reduce at train.py:88"
    assert place_of(REDUCING).in_collective
    assert place_of(LOADING).text == "load at data.py:40"
    assert place_of('  File "/job/a b/t.py", line 3, in <module>').text == "t.py:3"
    assert place_of("") is None
    assert place_of("  ... 30 frames\nnonsense") is None


def test_ranks_are_written_as_intervals():
    assert intervals([5, 0, 1, 2, 7, 8]) == "0-2,5,7-8"
    assert intervals([]) == ""


def write_starting(run_dir, rank, stack, at_s=75, world=2):
    """A rank that has closed no step yet."""
    header = made.rank_header(rank, world)
    record = stall(stack, step=0, at_s=at_s, quiet=at_s)
    made.write_spool(run_dir, [Patches(1, made.ACTIVE), record], header)


def test_ranks_that_all_load_before_the_first_step_raise_no_alarm(tmp_path):
    for rank in range(2):
        write_starting(tmp_path, rank, LOADING)
    payload, hang, primary = hung(tmp_path)
    assert (hang["kind"], hang["ended"]) == ("LONG_PHASE", False)
    assert primary["kind"] not in ("HANG", "STALL", "LONG_PHASE")
    assert [f for f in payload["findings"] if f["section"] == "hangs"] == []


@pytest.mark.parametrize(("at_s", "severity"), [(75, "warn"), (1_801, "crit")])
def test_ranks_that_wait_for_one_before_the_first_step_are_a_warning_for_half_an_hour(
    tmp_path, at_s, severity
):
    write_starting(tmp_path, 0, REDUCING, at_s)
    write_starting(tmp_path, 1, LOADING, at_s)
    _, hang, primary = hung(tmp_path)
    assert (primary["kind"], primary["severity"]) == ("HANG", severity)
    assert hang["culprits"] == [1]
    assert primary["summary"].startswith("No step has closed yet, ")
    assert "rank 1: load at data.py:40" in primary["summary"]


def test_a_rank_that_has_not_come_is_named_without_a_place(tmp_path):
    write_starting(tmp_path, 0, REDUCING)
    _, hang, primary = hung(tmp_path)
    assert primary["kind"] == "HANG"
    assert hang["culprits"] == [1]
    assert hang["places"][0]["at"].startswith("never seen here (it has not come to")
