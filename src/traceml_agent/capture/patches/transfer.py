"""Times `Tensor.to`, `.cuda` and `.cpu` where they cross devices: the phase h2d."""

from _thread import get_ident
from collections.abc import Callable
from typing import Any

from traceml_agent.capture.patches.disguise import compiling_test, hide_frame, like
from traceml_agent.capture.session import SESSION
from traceml_agent.schema.phases import H2D


def install(torch: Any) -> str:
    """Patches the three methods of `torch.Tensor`; copies of one device pass through."""
    tensor_class = torch.Tensor
    is_compiling = compiling_test(torch)
    device_type, dtype_type = torch.device, torch.dtype

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

    def patch(name: str, target: Callable[[tuple[Any, ...], dict[str, Any]], str | None]) -> None:
        setattr(tensor_class, name, _wrapper(getattr(tensor_class, name), target, is_compiling))

    patch("to", target_of_to)
    patch("cuda", lambda args, kwargs: "cuda")
    patch("cpu", lambda args, kwargs: "cpu")
    return "active"


def _wrapper(original: Any, target_of: Any, is_compiling: Callable[[], bool]) -> Any:
    tracker, gate = SESSION.tracker, SESSION.gates["transfer"]

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
