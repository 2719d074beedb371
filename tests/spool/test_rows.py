"""Rows of the ring into records; steps that were only counted get the phases of the others."""

import dataclasses

from traceml_agent.schema.phases import EVAL, FORWARD, PHASES
from traceml_agent.schema.records import Steps, StepSums
from traceml_agent.spool.format import decode, encode
from traceml_agent.spool.layout import RESTED
from traceml_agent.spool.plausible import check, is_plausible_row
from traceml_agent.spool.rows import batches_of, shared_out
from traceml_agent.spool.writer import thin_lines


def row(step, start, duration, *, d2h=0, samples=8, **phases):
    acc = [0] * len(PHASES)
    for phase, elapsed in phases.items():
        acc[PHASES.index(phase)] = elapsed
    return (step, start, duration, *acc, d2h, 1, samples, 1, step)


def rows(first, count, duration, *, start=0, **more):
    return [row(first + n, start + n * duration, duration, **more) for n in range(count)]


def test_counted_steps_become_sums_between_the_others():
    seen = rows(1, 3, 100, forward=60)
    counted = rows(4, 4, 100, start=300, d2h=RESTED - 100)
    after = rows(8, 2, 100, start=700, forward=50)
    assert all(map(is_plausible_row, counted))
    first, sums, last = batches_of([*seen, *counted, *after])
    assert (first.first_step, first.count, last.first_step, last.count) == (1, 3, 8, 2)
    assert (sums.first_step, sums.count, sums.start_ns, sums.duration_ns) == (4, 4, 300, 400)
    assert (sums.shared_ns, sums.phase_ns) == (400, {})
    assert (sums.micro_batches, sums.samples, sums.updates) == (4, 32, 4)


def test_what_a_slow_step_takes_beyond_three_medians_is_not_shared_out():
    (sums,) = batches_of(
        [*rows(1, 4, 100, d2h=RESTED - 100), row(5, 400, 10_000, d2h=RESTED - 10_000)]
    )
    assert (sums.duration_ns, sums.shared_ns) == (10_400, 400 + 300)


def test_a_step_that_was_seen_in_part_keeps_its_phases():
    (sums,) = batches_of([row(7, 0, 100, d2h=RESTED - 30, eval=60, forward=5)])
    assert (sums.phase_ns, sums.shared_ns) == ({"eval": 60, "forward": 5}, 30)


def test_a_batch_of_unknown_size_leaves_the_samples_unknown():
    counted = rows(1, 2, 100, d2h=RESTED - 100)
    (sums,) = batches_of([*counted, row(3, 200, 100, d2h=RESTED - 100, samples=-1)])
    assert sums.samples is None


def sums_of_counted(shared_ns, **phase_ns):
    return StepSums(200, 10, 0, 2_000, phase_ns, 10, None, 10, shared_ns=shared_ns)


def test_time_is_shared_out_as_in_usual_steps():
    """A fifth of the time of the others is evaluation, which is no part of a usual step."""
    others = Steps(100, 2, 0, [1_000, 1_000], {"forward": [400, 400], "eval": [0, 400]}, 1, None, 1)
    (part,) = shared_out([sums_of_counted(1_600, eval=300, forward=10)], [others])
    assert part.phase_ns == {"forward": 10 + 1_600 * 800 // 1_600, "eval": 300}
    assert EVAL != FORWARD and "residual" not in part.phase_ns


def test_warm_up_does_not_say_how_time_is_shared_out():
    slow = Steps(1, 1, 0, [10_000], {"forward": [10_000]}, 1, None, 1)
    usual = Steps(60, 1, 0, [1_000], {"backward": [500]}, 1, None, 1)
    (part,) = shared_out([sums_of_counted(1_000)], [slow, usual])
    assert part.phase_ns == {"backward": 500}


def test_sums_of_old_steps_stay_as_they_are():
    old = dataclasses.replace(sums_of_counted(None), phase_ns={"forward": 3})
    assert shared_out([old], []) == [old]
    assert shared_out([sums_of_counted(5)], []) == [sums_of_counted(5)]  # nothing to go by


def test_thinning_joins_counted_steps_with_the_others():
    counted = [dataclasses.replace(sums_of_counted(5), first_step=n, count=1, start_ns=2_000 * n)
               for n in (1, 2, 3)]  # fmt: skip
    old = dataclasses.replace(counted[0], first_step=4, start_ns=8_000, shared_ns=None)
    lines = [encode(record) for record in [*counted, old, *[old] * 4]]
    found = [decode(line) for line in thin_lines(lines).lines]
    assert [(part.count, part.shared_ns) for part in found[:2]] == [(4, 15), (1, None)]
    for part in found[:2]:
        check(part)
