"""Which calls of collectives are kept one by one."""

from traceml_agent.capture.collective_log import ROWS_LIMIT, CollectiveLog
from traceml_agent.capture.collective_records import (
    DENSE_STEPS,
    KEPT_A_STEP,
    MOST_OF_A_STEP,
    SPARSE,
    CallKeeper,
)


def note(log, step, calls):
    """So many calls in a step."""
    number = log.number(("all_reduce", "0-abc", 2, "gloo", 1))
    for _ in range(calls):
        log.noted += 1
        log.rows.append((number, step, log.noted, log.noted, 10, 100, -1, 0))


def kept_and_summed(steps, calls, first=1, flush_every=7):
    """Steps kept, and calls kept and summed, of equal steps."""
    log = CollectiveLog()
    keeper = CallKeeper(log)
    records = []
    for step in range(first, first + steps):
        note(log, step, calls)
        if step % flush_every == 0:
            records += keeper.records()
    records += keeper.records()
    rows = [step for record in records for step in record.step]
    return sorted(set(rows)), len(rows), sum(s.calls for r in records for s in r.sums)


def test_few_calls_a_step_are_all_kept():
    steps, kept, summed = kept_and_summed(50, 2)
    assert (len(steps), kept, summed) == (50, 100, 0)


def test_of_many_calls_whole_steps_are_kept_and_none_is_lost():
    steps, kept, summed = kept_and_summed(512, 200)
    assert kept + summed == 512 * 200
    assert kept <= 512 * KEPT_A_STEP + 200
    assert kept == 200 * len(steps)
    # The same steps whenever the log is emptied: ranks flush at different times.
    assert steps == kept_and_summed(512, 200, flush_every=64)[0]


def test_a_long_run_keeps_fewer_steps():
    steps, _, _ = kept_and_summed(400, 1, first=DENSE_STEPS + 1)
    assert len(steps) == 400 // SPARSE


def test_a_step_of_any_length_is_bounded():
    _, kept, summed = kept_and_summed(1, 5000)
    assert (kept, summed) == (MOST_OF_A_STEP, 5000 - MOST_OF_A_STEP)


def test_calls_that_come_faster_than_they_are_taken_are_told_as_lost():
    log = CollectiveLog()
    note(log, 1, ROWS_LIMIT + 5)
    [record] = CallKeeper(log).records()
    assert record.lost == 5


def test_what_costs_too_much_several_times_is_switched_off():
    log = CollectiveLog()
    keeper = CallKeeper(log)
    said = []
    for flush in range(1, 5):
        log.cost_ns += 10**12
        keeper.judge(flush, 1.0, said.append)
    assert len(said) >= 1
    assert "TRACEML_MAX_OVERHEAD" in said[0]
    calm = CallKeeper(log)
    said.clear()
    for flush in range(1, 5):
        calm.judge(flush, 1.0, said.append)
    assert said == []
