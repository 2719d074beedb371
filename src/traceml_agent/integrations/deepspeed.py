"""DeepSpeed: what its engine does around backward and the optimizer, and in how many pieces.

ZeRO 3 steps its optimizer once for each group of parameters, and all stages reduce gradients after
the backward pass of torch has returned: by the calls of torch alone the first would be several
steps, and the second nobody's time.
"""

from _thread import get_ident
from typing import Any

from traceml_agent.capture.framework import Framework, Method, in_phase, patch, status_of
from traceml_agent.capture.open_step import NONE
from traceml_agent.capture.patches.disguise import hide_frame
from traceml_agent.capture.session import SESSION
from traceml_agent.schema.phases import CHECKPOINT

NAME = "deepspeed"
_PATCHED: list[Any] = []


def install(module: Any) -> str:
    """Patches the engine of `deepspeed.runtime.engine`, once."""
    engine = module.DeepSpeedEngine
    if any(known is engine for known in _PATCHED):
        return "active"
    framework = Framework(NAME)
    call = "DeepSpeedEngine.save_checkpoint"
    missing = patch(engine, "backward", _backward)
    missing += patch(engine, "_take_model_step", _update)
    missing += patch(
        engine, "save_checkpoint", in_phase, CHECKPOINT, framework, "checkpoints", call
    )
    _PATCHED.append(engine)
    return status_of(missing)


def _backward(original: Method) -> Method:
    """The backward pass with the reduction of gradients that follows it."""
    tracker, gate = SESSION.tracker, SESSION.gates["backward"]

    def backward(*args: Any, **kwargs: Any) -> Any:
        mine = get_ident() == tracker.owner or SESSION.adopt_thread()
        if gate.shut or tracker.phase != NONE or not mine:
            return original(*args, **kwargs)
        previous = tracker.begin_backward()
        try:
            result = original(*args, **kwargs)
        except BaseException as error:
            tracker.end_backward(previous)
            hide_frame(error)
            raise
        tracker.end_backward(previous)
        return result

    return backward


def _update(original: Method) -> Method:
    """One update, in however many steps of torch's optimizer; none if gradients overflowed."""
    tracker, gate = SESSION.tracker, SESSION.gates["optimizer"]

    def _take_model_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        mine = get_ident() == tracker.owner or SESSION.adopt_thread()
        if gate.shut or not mine or not tracker.begin_scaler_update(id(self)):
            return original(self, *args, **kwargs)
        try:
            result = original(self, *args, **kwargs)
        except BaseException as error:
            tracker.end_scaler_update(False)
            hide_frame(error)
            raise
        tracker.end_scaler_update(getattr(self, "_step_applied", True) is not False)
        return result

    return _take_model_step
