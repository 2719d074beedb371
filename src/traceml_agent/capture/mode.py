"""Request: what a program asked for by `init`, or the automatic mode of one that did not.

Stdlib only, so that a call in a process without the agent costs nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

AUTO, MANUAL, SELECTIVE = MODES = ("auto", "manual", "selective")
STEP_PATCHES = ("dataloader", "transfer", "forward", "backward", "optimizer")
"""Those that time the phases of a step; `wrap_...` stands in for each one that is left out."""

NO_SPOOL = "TRACEML_OUTPUT names no spool"
"""Why nothing is recorded."""
NESTING_LIMIT = 8
"""Containers of tensors within one another. Chosen: no batch is deeper, and a cycle ends here."""


@dataclass(frozen=True, slots=True)
class Request:
    """What `init` was called with."""

    mode: str = AUTO
    automatic: frozenset[str] = frozenset(STEP_PATCHES)
    settings: Mapping[str, Any] = field(default_factory=dict)  # of Config, parsed

    @property
    def reason(self) -> str:
        """The status of a patch that it leaves out."""
        return f"left out by init(mode={self.mode!r})"

    def leaves_out(self, patch: str) -> bool:
        """Whether a program that asked so times this part of a step by hand, or not at all."""
        return patch in STEP_PATCHES and patch not in self.automatic


_ASKED: list[Request] = []


def asked() -> Request:
    """The request of this program."""
    return _ASKED[0] if _ASKED else Request()


def was_asked() -> bool:
    """Whether the program called `init`."""
    return bool(_ASKED)


def ask(request: Request) -> None:
    """Keeps the request, for the patches and settings that are still to come."""
    _ASKED[:] = [request]
