"""What a job would gain if slow ranks ran like the median: re-computed from each step.

The model: all ranks meet once a step, and the last to come decides. The own work of a rank in a
step is the step less its waiting, and its waiting is what its synchronising phases take beyond
those of the rank that waited least in that step. The job then takes the sum over the steps of the
largest own work; with the slow rank's own work replaced by the median's, it takes less.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random

from traceml_agent.report.align import Rows, middle_per_step, per_step
from traceml_agent.report.stats import (
    Column,
    differences,
    mean,
    numpy_for,
    quantile,
    subtracted,
    total,
)

MODEL_ERROR_MOST = 0.10
"""Chosen: where the largest own work of each step adds up to 10 % more or less than the steps did,
ranks do not meet once a step, and the model says nothing."""
CONFIDENCE = 0.95
NORMAL = 1.96
"""Standard errors on each side of a mean that hold 95 %."""
RESAMPLES = 500
BLOCK_STEPS = 20
BLOCKS_LEAST = 8
BLOCKS_MOST = 200
CORRELATED = 0.1
"""Moving-block bootstrap: blocks of 20 steps, or as far as steps are correlated by 0.1. Source:
Kuensch 1989, and the choice of block in the engines this follows. Blocks are shorter where there
would be fewer than 8, and longer where there would be more than 200: chosen, for time."""
SEED = 3
"""Any number: folding twice must give the same bytes."""


@dataclass(frozen=True, slots=True)
class WhatIf:
    """What a step would lose; times in nanoseconds a step. None where it cannot be known."""

    step_ns: float
    gain_ns: float | None
    low_ns: float | None
    high_ns: float | None
    reason: str | None  # why it cannot be known


@dataclass(frozen=True, slots=True)
class OwnWork:
    """Steps less waiting, and the waiting itself, a column a rank."""

    work: Rows
    waiting: Rows


def own_work(step_ns: Rows, sync_ns: Rows) -> OwnWork:
    """Tells own work from waiting, by the rank that waited least in each step."""
    least = per_step(sync_ns).lowest
    waiting: Rows = [subtracted(column, least) for column in sync_ns]
    work = [subtracted(steps, waits) for steps, waits in zip(step_ns, waiting, strict=True)]
    return OwnWork(work, waiting)


def what_if(step_ns: Rows, own: OwnWork, slow: Sequence[int]) -> WhatIf:
    """The gain if the ranks at these indices ran like the median of the others.

    The interval holds the bootstrap's of two estimates: from the work of the ranks, and from what
    the other ranks waited. They differ where work and waiting cannot be told apart.
    """
    steps = len(step_ns[0])
    took = (mean([total(column) / steps for column in step_ns]) or 0.0) * steps
    now = per_step(own.work).highest
    if not took or abs(total(now) - took) > MODEL_ERROR_MOST * took:
        reason = "the work of the ranks and their waiting do not add up to the steps"
        return WhatIf(took / steps, None, None, None, reason)
    others = [column for index, column in enumerate(own.work) if index not in slow]
    # With the slow ones at their median, the largest is the largest of the others.
    then = per_step(others).highest
    by_work = differences(now, then)
    waits = [column for index, column in enumerate(own.waiting) if index not in slow]
    last = per_step([own.waiting[index] for index in slow]).lowest
    by_waiting = differences(per_step(waits).lowest, last)
    bounds = [*_interval(by_work), *_interval(by_waiting)]
    return WhatIf(took / steps, total(by_work) / steps, min(bounds), max(bounds), None)


def excess(own: OwnWork, rank: int) -> Column:
    """What a rank works beyond the median of the others in each step; 0 where it works less."""
    others = [column for index, column in enumerate(own.work) if index != rank]
    return differences(own.work[rank], middle_per_step(others))


def _interval(values: Sequence[int]) -> tuple[float, float]:
    """Bounds of the mean of a column: moving-block bootstrap."""
    count = len(values)
    length = block_length(values)
    sums = [0, *accumulate(values)]
    blocks = -(-count // length)
    starts = count - length + 1
    random = Random(SEED)
    found = []
    of_block = [sums[start + length] - sums[start] for start in range(starts)]
    for _ in range(RESAMPLES):
        found.append(sum(random.choices(of_block, k=blocks)) / (blocks * length))
    found.sort()
    tail = (1 - CONFIDENCE) / 2
    return quantile(found, tail) or 0.0, quantile(found, 1 - tail) or 0.0


def mean_interval(values: Sequence[int]) -> tuple[float, float]:
    """Bounds of the mean of a column from the means of its blocks: quick, for many columns.

    Source: batch means, Law and Kelton; normal, since there are 8 to 200 blocks.
    """
    count = len(values)
    length = block_length(values)
    blocks = max(1, count // length)
    center = total(values) / count
    if blocks < 2:
        return center, center
    means = [total(values[i * length : (i + 1) * length]) / length for i in range(blocks)]
    middle = sum(means) / blocks
    spread = sum((value - middle) ** 2 for value in means) / (blocks - 1)
    error = NORMAL * (spread / blocks) ** 0.5
    return center - error, center + error


def block_length(values: Sequence[int]) -> int:
    """Steps of a block."""
    count = len(values)
    most = max(1, count // BLOCKS_LEAST)
    length = max(BLOCK_STEPS, -(-count // BLOCKS_MOST))
    while length < most and _correlation(values, length) > CORRELATED:
        length *= 2
    return min(most, length)


def _correlation(values: Sequence[int], lag: int) -> float:
    """How a column correlates with itself so many steps later."""
    center = mean(values) or 0.0
    numpy = numpy_for(len(values))
    if numpy is not None:
        apart = numpy.asarray(values, dtype=numpy.float64) - center
        squares = float((apart * apart).sum())
        return float((apart[:-lag] * apart[lag:]).sum()) / squares if squares else 0.0
    spread = sum((value - center) ** 2 for value in values)
    if not spread:
        return 0.0
    pairs = zip(values, values[lag:], strict=False)
    return sum((a - center) * (b - center) for a, b in pairs) / spread
