"""Could a difference between ranks be chance? Answered by turning the ranks round.

If no rank is special, then in any stretch of steps each rank could have had the times of any
other. So the stretches are turned round by random numbers of ranks many times, and the observed
difference is compared with what that gives. This holds for noise of any shape, also for a few
long pauses, as long as it does not stay with a rank for longer than a stretch.
"""

from collections.abc import Callable, Sequence
from random import Random

from traceml_agent.report.stats import numpy_for

BLOCK_STEPS = 20
"""Steps of a stretch at most. Source: the block length of the bootstrap in use for what-ifs."""
BLOCKS_LEAST = 16
"""Chosen: with two ranks, 16 stretches still tell 1 in 30,000 from chance."""
BLOCKS_MOST = 64
BLOCKS_OF_RANKS = 32_768
"""Stretches at most, and stretches times ranks, but for BLOCKS_LEAST. Chosen: bounds the work; a
longer run has longer stretches."""
TURNS = 2000
TURNS_LEAST = 1000
TURNS_WORK = 4_000_000
"""Chosen: additions that take plain Python about a second; 1,000 turns tell 1 in 1,001."""
NUMPY_FROM_RANKS = 64
"""Chosen: with fewer, importing numpy costs more than it saves."""
SEED = 20
"""Any number: folding twice must give the same bytes."""


def block_sums(column: Sequence[int], most: int) -> list[int]:
    """The sums over stretches of 20 steps; of fewer or more, to have from 16 to `most` of them."""
    count = len(column)
    length = max(1, min(BLOCK_STEPS, count // BLOCKS_LEAST), -(-count // most))
    return [sum(column[start : start + length]) for start in range(0, count, length)]


def chance_of(rows: Sequence[Sequence[int]]) -> float:
    """How often chance alone makes one rank stay as far below the upper median as one does here.

    `rows` holds one column a rank. The smallest value is 1 in 2,001, or 1,001 with many ranks.
    """
    most = max(BLOCKS_LEAST, min(BLOCKS_MOST, BLOCKS_OF_RANKS // len(rows)))
    blocks = [block_sums(column, most) for column in rows]
    ranks, count = len(blocks), len(blocks[0])
    observed = lowest_gap([sum(column) for column in blocks])
    turns = min(TURNS, max(TURNS_LEAST, TURNS_WORK // (ranks * count)))
    random = Random(SEED)
    reached = 0
    # Twice side by side, so that each rank's turn is a slice.
    twice = [list(values) * 2 for values in zip(*blocks, strict=True)]
    total = _totals(twice)
    for _ in range(turns):
        reached += lowest_gap(total(random.choices(range(ranks), k=count))) >= observed
    return (1 + reached) / (1 + turns)


def lowest_gap(totals: Sequence[int]) -> int:
    """How far the lowest lies below the upper median."""
    ordered = sorted(totals)
    return ordered[len(ordered) // 2] - ordered[0]


def _totals(twice: list[list[int]]) -> Callable[[list[int]], Sequence[int]]:
    """A function from the turn of each stretch to the total of each rank."""
    ranks = len(twice[0]) // 2
    numpy = numpy_for(ranks, NUMPY_FROM_RANKS)
    if numpy is not None:
        grid = numpy.asarray(twice, dtype=numpy.int64)

        def of_arrays(shifts: list[int]) -> Sequence[int]:
            parts = (row[shift : shift + ranks] for row, shift in zip(grid, shifts, strict=True))
            summed: list[int] = sum(parts).tolist()
            return summed

        return of_arrays

    def of_lists(shifts: list[int]) -> Sequence[int]:
        slices = (row[shift : shift + ranks] for row, shift in zip(twice, shifts, strict=True))
        return list(map(sum, zip(*slices, strict=True)))

    return of_lists
