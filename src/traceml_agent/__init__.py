"""traceml-agent: why is this PyTorch training slow, with no edit of its source.

Importing the package imports neither torch nor anything else of the agent; the names below are
looked up when they are first used. It is imported in every process that the variables reach.
"""

from __future__ import annotations

from traceml_agent.version import __version__

TYPE_CHECKING = False  # not from typing, whose import takes 10 ms
if TYPE_CHECKING:
    from typing import Any

    from traceml_agent.api import (
        batches,
        epochs,
        final_summary,
        flush,
        mark,
        scope,
        summary,
        trace,
    )
    from traceml_agent.by_hand import (
        trace_step,
        wrap_backward,
        wrap_dataloader_fetch,
        wrap_forward,
        wrap_h2d,
        wrap_optimizer,
    )
    from traceml_agent.lifecycle import health, init, shutdown
    from traceml_agent.watching import watch

__all__ = [
    "__version__",
    "batches",
    "epochs",
    "final_summary",
    "flush",
    "health",
    "init",
    "mark",
    "scope",
    "shutdown",
    "summary",
    "trace",
    "trace_step",
    "watch",
    "wrap_backward",
    "wrap_dataloader_fetch",
    "wrap_forward",
    "wrap_h2d",
    "wrap_optimizer",
]

_LIFECYCLE = ("health", "init", "shutdown")
_BY_HAND = ("trace_step", "wrap_")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home: Any
    if name in _LIFECYCLE:
        from traceml_agent import lifecycle as home
    elif name.startswith(_BY_HAND):
        from traceml_agent import by_hand as home
    elif name == "watch":
        from traceml_agent import watching as home
    else:
        from traceml_agent import api as home
    found = globals()[name] = getattr(home, name)  # a scope may take 2 us, this look-up included
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
