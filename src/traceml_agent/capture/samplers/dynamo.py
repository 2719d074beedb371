"""DynamoWatch: why functions were compiled, and where a graph broke, as torch._dynamo counts it.

Private interfaces of torch: what a version does not have is left out.
"""

import sys
import time
from typing import TYPE_CHECKING, Any

from traceml_agent.guard import or_none
from traceml_agent.schema.records import COMPILED_EVENT, GRAPH_BREAKS_EVENT, Event

if TYPE_CHECKING:
    from traceml_agent.capture.session import Session

MOST_COMPILED = 500
"""Compilations that are told with their reason. Chosen: beyond, the reasons repeat."""
TEXT_LIMIT = 300
LOOK_NS = 1_000_000_000


class DynamoWatch:
    """Looks once a second at the list that Dynamo keeps of the last 64 compilations."""

    def __init__(self, session: "Session") -> None:
        self._session = session
        self._seen: set[str] = set()
        self._breaks = 0
        self._look_at = 0

    def take(self) -> list[Event]:
        """What is new; nothing is imported, and nothing is asked before the first compilation."""
        now = time.perf_counter_ns()
        utils: Any = sys.modules.get("torch._dynamo.utils")
        if utils is None or not self._session.compiled or now < self._look_at:
            return []
        self._look_at = now + LOOK_NS
        step = self._session.tracker.step + 1
        return [*self._compiled(utils, now, step), *self._graph_breaks(utils, now, step)]

    def hurry(self) -> None:
        """The process ends: the next look is the last one."""
        self._look_at = 0

    def _compiled(self, utils: Any, now: int, step: int) -> list[Event]:
        events = []
        for metrics in _metrics(utils) or ():
            compile_id = str(getattr(metrics, "compile_id", "") or "")
            if not compile_id or compile_id in self._seen or len(self._seen) >= MOST_COMPILED:
                continue
            self._seen.add(compile_id)
            file, line = getattr(metrics, "co_filename", None), metrics.co_firstlineno
            detail: dict[str, str | int | float | None] = {
                "id": compile_id[:TEXT_LIMIT],
                "function": _text(getattr(metrics, "co_name", None)),
                "at": _text(f"{file}:{line}") if file and line else None,
                "reason": _text(getattr(metrics, "recompile_reason", None)),
                "failed": _text(getattr(metrics, "fail_type", None)),
            }
            for name in [name for name, value in detail.items() if value is None]:
                del detail[name]
            events.append(Event(COMPILED_EVENT, now, None, step, detail))
        return events

    def _graph_breaks(self, utils: Any, now: int, step: int) -> list[Event]:
        counts = _graph_break_counts(utils)
        total = sum(counts.values()) if counts else 0
        if not counts or total == self._breaks:
            return []
        self._breaks = total
        reason = max(counts, key=lambda name: counts[name])
        detail: dict[str, str | int | float | None] = {
            "count": total,
            "reasons": len(counts),
            "reason": _text(str(reason)),
        }
        return [Event(GRAPH_BREAKS_EVENT, now, None, step, detail)]


@or_none
def _metrics(utils: Any) -> list[Any]:
    return list(utils.get_compilation_metrics())


@or_none
def _graph_break_counts(utils: Any) -> dict[Any, int]:
    found = utils.counters.get("graph_break")  # a defaultdict: asked by name it would grow
    return dict(found) if found else {}


def _text(value: Any) -> str | None:
    """One line, less the secrets."""
    if value is None:
        return None
    from traceml_agent.redact import own_secrets, printable, redact

    return printable(" ".join(redact(str(value), own_secrets()).split()))[:TEXT_LIMIT]
