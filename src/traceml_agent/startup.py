"""Waits for `import torch`, at the price of one finder on `sys.meta_path`. Stdlib only.

wrapt costs 60 ms at interpreter start but 5 ms once torch is there, and most processes never
import torch. So a sentinel waits; when torch is asked for it leaves, and only then wrapt's
post-import hook takes over.
"""

from __future__ import annotations

import _thread
import sys

TYPE_CHECKING = False  # not from typing: importing that costs 5 ms in every process
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

WATCHED = "torch"


def activate() -> None:
    """Arms the sentinel, or installs at once where torch is imported already."""
    module = sys.modules.get(WATCHED)
    if module is not None and not _is_initializing(module):
        _register()
        return
    if not any(type(finder) is Sentinel for finder in sys.meta_path):
        sys.meta_path.insert(0, Sentinel())


def retire() -> None:
    """Torch, when it is imported, is left alone; where it is already, that is up to the session."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder) is not Sentinel]


class Sentinel:
    """A finder that finds nothing until torch is asked for, then registers the real hook."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """None, so that the next finder is asked; for torch the spec that wrapt's hook gives."""
        if fullname != WATCHED:
            module = sys.modules.get(WATCHED)
            if module is not None and not _is_initializing(module) and self._leave():
                _register()  # torch was half imported when we came
            return None
        if not self._leave():
            return None
        _register()
        # The list changed under the loop that called us: ask the finders that stand there now.
        for finder in list(sys.meta_path):
            find = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find(fullname, path, target) if find is not None else None
            if spec is not None:
                return spec
        return None

    def _leave(self) -> bool:
        """Whether this call was the one that took the sentinel off."""
        with self._lock:
            if self not in sys.meta_path:
                return False
            sys.meta_path.remove(self)
            return True


def _is_initializing(module: object) -> bool:
    spec = getattr(module, "__spec__", None)
    return bool(getattr(spec, "_initializing", False))


def _register() -> None:
    from traceml_agent.guard import guard

    with guard("hooks"):
        from traceml_agent.capture.hooks import register_all

        register_all()
