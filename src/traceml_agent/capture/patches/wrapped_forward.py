"""Models whose calls are timed because the program wrapped them: the phases forward and eval.

The patch sits on the type, as that of the automatic mode does, and looks whether it is one of the
wrapped models: these stay as they are, so that copies, pickles and compiled code do too.
"""

import weakref
from _thread import get_ident
from typing import Any

from traceml_agent.capture.open_step import NONE
from traceml_agent.capture.patches.disguise import compiling_test, hide_frame, like
from traceml_agent.capture.patches.flops import counted, counting
from traceml_agent.capture.session import SESSION
from traceml_agent.guard import guard
from traceml_agent.schema.phases import EVAL, FORWARD, OPTIMIZER

_CHOSEN: dict[int, weakref.ref[Any]] = {}
_SHARED: list[Any] = []  # what lies on the types that have their `__call__` from `nn.Module`
_WRAPPERS: set[Any] = set()


def wrap_model(model: Any) -> Any:
    """The same model, with its calls timed."""
    SESSION.note_wrapped("forward")
    number = id(model)
    if number not in _CHOSEN:
        _CHOSEN[number] = weakref.ref(model, lambda _: _CHOSEN.pop(number, None))
        with guard("model of a step"):
            if SESSION.tracker.probe.wants_parameter():
                SESSION.tracker.probe.watch(model)
            SESSION.look_for_strategy(model)
    kind = type(model)
    if kind.__call__ not in _WRAPPERS:
        module_class = SESSION.torch.nn.Module
        if kind.__call__ is not module_class.__call__:
            wrapper = _timed_call(SESSION.torch, kind.__call__)
        elif _SHARED:
            wrapper = _SHARED[0]
        else:
            wrapper = _timed_call(SESSION.torch, kind.__call__)
            _SHARED.append(wrapper)
            # cloudpickle sends a function by reference where it finds it under its name: see
            # the patch of forward.
            module_class._wrapped_call_impl = wrapper
        _WRAPPERS.add(wrapper)
        kind.__call__ = wrapper
    return model


def _timed_call(torch: Any, plain: Any) -> Any:
    tracker, gate, chosen = SESSION.tracker, SESSION.by_hand["forward"], _CHOSEN
    is_compiling, is_grad_enabled = compiling_test(torch), torch.is_grad_enabled
    module_class = torch.nn.Module
    is_inherited = plain is module_class.__call__
    count = counting(torch)
    original = plain if count is None else counted(plain, count, in_forward=True)

    def _wrapped_call_impl(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_compiling():
            return plain(self, *args, **kwargs)
        # Torch's own tools (fx) patch `Module.__call__` for a while.
        call = plain
        if is_inherited and module_class.__call__ is not plain:
            call = module_class.__call__
        phase = tracker.phase
        if (
            gate.shut
            or (phase != NONE and phase != OPTIMIZER)
            or id(self) not in chosen
            or get_ident() != tracker.owner
        ):
            return call(self, *args, **kwargs)
        if not is_grad_enabled():
            previous = tracker.enter(EVAL)
            try:
                result = call(self, *args, **kwargs)
            except BaseException as error:
                tracker.end_eval(previous)
                hide_frame(error)
                raise
            tracker.end_eval(previous)
            return result
        if call is plain:
            call = original
        previous = tracker.enter(FORWARD)
        try:
            result = call(self, *args, **kwargs)
        except BaseException as error:
            tracker.end_forward(previous, self.training)
            hide_frame(error)
            raise
        tracker.end_forward(previous, self.training)
        return result

    return like(_wrapped_call_impl, plain)
