"""Times `torch.save` and `torch.distributed.checkpoint.save`: the phase checkpoint.

What is restored before the first step is noted too, as evidence of where an attempt resumes.
"""

import inspect
import os
import sys
import time
from _thread import get_ident
from types import FrameType
from typing import Any

from traceml_agent.capture.open_step import NONE
from traceml_agent.capture.patches.disguise import hide_frame, like
from traceml_agent.capture.resume import caller_of_patch, note_load, optimizer_step
from traceml_agent.capture.session import SESSION
from traceml_agent.capture.user_code import user_line
from traceml_agent.guard import guard
from traceml_agent.schema.phases import CHECKPOINT

Detail = dict[str, str | int | float | None]

LOAD_STATE_DICT = "Module.load_state_dict"


def install(torch: Any) -> str:
    """Patches `torch.save` and `torch.load`, also under the names that `torch.serialization` knows,
    and `Module.load_state_dict`, through which checkpoints of any other format come in.
    """
    saved, loaded = _save(torch.save, "torch.save"), _load(torch.load, "torch.load", 0, "f")
    torch.save = torch.serialization.save = saved
    torch.load = torch.serialization.load = loaded
    module = torch.nn.Module
    module.load_state_dict = _load(module.load_state_dict, LOAD_STATE_DICT, 99, "")
    return "active"


def install_distributed(package: Any) -> str:
    """Patches `save` and `load` of that package once it has been imported."""
    name = "torch.distributed.checkpoint"
    package.save = saved = _save(package.save, f"{name}.save")
    package.load = loaded = _load(package.load, f"{name}.load", 1, "checkpoint_id")
    for module, attribute, patched in (("saver", "save", saved), ("loader", "load", loaded)):
        found = sys.modules.get(f"{name}.state_dict_{module}")
        if found is not None:
            setattr(found, attribute, patched)
    return "active"


def _save(original: Any, call_name: str) -> Any:
    tracker, gate = SESSION.tracker, SESSION.gates["checkpoint"]

    def save(*args: Any, **kwargs: Any) -> Any:
        if gate.shut or tracker.phase != NONE or get_ident() != tracker.owner:
            return original(*args, **kwargs)
        detail = detail_of(call_name, sys._getframe(1))
        previous = tracker.enter(CHECKPOINT)
        failed = 1
        try:
            result = original(*args, **kwargs)
            failed = 0
            return result
        except BaseException as error:
            hide_frame(error)
            raise
        finally:
            elapsed = tracker.leave(previous)
            if failed:
                detail["failed"] = 1
            SESSION.note_event("checkpoint", elapsed, detail)

    return _signed(like(save, original), original)


def detail_of(call_name: str, caller: FrameType) -> Detail:
    """What the event of a checkpoint says that is written now."""
    detail: Detail = {"call": call_name}
    detail["at"] = f"{os.path.basename(caller.f_code.co_filename)}:{caller.f_lineno}"
    with guard("line of a checkpoint"):
        detail["at"] = user_line(caller) or detail["at"]
    detail["steps_done"] = SESSION.tracker.steps_done()
    with guard("step of a checkpoint"):
        detail["optimizer_step"] = optimizer_step(SESSION.torch)
    return detail


def _load(original: Any, call_name: str, position: int, keyword: str) -> Any:
    """Notes the call; what it reads from stands at this position or under this keyword."""
    tracker = SESSION.tracker

    def load(*args: Any, **kwargs: Any) -> Any:
        if tracker.step or tracker.phase != NONE:  # in the loop: a data set, a reference model
            return original(*args, **kwargs)
        begun = time.perf_counter_ns()
        try:
            result = original(*args, **kwargs)
        except BaseException as error:
            hide_frame(error)
            raise
        source = args[position] if len(args) > position else kwargs.get(keyword)
        with guard("load"):
            note_load(call_name, caller_of_patch(), begun, source)
        return result

    return _signed(like(load, original), original)


def _signed(wrapper: Any, original: Any) -> Any:
    """Libraries look for `weights_only` or `assign` among the parameters before they pass them."""
    wrapper.__signature__ = inspect.signature(original)
    return wrapper
