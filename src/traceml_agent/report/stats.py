"""Statistics over columns. Plain Python for short columns, numpy for long ones, same results.

numpy is no dependency of the agent and costs 100 ms to import at the end of a training, so it is
used only where a column is long enough to pay for that.
"""

import sys
from array import array
from collections.abc import Sequence
from itertools import accumulate
from operator import sub
from typing import Any, cast

NUMPY_FROM = 50_000
"""Sorting 50,000 integers takes Python about as long as importing numpy."""
NUMPY_LOADED_FROM = 256
"""Where the program has imported numpy already: turning a shorter column into an array costs what
it saves."""
MAD_TO_SIGMA = 1.4826

Column = Sequence[int]
"""Integers of 64 bits: a list, or an array, which is 8 bytes a value."""


def numpy_for(count: int, least: int | None = None) -> Any:
    """numpy, where it is installed and `least` values (NUMPY_FROM) are there to pay for it."""
    if least is None:
        least = NUMPY_LOADED_FROM if "numpy" in sys.modules else NUMPY_FROM
    if count < least:
        return None
    try:
        import numpy
    except ImportError:
        return None
    return numpy


def column_of(values: Any) -> Column:
    """An array of numpy as an array of Python."""
    return cast(Column, array("q", values.astype("int64", copy=False).tobytes()))


def mean(values: Sequence[float]) -> float | None:
    """The arithmetic mean; None of nothing."""
    return sum(values) / len(values) if values else None


def total(values: Column) -> int:
    """The sum of a column."""
    numpy = numpy_for(len(values))
    return sum(values) if numpy is None else int(numpy.asarray(values, dtype=numpy.int64).sum())


def largest(values: Column) -> int:
    """The largest of a column that is not empty."""
    numpy = numpy_for(len(values))
    return max(values) if numpy is None else int(numpy.asarray(values, dtype=numpy.int64).max())


def sorted_column(values: Column) -> Column:
    """The values in ascending order."""
    numpy = numpy_for(len(values))
    if numpy is None:
        return sorted(values)
    return column_of(numpy.sort(numpy.asarray(values, dtype=numpy.int64)))


def sum_columns(columns: Sequence[Column]) -> Column:
    """The sum of columns of one length, row by row."""
    numpy = numpy_for(sum(map(len, columns)))
    if numpy is None:
        return [sum(row) for row in zip(*columns, strict=True)]
    return column_of(sum(numpy.asarray(column, dtype=numpy.int64) for column in columns))


def running_sum(column: Column, initial: int) -> Column:
    """`initial`, and what it is after each value is added."""
    numpy = numpy_for(len(column))
    if numpy is None:
        return array("q", accumulate(column, initial=initial))
    return column_of(numpy.cumsum(numpy.asarray((initial, *column), dtype=numpy.int64)))


def differences(column: Column, other: Column) -> Column:
    """The first less the second, row by row, never below 0."""
    numpy = numpy_for(len(column))
    if numpy is None:
        return [max(0, a - b) for a, b in zip(column, other, strict=True)]
    left = numpy.asarray(column, dtype=numpy.int64) - numpy.asarray(other, dtype=numpy.int64)
    return column_of(numpy.maximum(left, 0))


def subtracted(column: Column, other: Column) -> Column:
    """The first less the second, row by row."""
    numpy = numpy_for(len(column))
    if numpy is None:
        return list(map(sub, column, other))
    return column_of(
        numpy.asarray(column, dtype=numpy.int64) - numpy.asarray(other, dtype=numpy.int64)
    )


def scaled(column: Column, factor: float) -> Column:
    """Each value times the factor, rounded towards 0."""
    numpy = numpy_for(len(column))
    if numpy is None:
        return [int(value * factor) for value in column]
    return column_of(numpy.asarray(column, dtype=numpy.int64) * factor)


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


def middle(values: Column) -> float | None:
    """The median of a column."""
    return quantile(sorted_column(values), 0.5)


def median_abs_deviation(values: Column, center: float) -> float:
    """Median distance from `center`; 0 of nothing."""
    numpy = numpy_for(len(values))
    if numpy is not None:
        distances = numpy.abs(numpy.asarray(values, dtype=numpy.float64) - center)
        return quantile(numpy.sort(distances).tolist(), 0.5) or 0.0
    return median([abs(value - center) for value in values]) or 0.0


def theil_sen(points: Sequence[tuple[float, float]], most: int = 200) -> float | None:
    """Median of the slopes over all pairs of points, thinned to `most` points. None under 2."""
    if len(points) > most:
        stride = len(points) / most
        points = [points[int(i * stride)] for i in range(most)]
    numpy = numpy_for(len(points) ** 2)
    if numpy is not None:
        x, y = numpy.asarray(points, dtype=numpy.float64).T
        first, second = numpy.triu_indices(len(points), 1)
        apart = x[second] - x[first]
        known = apart != 0
        found = (y[second] - y[first])[known] / apart[known]
        return quantile(numpy.sort(found).tolist(), 0.5)
    slopes = [
        (y2 - y1) / (x2 - x1)
        for i, (x1, y1) in enumerate(points)
        for x2, y2 in points[i + 1 :]
        if x2 != x1
    ]
    return median(slopes)
