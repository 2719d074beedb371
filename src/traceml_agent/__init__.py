"""traceml-agent: why is this PyTorch training slow, with no edit of its source.

Importing the package imports neither torch nor anything else of the agent; the names below are
looked up when they are first used.
"""

from typing import TYPE_CHECKING, Any

from traceml_agent.version import __version__

if TYPE_CHECKING:
    from traceml_agent.api import (
        batches,
        epochs,
        final_summary,
        flush,
        health,
        mark,
        scope,
        summary,
        trace,
    )
    from traceml_agent.watching import watch

__all__ = [
    "__version__",
    "batches",
    "epochs",
    "final_summary",
    "flush",
    "health",
    "mark",
    "scope",
    "summary",
    "trace",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from traceml_agent import api, watching

        return getattr(watching if name == "watch" else api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
