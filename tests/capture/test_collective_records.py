"""Which calls of collectives are kept one by one."""

import pytest

from traceml_agent.capture.collective_log import ROWS_LIMIT, CollectiveLog
from traceml_agent.capture.collective_records import (
    KEPT_A_STEP,
    LARGE_JOB,
    MOST_OF_A_STEP,
    CallKeeper,
)
from traceml_agent.schema.collectives import DENSE_STEPS, SPARSE


def note(log, step, calls, op="all_reduce", seq=None):
    """So many calls in a step."""
    number = log.number((op, "0-abc", 2, "gloo", 1))
    for _ in range(calls):
        log.noted += 1
        seq_of = log.noted if seq is None else seq
        log.rows.append((number, step, seq_of, log.noted, 10, 100, -1, 0))


def kept_and_summed(steps, calls, first=1, flush_every=7, ranks=2, sends=0):
    """Steps kept, and calls kept and summed, of equal steps."""
    log = CollectiveLog()
    keeper = CallKeeper(log, ranks)
    records = []
    for step in range(first, first + steps):
        note(log, step, sends, "send", seq=0)
        note(log, step, calls)
        if step % flush_every == 0:
            records += keeper.records()
    records += keeper.records()
    rows = [
        step for record in records for step, seq in zip(record.step, record.seq, strict=True) if seq
    ]
    return sorted(set(rows)), len(rows), sum(s.calls for r in records for s in r.sums)


def test_few_calls_a_step_are_all_kept():
    steps, kept, summed = kept_and_summed(50, 2)
    assert (len(steps), kept, summed) == (50, 100, 0)


def test_of_many_calls_whole_steps_are_kept_and_none_is_lost():
    steps, kept, summed = kept_and_summed(DENSE_STEPS, 200)
    assert kept + summed == DENSE_STEPS * 200
    assert kept <= DENSE_STEPS * KEPT_A_STEP + 200
    assert kept == 200 * len(steps)
    # The same steps whenever the log is emptied: ranks flush at different times.
    assert steps == kept_and_summed(DENSE_STEPS, 200, flush_every=64)[0]


def test_a_long_run_keeps_fewer_steps():
    steps, _, _ = kept_and_summed(1600, 1, first=DENSE_STEPS + 1)
    assert len(steps) == pytest.approx(1600 / SPARSE, abs=2)


def test_no_interval_of_a_loop_is_preferred():
    steps, _, _ = kept_and_summed(16 * 1600, 1, first=DENSE_STEPS + 1)
    for interval in (2, 10, 16, 100):
        of_interval = [step for step in steps if step % interval == 0]
        assert len(of_interval) == pytest.approx(1600 / interval, rel=0.15, abs=3)


def test_a_large_job_keeps_fewer_steps_and_none_that_another_would_not():
    few = kept_and_summed(DENSE_STEPS, 1, ranks=16 * LARGE_JOB)[0]
    assert len(few) == pytest.approx(DENSE_STEPS / 16, abs=2)
    assert set(few) <= set(kept_and_summed(DENSE_STEPS, 1, ranks=4 * LARGE_JOB)[0])


def test_what_is_sent_to_single_ranks_changes_nothing_for_what_all_call():
    steps, kept, summed = kept_and_summed(64, 4, sends=500)
    assert (steps, kept) == kept_and_summed(64, 4)[:2]
    assert summed == kept_and_summed(64, 0, sends=500)[2] > 0


def test_a_step_of_any_length_is_bounded():
    _, kept, summed = kept_and_summed(1, 5000)
    assert (kept, summed) == (MOST_OF_A_STEP, 5000 - MOST_OF_A_STEP)


def test_calls_that_come_faster_than_they_are_taken_are_told_as_lost():
    log = CollectiveLog()
    note(log, 1, ROWS_LIMIT + 5)
    [record] = CallKeeper(log, 1).records()
    assert record.lost == 5


def test_what_costs_too_much_several_times_is_switched_off():
    log = CollectiveLog()
    keeper = CallKeeper(log, 1)
    said = []
    for flush in range(1, 5):
        log.note_ns += 10**12
        keeper.judge(flush, 1.0, said.append)
    assert len(said) >= 1
    assert "TRACEML_MAX_OVERHEAD" in said[0]
    calm = CallKeeper(log, 1)
    said.clear()
    for flush in range(1, 5):
        calm.judge(flush, 1.0, said.append)
    assert said == []


class Handle:
    """Stands for torch's Work, which has a weak reference too."""


def test_the_id_of_a_handle_that_nobody_waited_for_may_come_again():
    log = CollectiveLog()
    handle, other = Handle(), Handle()
    log.expect(handle, 1, 7)
    log.pending[id(other)] = log.pending.pop(id(handle))
    assert log.expected(other) is None
    log.expect(handle, 1, 8)
    assert log.expected(handle) == (1, 8)
    assert log.expected(handle) is None


def test_a_row_that_took_long_because_of_a_neighbour_is_not_charged_for_it():
    log = CollectiveLog()
    for number in range(2000):
        log.charge(10_000_000 if number % 10 == 0 else 5_000)
    assert log.note_ns / 2000 == pytest.approx(5_500, rel=0.2)


def test_rows_that_all_take_long_are_charged_for_it():
    log = CollectiveLog()
    for _ in range(2000):
        log.charge(2_000_000)
    assert log.note_ns / 2000 > 1_500_000
