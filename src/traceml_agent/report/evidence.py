"""The steps behind a finding: how its time is distributed over them, and which had most of it."""

import heapq
from bisect import bisect_right
from typing import Any

from traceml_agent.report.align import rank_columns
from traceml_agent.report.sections.distribution import QUANTILES
from traceml_agent.report.sections.shape import Window, wall_s
from traceml_agent.report.sections.step_time import is_on_device
from traceml_agent.report.series import steps_within
from traceml_agent.report.stats import Column, quantile, sorted_column, sum_columns
from traceml_agent.report.view import RankView, RunView
from traceml_agent.schema.phases import COMPUTE_PHASES, PHASES

MS = 1e6
BINS = 10
"""Chosen: as many lines as fit on a screen beside the rest."""
SLOWEST = 5
NARROW = 1.5
"""Chosen: bins of equal ratio show two groups of steps a decade apart as well as two that are a
tenth apart, but below this ratio of most to least bins of equal width read better."""


def steps_behind(view: RunView, window: Window, metric: str) -> dict[str, Any] | None:
    """Percentiles, histogram and the steps with most of a phase, of the residual, of compute or of
    the whole step (`step_time`), over the window; None where no rank measured it.

    Times in milliseconds, as `rank`, `step`, `at_s` (seconds from the first step of that rank).
    """
    on_device = is_on_device(view)
    found = []
    for rank in view.ranks:
        if not rank.series.steps:
            continue
        _, columns = rank_columns(rank.series, on_device)
        column = _column(columns, metric)
        if column is not None:
            chosen = steps_within(rank.series, window.start_step or 0, window.end_step or 0)
            found.append((rank, columns, column, chosen))
    values = [v for _, _, column, chosen in found for v in column[chosen.start : chosen.stop]]
    if not values:
        return None
    ordered = sorted_column(values)
    return {
        "metric": metric,
        "steps": len(values),
        "ranks": len(found),
        "quantiles_ms": {
            **{label: (quantile(ordered, q) or 0.0) / MS for label, q in QUANTILES},
            "max": ordered[-1] / MS,
        },
        "histogram": _histogram(ordered),
        "slowest": _slowest(found),
    }


def _column(columns: dict[str, Column | None], metric: str) -> Column | None:
    if metric != "compute":
        return columns.get(metric)
    parts = [column for name in COMPUTE_PHASES if (column := columns[name]) is not None]
    return sum_columns(parts) if len(parts) == len(COMPUTE_PHASES) else None


def _histogram(ordered: Column) -> list[dict[str, float | int]]:
    """Counts between bounds that rise by equal ratios, by equal steps where all are alike."""
    least, most = max(1, ordered[0]), max(1, ordered[-1])
    if most == least:
        return [{"from_ms": least / MS, "to_ms": most / MS, "steps": len(ordered)}]
    if most < NARROW * least:
        bounds = [least + (most - least) * i / BINS for i in range(BINS + 1)]
    else:
        bounds = [least * (most / least) ** (i / BINS) for i in range(BINS + 1)]
    bounds[-1] = most
    up_to = [0, *(bisect_right(ordered, bound) for bound in bounds[1:])]
    return [
        {"from_ms": bounds[i] / MS, "to_ms": bounds[i + 1] / MS, "steps": up_to[i + 1] - up_to[i]}
        for i in range(BINS)
    ]


def _slowest(
    found: list[tuple[RankView, dict[str, Column | None], Column, range]],
) -> list[dict[str, Any]]:
    candidates = [
        (column[row], index, row)
        for index, (_, _, column, chosen) in enumerate(found)
        for row in heapq.nlargest(SLOWEST, chosen, key=column.__getitem__)
    ]
    listed = []
    for nanoseconds, index, row in heapq.nlargest(SLOWEST, candidates):
        rank, columns, _, _ = found[index]
        series = rank.series
        parts = {n: c[row] / MS for n in (*PHASES, "residual") if (c := columns[n]) is not None}
        step_ns = columns["step_time"]
        listed.append(
            {
                "rank": rank.rank,
                "step": series.steps[row],
                "at_s": (series.start_ns[row] - series.start_ns[0]) / 1e9,
                "ts_s": wall_s(rank, series.start_ns[row]),
                "ms": nanoseconds / MS,
                "step_ms": None if step_ns is None else step_ns[row] / MS,
                "parts_ms": parts,
            }
        )
    return listed
