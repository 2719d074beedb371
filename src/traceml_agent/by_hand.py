"""What a program may measure by itself: the bounds of a step, and its parts where no patch is in.

Importing this imports neither torch nor the rest of the agent. Where the agent is off each call
gives back what it was given.
"""

import os
import sys
from collections.abc import Callable, Collection
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from traceml_agent.capture.decorated import decorated
from traceml_agent.capture.mode import NESTING_LIMIT, Request, asked

if TYPE_CHECKING:
    from traceml_agent.capture.bracket import Bracket

Value = TypeVar("Value")

_SESSION = "traceml_agent.capture.session"
_STARTUP = "traceml_agent.startup"
"""Imported in every process in which the agent is on."""


def trace_step(model: Any = None) -> "Bracket | Unbracketed":
    """One training step, as a context manager or a decorator: `with trace_step(model): ...`.

    What is inside is one step exactly, whatever it holds: micro-batches, several optimizers, none.
    The bounds count before those that the agent finds, also where only some steps have them; the
    others are found as ever. The wait for the batch just before the block belongs to its step, and
    so does what lies between two blocks, as steps follow one another without a gap.

    A block that an exception leaves is a step only if parameters were updated in it; else its time
    is that of the next step. A block inside another one, inside an optimizer's step or a backward
    pass, or in a thread beside the one that trains does nothing. `model` helps to see updates where
    no optimizer of torch makes them.
    """
    if _STARTUP not in sys.modules:
        return UNBRACKETED if model is None else Unbracketed(model)
    from traceml_agent.capture.bracket import Bracket

    return Bracket(model)


def wrap_dataloader_fetch(loader: Value) -> Value:
    """The loader, or any other iterable or iterator of batches, with the wait for each timed.

    It stands for the loader in all but its exact type: `isinstance`, `len` and attributes are those
    of the loader. What is no DataLoader of torch may be wrapped in every mode.

    Raises TypeError for what cannot be iterated over, and RuntimeError for a DataLoader that is
    timed automatically.
    """
    if not any(callable(getattr(loader, name, None)) for name in ("__iter__", "__next__")):
        raise TypeError(f"wrap_dataloader_fetch: {_kind(loader)} is no loader and no iterator")
    if _is_torch_loader(loader):
        _check("wrap_dataloader_fetch", "dataloader", "patch_dataloader=False")
    if not _is_on():
        return loader
    from traceml_agent.capture.patches.wrapped_loader import wrap_loader

    wrapped: Value = wrap_loader(loader)
    return wrapped


def wrap_forward(model: Value) -> Value:
    """The same model, with its calls timed: as evaluation where gradients are off.

    Raises TypeError for what is no `torch.nn.Module`, and RuntimeError where forward passes are
    timed automatically.
    """
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(model, torch.nn.Module):
        raise TypeError(f"wrap_forward: {_kind(model)} is no torch.nn.Module")
    _check("wrap_forward", "forward", "patch_forward=False")
    if not _is_on():
        return model
    from traceml_agent.capture.patches.wrapped_forward import wrap_model

    wrapped: Value = wrap_model(model)
    return wrapped


def wrap_backward(loss: Value) -> Value:
    """The loss, with its `backward` timed: `wrap_backward(loss).backward()`.

    The same tensor; what is computed of it is not wrapped, so wrap last: a loss that is scaled,
    say, after that. Of another object with a `backward` something that stands for it.

    Raises TypeError for what has no `backward`, and RuntimeError where backward passes are timed
    automatically.
    """
    if not callable(getattr(loss, "backward", None)):
        raise TypeError(f"wrap_backward: {_kind(loss)} has no backward()")
    _check("wrap_backward", "backward", "patch_backward=False")
    if not _is_on():
        return loss
    from traceml_agent.capture.patches.wrapped_tensor import wrap_loss

    wrapped: Value = wrap_loss(loss)
    return wrapped


def wrap_optimizer(optimizer: Value) -> Value:
    """The same optimizer, with its steps timed, and seen as the updates that end a step.

    Raises TypeError for what has no `step`, and RuntimeError in automatic mode.
    """
    if not callable(getattr(optimizer, "step", None)):
        raise TypeError(f"wrap_optimizer: {_kind(optimizer)} has no step()")
    _check("wrap_optimizer", "optimizer", "any of patch_... =True")
    if not _is_on():
        return optimizer
    from traceml_agent.capture.patches.wrapped_optimizer import wrap_steps

    wrapped: Value = wrap_steps(optimizer)
    return wrapped


def wrap_h2d(batch: Value) -> Value:
    """The tensor or batch, with its copy to a device timed: `wrap_h2d(batch).to(device)`.

    A tensor that shares its memory with the one given, or a dict, list or tuple of such; of another
    object with a `to`, something that stands for it. What `to` returns is not wrapped.

    Raises TypeError for what holds nothing that has a `to`, and RuntimeError where copies are timed
    automatically.
    """
    if not _can_be_copied(batch):
        raise TypeError(f"wrap_h2d: {_kind(batch)} has no to(), and nothing in it has")
    _check("wrap_h2d", "transfer", "patch_h2d=False")
    if not _is_on():
        return batch
    from traceml_agent.capture.patches.wrapped_tensor import wrap_batch

    wrapped: Value = wrap_batch(batch)
    return wrapped


class Unbracketed:
    """A step where the agent is off: it measures nothing, and may be entered again and again."""

    __slots__ = ("_model",)

    def __init__(self, model: Any = None) -> None:
        self._model = model

    def __enter__(self) -> "Unbracketed":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """As a decorator: it may be applied before `init` is called."""
        return decorated("trace_step", function, lambda: trace_step(self._model))


UNBRACKETED = Unbracketed()


def _check(call: str, patch: str, instead: str) -> None:
    """Raises RuntimeError where the agent times this by itself, or would if it were on."""
    request = asked()
    if patch not in request.automatic or patch in _skipped(request):
        return
    from traceml_agent.lifecycle import objection

    if objection() is None:  # whoever forbids recording wants no errors of it either
        raise RuntimeError(
            f"{call}: mode={request.mode!r} times this already; leave the call out, or call "
            f"init(mode='manual') or init(mode='selective', {instead}) before"
        )


def _skipped(request: Request) -> Collection[str]:
    """What the settings leave out."""
    module = sys.modules.get(_SESSION)
    if module is not None:
        skip: Collection[str] = module.SESSION.config.skip
        return skip
    from traceml_agent.config import resolve

    return resolve(os.environ, arguments=request.settings).config.skip


def _is_on() -> bool:
    module = sys.modules.get(_SESSION) if _STARTUP in sys.modules else None
    if module is None:
        return False
    session = module.SESSION
    return session.torch is not None and not session.is_over


def _is_torch_loader(loader: Any) -> bool:
    module = sys.modules.get("torch.utils.data.dataloader")
    kinds = () if module is None else (module.DataLoader, module._BaseDataLoaderIter)
    return isinstance(loader, kinds)


def _can_be_copied(batch: Any, depth: int = 0) -> bool:
    if callable(getattr(batch, "to", None)):
        return True
    is_tuple = isinstance(batch, tuple) and (type(batch) is tuple or hasattr(batch, "_fields"))
    if not is_tuple and type(batch) not in (dict, list):
        return False
    parts: Any = batch.values() if isinstance(batch, dict) else batch
    return depth < NESTING_LIMIT and any(_can_be_copied(part, depth + 1) for part in parts)


def _kind(value: Any) -> str:
    return f"an object of type {type(value).__name__}"
