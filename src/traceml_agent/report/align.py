"""Aligned: the columns of all ranks over the steps that each of them closed.

Ranks are joined by the numbers of their steps alone, never by clocks. Everything that compares
ranks reads them here, so that what a rank recorded is read in one function, `rank_columns`.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from traceml_agent.report.series import RankSeries
from traceml_agent.report.stats import Column, column_of, differences, numpy_for, sum_columns
from traceml_agent.report.view import RankView
from traceml_agent.schema.phases import PHASES

Rows = list[Column]
"""One column a rank, in the order of `Aligned.ranks`, in nanoseconds."""


@dataclass(frozen=True, slots=True)
class Aligned:
    """Ranks side by side. A phase that some rank did not measure is None for all."""

    ranks: tuple[int, ...]
    steps: Sequence[int]
    step_ns: Rows
    phase_ns: dict[str, Rows | None]
    residual_ns: Rows | None

    def rows(self, name: str) -> Rows | None:
        """The columns of a phase, of the residual or of the step."""
        if name == "step_time":
            return self.step_ns
        return self.residual_ns if name == "residual" else self.phase_ns[name]


@dataclass(frozen=True, slots=True)
class PerStep:
    """One value a step over the ranks."""

    lowest: Column
    highest: Column
    highest_at: Column  # index of the rank; the first of equal ones


def align(
    ranks: list[RankView], first: int | None, last: int | None, on_device: bool
) -> Aligned | None:
    """The ranks on the steps from `first` to `last` that all have; None without any such step.

    Steps that one rank thinned out, or lost, are left out for all. Ranks without a step are no
    part of it.
    """
    members = [rank for rank in ranks if rank.series.steps]
    if first is None or last is None or not members:
        return None
    read = [rank_columns(rank.series, on_device) for rank in members]
    steps = _common_steps([steps for steps, _ in read], first, last)
    if on_device:
        # The first step began before the device was seen in use: it has no device time.
        unseen = {
            s for own, c in read for s, ns in zip(own, c["step_time"] or (), strict=True) if not ns
        }
        steps = [step for step in steps if step not in unseen]
    if not steps:
        return None
    chosen = [
        {name: None if c is None else at_steps(c, own, steps) for name, c in columns.items()}
        for own, columns in read
    ]
    rows: dict[str, Rows | None] = {}
    for name in chosen[0]:
        known = [column for columns in chosen if (column := columns[name]) is not None]
        rows[name] = known if len(known) == len(members) else None
    return Aligned(
        ranks=tuple(rank.rank for rank in members),
        steps=steps,
        step_ns=rows["step_time"] or [],
        phase_ns={name: rows[name] for name in PHASES},
        residual_ns=rows["residual"],
    )


def rank_columns(
    series: RankSeries, on_device: bool
) -> tuple[Sequence[int], dict[str, Column | None]]:
    """The step numbers of a rank, and its columns on one clock: step, phases, residual."""
    columns: dict[str, Column | None] = dict(series.phase_ns)
    duration = series.duration_ns
    if on_device and series.device_duration_ns is not None:
        duration = series.device_duration_ns
        columns = {n: None if c is None else series.device_phase_ns[n] for n, c in columns.items()}
    known = [column for column in columns.values() if column is not None]
    complete = len(known) == len(PHASES)
    columns["residual"] = differences(duration, sum_columns(known)) if complete else None
    columns["step_time"] = duration
    return series.steps, columns


def add_rows(parts: list[Rows]) -> Rows:
    """The sum of several phases, rank by rank."""
    if len(parts) == 1:
        return parts[0]
    return [sum_columns(columns) for columns in zip(*parts, strict=True)]


def per_step(rows: Rows) -> PerStep:
    """The extremes over the ranks in each step."""
    numpy = numpy_for(len(rows) * len(rows[0]))
    if numpy is not None:
        grid = numpy.stack([numpy.asarray(column, dtype=numpy.int64) for column in rows])
        extremes = (grid.min(axis=0), grid.max(axis=0), grid.argmax(axis=0))
        return PerStep(*map(column_of, extremes))
    by_step = list(zip(*rows, strict=True))
    highest = [max(values) for values in by_step]
    found = [values.index(top) for values, top in zip(by_step, highest, strict=True)]
    return PerStep([min(values) for values in by_step], highest, found)


def middle_per_step(rows: Rows) -> Column:
    """The lower median over the ranks in each step."""
    at = (len(rows) - 1) // 2
    numpy = numpy_for(len(rows) * len(rows[0]))
    if numpy is None:
        return [sorted(values)[at] for values in zip(*rows, strict=True)]
    grid = numpy.stack([numpy.asarray(column, dtype=numpy.int64) for column in rows])
    return column_of(numpy.partition(grid, at, axis=0)[at])


def _common_steps(of_ranks: list[Sequence[int]], first: int, last: int) -> list[int]:
    """The step numbers within bounds that every rank has, in order."""
    inside = [step for step in of_ranks[0] if first <= step <= last]
    for own in of_ranks[1:]:
        if own is of_ranks[0] or own == of_ranks[0]:
            continue
        has = set(own)
        inside = [step for step in inside if step in has]
    return inside


def at_steps(column: Column, own: Sequence[int], steps: Sequence[int]) -> Column:
    """The values of a column at these steps, all of which the rank has."""
    if len(own) == own[-1] - own[0] + 1 and len(steps) == steps[-1] - steps[0] + 1:
        start = steps[0] - own[0]
        view = memoryview(column) if isinstance(column, array) else column  # spares the copy
        return view[start : start + len(steps)]
    where = {step: index for index, step in enumerate(own)}
    return [column[where[step]] for step in steps]
