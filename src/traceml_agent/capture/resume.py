"""What a process restored before its first step: evidence of where it continues another attempt.

Looked at once, when the recording opens; nothing of this runs in the training loop.
"""

import contextlib
import os
import sys
import time
import weakref
from typing import TYPE_CHECKING, Any

from traceml_agent.guard import guard

if TYPE_CHECKING:
    from traceml_agent.schema.records import Event

SITES_LIMIT = 100
"""Lines of the program that are told apart. Chosen: no program restores itself in so many places;
one that reads its data set by `torch.load` has one line for all its files."""

Detail = dict[str, str | int | float | None]


class _Site:
    """The calls from one line: plain and mutable, since a data set may load a file an item."""

    __slots__ = ("count", "duration_ns", "start_ns", "written_ns")

    def __init__(self) -> None:
        self.start_ns = self.duration_ns = self.count = 0
        self.written_ns: int | None = None


_SITES: dict[tuple[str, str], _Site] = {}
_OPTIMIZER: "list[weakref.ref[Any]]" = []


def note_optimizer(optimizer: Any) -> None:
    """The first optimizer that the program builds; it is not kept alive."""
    if not _OPTIMIZER:
        with contextlib.suppress(TypeError):  # a class of the user's without room for one
            _OPTIMIZER.append(weakref.ref(optimizer))


def note_load(call: str, at: str, start_ns: int, source: Any) -> None:
    """Something was restored; `source` is the file, path or directory it came from."""
    site = _SITES.get((call, at))
    if site is None:
        if len(_SITES) >= SITES_LIMIT:
            return
        site = _SITES[call, at] = _Site()
    site.count += 1
    site.start_ns = start_ns
    site.duration_ns += time.perf_counter_ns() - start_ns
    written = None
    with guard("file of a load"):
        written = _written_ns(source)
    if written is not None:
        site.written_ns = max(site.written_ns or 0, written)


def restored_events(torch: Any) -> "list[Event]":
    """One event a line that restored something, and one if the optimizer came with a state."""
    from traceml_agent.schema.records import Event

    events = []
    for (call, at), site in list(_SITES.items()):
        detail: Detail = {"call": call, "at": at, "count": site.count}
        if site.written_ns is not None:
            detail["written_ns"] = site.written_ns
        events.append(Event("load", site.start_ns, site.duration_ns, 1, detail))
    state = _first_state()
    if state is not None:
        found: Detail = {"optimizer_step": _count_of(torch, state)}
        events.append(Event("resume", time.perf_counter_ns(), None, 1, found))
    return events


def optimizer_step(torch: Any) -> int | None:
    """How often the first optimizer has stepped, if it counts that itself; else None."""
    state = _first_state()
    return None if state is None else _count_of(torch, state)


def _first_state() -> dict[str, Any] | None:
    """What the optimizer keeps of its first parameter; None: nothing yet."""
    optimizer = _OPTIMIZER[0]() if _OPTIMIZER else None
    states = getattr(optimizer, "state", None)
    if not isinstance(states, dict) or not states:
        return None
    state = next(iter(states.values()))
    return state if isinstance(state, dict) and state else None


def _count_of(torch: Any, state: dict[str, Any]) -> int | None:
    step: Any = state.get("step")
    if type(step) is int or type(step) is float:
        return int(step)
    if type(step) is not torch.Tensor or step.device.type != "cpu" or step.numel() != 1:
        return None  # on a device the value would have to be waited for
    if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        return None  # a mode of the program would see the operation
    return int(step.item())


def _written_ns(source: Any) -> int | None:
    """When a file was last written, by its file system; of a directory its list of contents."""
    if not isinstance(source, (str, os.PathLike)):
        source = getattr(source, "name", None)
        if not isinstance(source, str):
            return None
    try:
        status = os.stat(source)
        if os.path.isdir(source):
            status = os.stat(os.path.join(source, ".metadata"))
    except (OSError, ValueError):
        return None
    return status.st_mtime_ns


def caller_of_patch() -> str:
    """File and line of the call that a patch of ours wraps."""
    frame = sys._getframe(2)
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
