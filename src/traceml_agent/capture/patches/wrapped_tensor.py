"""Tensors whose backward, or whose copy to a device, is timed because the program wrapped them.

They are tensors of a class below `torch.Tensor` that adds nothing else: no operation gives another
one of it, and a pickle or a copy is one of a plain tensor.
"""

import copy
from _thread import get_ident
from collections.abc import Callable
from functools import partial
from typing import Any

from traceml_agent.capture.mode import NESTING_LIMIT
from traceml_agent.capture.open_step import NONE
from traceml_agent.capture.patches.backward import timed_backward
from traceml_agent.capture.patches.disguise import compiling_test, hide_frame, like
from traceml_agent.capture.patches.flops import counted, counting
from traceml_agent.capture.patches.transfer import Target, targets, timed_copy
from traceml_agent.capture.say import say_once
from traceml_agent.capture.session import SESSION
from traceml_agent.capture.stand_in import StandIn
from traceml_agent.schema.phases import H2D

_MADE: dict[str, Any] = {}


def wrap_loss(loss: Any) -> Any:
    """The loss, with its `backward` timed: the same tensor, or what stands for another object."""
    SESSION.note_wrapped("backward")
    torch = SESSION.torch
    if type(loss) is torch.Tensor:
        # In place: a view were one node more in the graph, and an attribute a cycle that keeps it.
        loss.__class__ = _loss_class(torch)
        return loss
    if issubclass(type(loss), torch.Tensor):
        if type(loss) is not _loss_class(torch):
            say_once(f"wrap_backward: a {type(loss).__name__} cannot be wrapped, and is not timed")
        return loss
    return WrappedLoss(loss)


def wrap_batch(batch: Any, depth: int = 0) -> Any:
    """The batch, with its copy to a device timed; containers are made anew, of the same type."""
    SESSION.note_wrapped("transfer")
    torch = SESSION.torch
    if type(batch) is torch.Tensor:
        return _of_class(_batch_class(torch), batch)
    if type(batch) in (WrappedBatch, _batch_class(torch)) or depth > NESTING_LIMIT:
        return batch
    # What stood for one would be taken for a tensor in torch's own code, and is none.
    if issubclass(type(batch), torch.Tensor):
        say_once(f"wrap_h2d: a {type(batch).__name__} cannot be wrapped, and is not timed")
        return batch
    if callable(getattr(batch, "to", None)):
        return WrappedBatch(batch)
    parts = partial(wrap_batch, depth=depth + 1)
    if type(batch) is dict:
        return {key: parts(value) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(parts, batch))
    if type(batch) in (list, tuple):
        return type(batch)(map(parts, batch))
    return batch


class WrappedLoss(StandIn):
    """A loss of a type of its own: all of it, and a `backward` that is timed."""

    def backward(self, *args: Any, **kwargs: Any) -> Any:
        original = self.__wrapped__.backward
        is_compiling, gate = compiling_test(SESSION.torch), SESSION.by_hand["backward"]
        return timed_backward(original, is_compiling, gate)(*args, **kwargs)


class WrappedBatch(StandIn):
    """A batch of a type of its own: all of it, and copies that are timed."""

    def to(self, *args: Any, **kwargs: Any) -> Any:
        return _copied(self.__wrapped__, "to", args, kwargs)

    def cuda(self, *args: Any, **kwargs: Any) -> Any:
        return _copied(self.__wrapped__, "cuda", args, kwargs)

    def cpu(self, *args: Any, **kwargs: Any) -> Any:
        return _copied(self.__wrapped__, "cpu", args, kwargs)


def _copied(batch: Any, name: str, args: Any, kwargs: Any) -> Any:
    tracker, method = SESSION.tracker, getattr(batch, name)
    target = targets(SESSION.torch)[name](args, kwargs)
    source = getattr(getattr(batch, "device", None), "type", "cpu")
    is_free = tracker.phase == NONE and not SESSION.by_hand["transfer"].shut
    if target in (None, source) or not is_free or get_ident() != tracker.owner:
        return method(*args, **kwargs)
    previous = tracker.enter(H2D)
    try:
        return method(*args, **kwargs)
    except BaseException as error:
        hide_frame(error)
        raise
    finally:
        tracker.end_transfer(previous, target != "cpu")


def _loss_class(torch: Any) -> Any:
    if "loss" not in _MADE:
        count, plain = counting(torch), torch.Tensor.backward
        inner = plain if count is None else counted(plain, count, in_forward=False)
        timed = timed_backward(inner, compiling_test(torch), SESSION.by_hand["backward"])
        _MADE["loss"] = made = _class_below(torch, {"backward": timed})

        def as_it_was(loss: Any, show: Callable[[Any], str]) -> str:
            # In place again: a view would be shown with the node that makes it.
            loss.__class__ = torch.Tensor
            try:
                return show(loss)
            finally:
                loss.__class__ = made

        _show_as(made, as_it_was)
    return _MADE["loss"]


def _batch_class(torch: Any) -> Any:
    if "batch" not in _MADE:
        methods = {name: _copy_method(torch, name, t) for name, t in targets(torch).items()}
        _MADE["batch"] = made = _class_below(torch, methods)
        _show_as(made, lambda batch, show: show(batch._plain))
    return _MADE["batch"]


def _copy_method(torch: Any, name: str, target: Target) -> Any:
    original = getattr(torch.Tensor, name)
    is_compiling, gate = compiling_test(torch), SESSION.by_hand["transfer"]
    timed = timed_copy(original, target, is_compiling, gate)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            result = timed(self, *args, **kwargs)
        except BaseException as error:
            hide_frame(error)
            raise
        return self._plain if result is self else result

    return like(method, original)


def _of_class(kind: Any, tensor: Any) -> Any:
    wrapped = tensor.as_subclass(kind)
    wrapped._plain = tensor
    return wrapped


def _show_as(kind: Any, plainly: Callable[[Any, Callable[[Any], str]], str]) -> None:
    """Torch formats numbers, and names the class, of its own type alone."""
    kind.__repr__ = lambda self, **kwargs: plainly(self, lambda t: t.__repr__(**kwargs))
    kind.__format__ = lambda self, spec: plainly(self, lambda t: format(t, spec))


def _class_below(torch: Any, methods: dict[str, Callable[..., Any]]) -> Any:
    tensor_class = torch.Tensor

    def plain(tensor: Any) -> Any:
        return tensor.as_subclass(tensor_class)

    members = {
        "__module__": tensor_class.__module__,
        "__torch_function__": torch._C._disabled_torch_function_impl,
        "__reduce_ex__": lambda self, protocol: plain(self).__reduce_ex__(protocol),
        "__deepcopy__": lambda self, memo: copy.deepcopy(plain(self), memo),
        **methods,
    }
    return type(tensor_class)("Tensor", (tensor_class,), members)
