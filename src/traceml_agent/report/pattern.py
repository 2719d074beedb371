"""When a rank is slow: always, in one stretch, now and then, or by turns with the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from traceml_agent.report.stats import median

BULK = 0.8
"""The part of the excess that a pattern must account for. Source: the share by which the format
names a cause."""
TRANSIENT_MOST = 0.5
"""Chosen: a stretch of more than half of the steps is no episode."""
RECURRING_MOST = 0.2
"""Chosen: what happens in more than every fifth step is the rule."""
REGULAR = 0.1
"""Chosen: distances within 10 % of their median are called regular."""
OFTEN = 0.5
"""Chosen: the slowest rank in at least half of the steps is always the same."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """When the excess of a rank over the others falls."""

    kind: str  # constant, transient, recurring, wandering
    first_step: int | None = None  # of a transient one
    last_step: int | None = None
    steps: int | None = None  # that hold the bulk of a recurring one
    every: int | None = None  # their distance, where it is regular


def pattern_of(steps: Sequence[int], excess: Sequence[int], slowest_share: float) -> Pattern:
    """The pattern of a column of excess times, none below 0."""
    total = sum(excess)
    if total <= 0:
        return Pattern("constant" if slowest_share >= OFTEN else "wandering")
    bulk = _bulk(excess, total)
    start, stop = _shortest(excess, BULK * total)
    if len(bulk) <= max(1, RECURRING_MOST * len(steps)) and stop - start > 2 * len(bulk):
        gaps = [steps[b] - steps[a] for a, b in pairwise(bulk)]
        return Pattern("recurring", steps=len(bulk), every=_regular(gaps))
    if stop - start <= TRANSIENT_MOST * len(steps):
        return Pattern("transient", first_step=steps[start], last_step=steps[stop - 1])
    return Pattern("constant" if slowest_share >= OFTEN else "wandering")


def _bulk(excess: Sequence[int], total: int) -> list[int]:
    """The fewest steps that hold the bulk, in order."""
    ordered = sorted(range(len(excess)), key=lambda index: (-excess[index], index))
    found, held = [], 0
    for index in ordered:
        if held >= BULK * total:
            break
        found.append(index)
        held += excess[index]
    return sorted(found)


def _shortest(excess: Sequence[int], wanted: float) -> tuple[int, int]:
    """The bounds of the shortest stretch that holds so much."""
    best, start, held = (0, len(excess)), 0, 0
    for stop, value in enumerate(excess, start=1):
        held += value
        while held - excess[start] >= wanted:
            held -= excess[start]
            start += 1
        if held >= wanted and stop - start < best[1] - best[0]:
            best = (start, stop)
    return best


def _regular(gaps: list[int]) -> int | None:
    """The distance that nearly all gaps are multiples of one of; None where there is none."""
    middle = median(gaps)
    if middle is None or len(gaps) < 2 or middle < 2:
        return None
    near = sum(abs(gap - middle) <= max(1.0, REGULAR * middle) for gap in gaps)
    return round(middle) if near >= BULK * len(gaps) else None
