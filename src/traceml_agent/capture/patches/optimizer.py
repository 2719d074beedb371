"""Times optimizer steps by torch's own global step hooks, and `GradScaler.step` around them."""

import sys
from _thread import get_ident
from collections.abc import Callable
from typing import Any

from traceml_agent.capture.patches.disguise import compiling_test, hide_frame, like
from traceml_agent.capture.patches.running import running_updates
from traceml_agent.capture.resume import note_optimizer
from traceml_agent.capture.session import SESSION
from traceml_agent.capture.updates import UNKNOWN_VERSION
from traceml_agent.guard import Gate, guard
from traceml_agent.schema.phases import OPTIMIZER

Hook = Callable[[Any, Any, Any], None]
"""Called with the optimizer and the arguments of its step."""


def install(torch: Any) -> str:
    """Registers the hooks for every optimizer, present and future."""
    # Not an attribute of `torch.optim` in all versions, but always an imported module.
    module = sys.modules["torch.optim.optimizer"]
    before_step, after_step = step_hooks(torch, SESSION.gates["optimizer"])
    module.register_optimizer_step_pre_hook(before_step)
    module.register_optimizer_step_post_hook(after_step)
    module.Optimizer.__init__ = _construction(module.Optimizer.__init__)
    scaler_class = getattr(torch.amp, "GradScaler", None)
    if scaler_class is None:
        return "active"
    scaler_class.step = _scaler_step(scaler_class.step)
    return "active"


def step_hooks(torch: Any, gate: Gate) -> tuple[Hook, Hook]:
    """What is to run before and after each `step`, until the gate is shut."""
    is_compiling, tracker, rest = compiling_test(torch), SESSION.tracker, SESSION.rest
    count_running = running_updates()

    def before_step(optimizer: Any, args: Any, kwargs: Any) -> None:
        if is_compiling():
            return
        if gate.shut:
            if not rest.is_on or id(optimizer) == rest.optimizer or get_ident() != tracker.owner:
                return
            rest.wake()
        if get_ident() == tracker.owner or SESSION.adopt_thread():
            if tracker.evaluating:  # a probe that is trained in it: no step of the training
                tracker.probe.version = UNKNOWN_VERSION
                return
            # A `step` that calls that of its base class, or of another optimizer.
            if tracker.updating and count_running() > 1:
                tracker.begin_inner_update()
            else:
                tracker.begin_update(id(optimizer))

    def after_step(optimizer: Any, args: Any, kwargs: Any) -> None:
        # The gate may have been shut when this step began: what is open is closed all the same.
        if is_compiling():
            return
        if gate.shut:
            if rest.is_on and id(optimizer) == rest.optimizer:
                if get_ident() == tracker.owner:
                    rest.close_step()
                elif SESSION.adopt_thread():
                    rest.wake()
                return
            if tracker.phase != OPTIMIZER:
                return
        if get_ident() == tracker.owner:
            tracker.end_update()
            if rest.is_wanted:
                rest.begin(optimizer)
            if SESSION.snapshots is not None:
                SESSION.snapshots.stepped(optimizer)

    return before_step, after_step


def _construction(original: Any) -> Any:
    """Learns of a parameter to watch, for loops whose updates no hook reports."""
    tracker = SESSION.tracker

    def __init__(self: Any, params: Any, defaults: Any) -> None:
        try:
            original(self, params, defaults)
        except BaseException as error:
            hide_frame(error)
            raise
        with guard("a new optimizer"):
            note_optimizer(self)
            if tracker.probe.wants_parameter():
                tracker.probe.watch_optimizer(self)

    return like(__init__, original)


def _scaler_step(original: Any) -> Any:
    """A skipped update is an iteration all the same: it costs time, and changes nothing."""
    tracker, gate = SESSION.tracker, SESSION.gates["optimizer"]

    def step(self: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        if gate.shut:
            return original(self, optimizer, *args, **kwargs)
        mine = get_ident() == tracker.owner or SESSION.adopt_thread()
        if not mine or not tracker.begin_scaler_update(id(optimizer)):
            return original(self, optimizer, *args, **kwargs)
        calls = tracker.optimizer_calls
        try:
            result = original(self, optimizer, *args, **kwargs)
        except BaseException as error:
            tracker.end_scaler_update(False)
            hide_frame(error)
            raise
        tracker.end_scaler_update(tracker.optimizer_calls != calls)
        return result

    return like(step, original)
