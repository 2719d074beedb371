"""Notes that a job of several ranks begins: from then on a first step is waited for."""

import sys
from typing import Any

from traceml_agent.capture.patches.disguise import hide_frame, like
from traceml_agent.capture.samplers.first_step import expect_first_step
from traceml_agent.capture.session import SESSION
from traceml_agent.guard import guard
from traceml_agent.identity import Group

NAME = "init_process_group"
_PLACES = (
    "torch.distributed",
    "torch.distributed.distributed_c10d",
    "torch.distributed.device_mesh",
)


def install(torch: Any) -> str:
    """Patches `torch.distributed.init_process_group` wherever torch itself has it by name."""
    original = getattr(sys.modules.get(_PLACES[1]), NAME, None)
    if original is None:
        return "not in: this torch has no torch.distributed"
    patched = _patched(original)
    for module in map(sys.modules.get, _PLACES):
        if getattr(module, NAME, None) is original:
            setattr(module, NAME, patched)
    return "active"


def _patched(original: Any) -> Any:
    def init_process_group(*args: Any, **kwargs: Any) -> Any:
        with guard("process group"):
            SESSION.group = _group_of(kwargs)
            if "fake" not in (args[:1] or (kwargs.get("backend"),)):  # no ranks, and no threads
                expect_first_step(SESSION)
        try:
            return original(*args, **kwargs)
        except BaseException as error:
            hide_frame(error)
            raise

    return like(init_process_group, original)


def _group_of(arguments: dict[str, Any]) -> Group | None:
    """The rank where it is given to the call alone; torch tells it only after the call."""
    rank, size = arguments.get("rank", -1), arguments.get("world_size", -1)
    if isinstance(rank, int) and isinstance(size, int) and 0 <= rank < size:
        return Group(rank, size)
    return None
