"""Optimizers whose steps are timed because the program wrapped them, by torch's own hooks."""

import types
import weakref
from contextlib import suppress
from typing import Any

from traceml_agent.capture.patches.disguise import hide_frame, like
from traceml_agent.capture.patches.optimizer import Hook, step_hooks
from traceml_agent.capture.resume import note_optimizer
from traceml_agent.capture.say import say_once
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
        try:
            timed = _timed_step(optimizer.step, before, after)
            optimizer.step = types.MethodType(timed, optimizer)
        except (AttributeError, TypeError):  # __slots__
            say_once(f"wrap_optimizer: a {type(optimizer).__name__} takes no wrapper; not timed")
            return optimizer
    with suppress(TypeError):  # no weak references: wrapping twice is the program's mistake
        _CHOSEN[number] = weakref.ref(optimizer, lambda _: _CHOSEN.pop(number, None))
    with guard("optimizer of a step"):
        note_optimizer(optimizer)
        if SESSION.tracker.probe.wants_parameter():
            SESSION.tracker.probe.watch_optimizer(optimizer)
    return optimizer


def _timed_step(bound: Any, before: Hook, after: Hook) -> Any:
    # By the object that is called: a copy of the optimizer has this method too.
    function = getattr(bound, "__func__", None)

    # A method, as schedulers of learning rates expect: they look for its `__func__`.
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        before(self, args, kwargs)
        try:
            result = bound(*args, **kwargs) if function is None else function(self, *args, **kwargs)
        except BaseException as error:
            if SESSION.tracker.phase == OPTIMIZER:
                after(self, args, kwargs)
            hide_frame(error)
            raise
        after(self, args, kwargs)
        return result

    return like(step, bound)
