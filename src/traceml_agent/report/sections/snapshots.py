"""The section `snapshots`: figures of weights and gradients, and how their norms went."""

from collections.abc import Sequence
from typing import Any

from traceml_agent.report.diagnose import snapshots as diagnose
from traceml_agent.report.view import RankView, RunView
from traceml_agent.schema.snapshots import Figures, Snapshot, TensorFigures

MOST_RANKS = 8
"""Whose figures are listed, the first ones. Chosen: where ranks hold shards, each has its own."""
MOST_POINTS = 64
"""Of a history, the newest ones."""
MOST_HISTORIES = 32
"""Tensors with a history, the largest ones."""

SECTION = "snapshots"


def build(view: RunView) -> dict[str, Any] | None:
    """The newest snapshot of each rank, with the norms of those before; None if there is none."""
    ranks = [rank for rank in view.ranks if rank.spool.snapshots]
    if not ranks:
        return None
    issues = diagnose.diagnose({rank.rank: ordered(rank.spool.snapshots) for rank in ranks})
    return {
        "ranks": {str(rank.rank): _rank(rank) for rank in ranks[:MOST_RANKS]},
        "ranks_left_out": max(0, len(ranks) - MOST_RANKS),
        "issues": [issue.to_json() for issue in issues],
    }


def ordered(snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    """In the order in which they were taken."""
    return sorted(snapshots, key=lambda found: (found.first_step, found.last_step))


def _rank(rank: RankView) -> dict[str, Any]:
    found = ordered(rank.spool.snapshots)
    newest = found[-1]
    return {
        "count": len(found),
        "stall_ms": sum(s.stall_ns for s in found) / 1e6,
        "longest_stall_ms": max(s.longest_stall_ns for s in found) / 1e6,
        "thread_cpu_s": sum(s.reduced_ns for s in found) / 1e9,
        "newest": {
            "cause": newest.cause,
            "epoch": newest.epoch,
            "first_step": newest.first_step,
            "last_step": newest.last_step,
            "left_out": newest.left_out,
            "tensors": [_row(row) for row in newest.tensors],
        },
        "history": _history(found[-MOST_POINTS:]),
    }


def _row(row: TensorFigures) -> dict[str, Any]:
    return {
        "name": row.name,
        "shape": row.shape,
        "dtype": row.dtype,
        "elements": row.elements,
        "looked": row.looked,
        "step": row.step,
        "shard": row.shard,
        "weight": _figures(row.weight),
        "gradient": None if row.gradient is None else _figures(row.gradient),
        "no_gradient": row.no_gradient,
    }


def _figures(found: Figures) -> dict[str, Any]:
    return {
        "mean": found.mean,
        "std": found.std,
        "min": found.min,
        "max": found.max,
        "l2": found.l2,
        "histogram": found.histogram,
        "nan": found.nan,
        "inf": found.inf,
    }


def _history(found: list[Snapshot]) -> dict[str, Any]:
    """A column a tensor, a point a snapshot; None where a snapshot has no such figure."""
    largest = sorted(found[-1].tensors, key=lambda row: -row.elements)[:MOST_HISTORIES]
    rows = [{row.name: row for row in snapshot.tensors} for snapshot in found]
    weights: dict[str, list[float | None]] = {}
    gradients: dict[str, list[float | None]] = {}
    for name in (row.name for row in largest):
        points = [of.get(name) for of in rows]
        weights[name] = [None if p is None else p.weight.l2 for p in points]
        gradients[name] = [
            None if p is None or p.gradient is None else p.gradient.l2 for p in points
        ]
    return {
        "epoch": [snapshot.epoch for snapshot in found],
        "first_step": [snapshot.first_step for snapshot in found],
        "last_step": [snapshot.last_step for snapshot in found],
        "weight_l2": weights,
        "gradient_l2": gradients,
    }
