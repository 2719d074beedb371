"""What frameworks did in the run, by their own account."""

from typing import Any

from traceml_agent.report.parts import one_line
from traceml_agent.report.view import RankView, RunView
from traceml_agent.schema.records import FRAMEWORK_EVENT

COUNTS = ("trainings", "evaluations", "predictions", "checkpoints", "logs")
MOST = 10
"""Chosen: more than there are in one program; a damaged spool may name any number."""


def build(view: RunView) -> list[dict[str, Any]]:
    """One entry a framework, as the lowest rank saw it; what it did not do is 0."""
    return _of_rank(view.ranks[0])[:MOST]


def _of_rank(rank: RankView) -> list[dict[str, Any]]:
    last = {
        name: event.detail
        for event in rank.spool.events
        if event.name == FRAMEWORK_EVENT and isinstance(name := event.detail.get("framework"), str)
    }
    return [
        {
            "name": one_line(name)[:60],
            "version": one_line(version)[:60] if isinstance(version, str) else None,
            "epochs": _number(detail.get("epochs")),
            "steps": _number(detail.get("steps")),
            **{kind: _number(detail.get(kind)) or 0 for kind in COUNTS},
        }
        for name, detail in last.items()
        for version in [detail.get("version")]
    ]


def _number(value: object) -> int | float | None:
    return value if isinstance(value, (int, float)) else None
