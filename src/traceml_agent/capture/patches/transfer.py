"""Times `Tensor.to`, `.cuda` and `.cpu` where they cross devices: the phase h2d."""

from _thread import get_ident
from collections.abc import Callable
from typing import Any

from traceml_agent.capture.patches.disguise import compiling_test, hide_frame, like
from traceml_agent.capture.session import SESSION
from traceml_agent.guard import Gate
from traceml_agent.schema.phases import H2D


def install(torch: Any) -> str:
    """Patches the three methods of `torch.Tensor`; copies of one device pass through."""
    tensor_class = torch.Tensor
    is_compiling, gate = compiling_test(torch), SESSION.gates["transfer"]
    for name, target in targets(torch).items():
        original = getattr(tensor_class, name)
        setattr(tensor_class, name, timed_copy(original, target, is_compiling, gate))
    return "active"


Target = Callable[[tuple[Any, ...], dict[str, Any]], str | None]
"""The type of the device that a call with these arguments copies to; None: it names none."""


def targets(torch: Any) -> dict[str, Target]:
    """Of each method that copies between devices."""
    tensor_class, device_type, dtype_type = torch.Tensor, torch.device, torch.dtype

    def target_of_to(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        target = args[0] if args else kwargs.get("device", kwargs.get("other"))
        if target is None or isinstance(target, dtype_type):
            return None
        if isinstance(target, str):
            return target.partition(":")[0]
        if isinstance(target, device_type):
            return str(target.type)
        if isinstance(target, tensor_class):
            return str(target.device.type)
        return "cuda" if isinstance(target, int) else None

    return {
        "to": target_of_to,
        "cuda": lambda args, kwargs: "cuda",
        "cpu": lambda args, kwargs: "cpu",
    }


def timed_copy(
    original: Any, target_of: Target, is_compiling: Callable[[], bool], gate: Gate
) -> Any:
    """The method, as the phase h2d where it crosses devices, until the gate is shut."""
    tracker = SESSION.tracker

    def copy(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_compiling() or gate.shut or tracker.phase >= 0 or get_ident() != tracker.owner:
            return original(self, *args, **kwargs)
        target = target_of(args, kwargs)
        if target is None or target == self.device.type:
            return original(self, *args, **kwargs)
        previous = tracker.enter(H2D)
        try:
            result = original(self, *args, **kwargs)
        except BaseException as error:
            tracker.end_transfer(previous, target != "cpu")
            hide_frame(error)
            raise
        tracker.end_transfer(previous, target != "cpu")
        return result

    return like(copy, original)
