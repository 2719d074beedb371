"""Statistics over columns. Plain Python for short columns, numpy for long ones, same results.

numpy is no dependency of the agent and costs 100 ms to import at the end of a training, so it is
used only where a column is long enough to pay for that.
"""

from collections.abc import Sequence
from typing import Any

NUMPY_FROM = 50_000
"""Sorting 50,000 integers takes Python about as long as importing numpy."""
MAD_TO_SIGMA = 1.4826


def numpy_for(count: int, least: int | None = None) -> Any:
    """numpy, where it is installed and `least` values (NUMPY_FROM) are there to pay for it."""
    if count < (NUMPY_FROM if least is None else least):
        return None
    try:
        import numpy
    except ImportError:
        return None
    return numpy


def mean(values: Sequence[float]) -> float | None:
    """The arithmetic mean; None of nothing."""
    return sum(values) / len(values) if values else None


def sorted_column(values: Sequence[int]) -> Sequence[int]:
    """The values in ascending order."""
    numpy = numpy_for(len(values))
    if numpy is None:
        return sorted(values)
    column: Sequence[int] = numpy.sort(numpy.asarray(values, dtype=numpy.int64)).tolist()
    return column


def sum_columns(columns: Sequence[Sequence[int]]) -> list[int]:
    """The sum of columns of one length, row by row."""
    numpy = numpy_for(len(columns[0]) if columns else 0)
    if numpy is None:
        return [sum(row) for row in zip(*columns, strict=True)]
    total: list[int] = sum(numpy.asarray(c, dtype=numpy.int64) for c in columns).tolist()
    return total


def differences(columns: Sequence[int], others: Sequence[int]) -> list[int]:
    """The first less the second, row by row, never below 0."""
    numpy = numpy_for(len(columns))
    if numpy is None:
        return [max(0, a - b) for a, b in zip(columns, others, strict=True)]
    left = numpy.asarray(columns, dtype=numpy.int64) - numpy.asarray(others)
    found: list[int] = numpy.maximum(left, 0).tolist()
    return found


def thinned(values: Sequence[int], most: int = 10_000) -> Sequence[int]:
    """At most `most` values at equal distances: enough for a median and its spread."""
    return values[:: -(-len(values) // most)] if len(values) > most else values


def quantile(sorted_values: Sequence[float], q: float) -> float | None:
    """Linear interpolation between the closest ranks (Hyndman and Fan, type 7)."""
    if not sorted_values:
        return None
    position = q * (len(sorted_values) - 1)
    below = int(position)
    above = min(below + 1, len(sorted_values) - 1)
    low, high = sorted_values[below], sorted_values[above]
    return low + (high - low) * (position - below)


def median(values: Sequence[float]) -> float | None:
    """The middle value."""
    return quantile(sorted(values), 0.5)


def median_abs_deviation(values: Sequence[float], center: float) -> float:
    """Median distance from `center`; 0 of nothing."""
    return median([abs(value - center) for value in values]) or 0.0


def theil_sen(points: Sequence[tuple[float, float]], most: int = 200) -> float | None:
    """Median of the slopes over all pairs of points, thinned to `most` points. None under 2."""
    if len(points) > most:
        stride = len(points) / most
        points = [points[int(i * stride)] for i in range(most)]
    slopes = [
        (y2 - y1) / (x2 - x1)
        for i, (x1, y1) in enumerate(points)
        for x2, y2 in points[i + 1 :]
        if x2 != x1
    ]
    return median(slopes)
