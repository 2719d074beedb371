"""Optimizers whose steps are timed because the program wrapped them, by torch's own hooks."""

import types
import weakref
from typing import Any

from traceml_agent.capture.patches.disguise import hide_frame, like
from traceml_agent.capture.patches.optimizer import Hook, step_hooks
from traceml_agent.capture.resume import note_optimizer
from traceml_agent.capture.session import SESSION
from traceml_agent.guard import guard
from traceml_agent.schema.phases import OPTIMIZER

_CHOSEN: dict[int, weakref.ref[Any]] = {}


def wrap_steps(optimizer: Any) -> Any:
    """The same optimizer, with its steps timed."""
    SESSION.note_wrapped("optimizer")
    number = id(optimizer)
    if number in _CHOSEN:
        return optimizer
    before, after = step_hooks(SESSION.torch, SESSION.by_hand["optimizer"])
    try:
        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)
    except (AttributeError, TypeError):  # no optimizer of torch, or one that stands for another
        optimizer.step = types.MethodType(_timed_step(optimizer.step, before, after), optimizer)
    _CHOSEN[number] = weakref.ref(optimizer, lambda _: _CHOSEN.pop(number, None))
    with guard("optimizer of a step"):
        note_optimizer(optimizer)
        if SESSION.tracker.probe.wants_parameter():
            SESSION.tracker.probe.watch_optimizer(optimizer)
    return optimizer


def _timed_step(original: Any, before: Hook, after: Hook) -> Any:
    # A method, as schedulers of learning rates expect: they look for its `__func__`.
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        before(self, args, kwargs)
        try:
            result = original(*args, **kwargs)
        except BaseException as error:
            if SESSION.tracker.phase == OPTIMIZER:
                after(self, args, kwargs)
            hide_frame(error)
            raise
        after(self, args, kwargs)
        return result

    return like(step, original)
