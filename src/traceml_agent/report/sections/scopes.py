"""The sections `scopes` and `marks`: what the program itself timed and noted, over all ranks."""

from collections.abc import Sequence
from typing import Any

from traceml_agent.report.parts import one_line
from traceml_agent.report.span_rows import value_of
from traceml_agent.report.spans import json_value
from traceml_agent.report.view import RunView

MOST = 20
"""Names of scopes, those with most time first."""
MOST_MARKS = 100


def build(view: RunView, walls_s: Sequence[float]) -> list[dict[str, Any]]:
    """`walls_s` is the wall time of each rank; a share is the mean over the ranks that have it."""
    found: dict[str, list[tuple[int, int, int, float]]] = {}
    for rank, wall_s in zip(view.ranks, walls_s, strict=True):
        for row in rank.spool.spans.sums.values():
            found.setdefault(row.name, []).append((row.count, row.total_ns, row.longest_ns, wall_s))
    rows = [_row(name, parts) for name, parts in found.items()]
    return sorted(rows, key=lambda row: (-row["total_s"], row["name"]))[:MOST]


def _row(name: str, parts: list[tuple[int, int, int, float]]) -> dict[str, Any]:
    count = sum(part[0] for part in parts)
    total_ns = sum(part[1] for part in parts)
    wall_s = sum(part[3] for part in parts)
    return {
        "name": one_line(name),
        "count": count,
        "total_s": total_ns / 1e9,
        "mean_ms": total_ns / count / 1e6 if count else None,
        "longest_ms": max(part[2] for part in parts) / 1e6,
        "share_percent": 100 * total_ns / 1e9 / wall_s if wall_s > 0 else None,
        "ranks": len(parts),
    }


def marks(view: RunView) -> list[dict[str, Any]]:
    """The last value of each summary mark, of the first rank that set it."""
    found: dict[tuple[str | None, str], dict[str, Any]] = {}
    for rank in view.ranks:
        for key, row in rank.spool.spans.mark_sums.items():
            known = found.setdefault(
                key,
                {
                    "name": one_line(row.name),
                    "scope": None if row.scope is None else one_line(row.scope),
                    "rank": rank.rank,
                    "count": row.count,
                    **json_value(_plain(value_of(row.last, row.special))),
                    "ranks": 0,
                },
            )
            known["ranks"] += 1
    rows = sorted(found.values(), key=lambda row: (row["scope"] or "", row["name"]))
    return rows[:MOST_MARKS]


def _plain(value: Any) -> Any:
    """A value as a summary holds it: a spool that somebody else wrote may say anything."""
    if isinstance(value, str):
        return one_line(value)
    if type(value) is int and abs(value) >= 1 << 63:
        return float(value) if abs(value) < 1 << 1023 else None
    return value if isinstance(value, (bool, int, float)) else None
