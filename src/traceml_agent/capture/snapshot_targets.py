"""What of a parameter can be looked at, and what it is called."""

from collections.abc import Iterator
from typing import Any

from traceml_agent.guard import or_none

MOST_LOOKED = 1 << 22
"""Elements of one tensor: 16 MiB of float32. Of a larger one, BLOCKS blocks are looked at."""
BLOCKS = 64
ALIGNED = 64
"""Bytes between the beginnings of two tensors in a buffer."""

_TYPES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
_DEVICES = ("cpu", "cuda")
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of names that torch's wrappers add."""
MOST_WRAPPERS = 8
_PARALLEL = ("DistributedDataParallel", "DataParallel")


class Target:
    """A parameter of a snapshot. Plain slots: made by the hundred.

    It is known by its id, and looked up again when it is copied: a reference would keep a model
    alive, and a weak one is seen by `torch.utils.swap_tensors`, which refuses such tensors.
    """

    __slots__ = (
        "device", "dtype", "elements", "identity", "is_shard", "looked", "name", "order", "room",
        "shape", "size",
    )  # fmt: skip

    def __init__(self, parameter: Any, tensor: Any, name: str, order: int) -> None:
        self.identity = id(parameter)
        self.name = name
        self.order = order
        self.is_shard = tensor is not parameter
        self.dtype, self.device = tensor.dtype, tensor.device
        self.shape = list(tensor.shape)
        self.elements = tensor.numel()
        self.looked = min(self.elements, MOST_LOOKED)
        self.size = self.looked * tensor.element_size()  # bytes
        # Of a half, the gradient may be of float32.
        self.room = self.size + max(self.size, self.looked * 4) + 2 * ALIGNED


def of_optimizer(optimizer: Any) -> Iterator[tuple[str, Any]]:
    """The parameters of an optimizer, and names for those of which no model is known."""
    kind = type(optimizer).__name__
    for number, group in enumerate(optimizer.param_groups):
        names = group.get("param_names") or ()
        for index, parameter in enumerate(group["params"]):
            known = names[index] if index < len(names) else None
            yield (_plain(known) if known else f"{kind}.{number}.{index}"), parameter


def local_part(parameter: Any) -> Any:
    """What of a parameter lies here: the shard of a DTensor, else itself."""
    return parameter._local_tensor if type(parameter).__name__ == "DTensor" else parameter


def reason_against(torch: Any, parameter: Any, tensor: Any) -> str | None:
    """Why a parameter is left out; None if it is not."""
    if not parameter.requires_grad:
        return "frozen"
    if not is_of_torch(torch, tensor):
        return "a type of its own"
    if tensor.device.type not in _DEVICES:
        return f"on {tensor.device.type}"
    if not is_plain(torch, tensor):
        return "not dense floating-point"
    return None if tensor.numel() else "empty"


def is_of_torch(torch: Any, tensor: Any) -> bool:
    """Whether it is no subclass, whose memory may be anything."""
    return type(tensor) in (torch.Tensor, torch.nn.Parameter)


def is_plain(torch: Any, tensor: Any) -> bool:
    """Whether the memory of a tensor is its elements, each once, and these are such numbers."""
    if tensor.layout is not torch.strided or str(tensor.dtype).removeprefix("torch.") not in _TYPES:
        return False
    # Memory that was freed for a while (offloading) keeps shapes and strides.
    end = (tensor.storage_offset() + tensor.numel()) * tensor.element_size()
    if tensor.untyped_storage().nbytes() < end:
        return False
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


@or_none  # attributes of a model may be anything
def named_parameters(torch: Any, root: Any) -> list[tuple[str, Any]]:
    """The parameters of a model, each once, by the names that it gives them."""
    module = torch.nn.Module
    return [(_plain(name), p) for name, p in module.named_parameters(unwrapped(root))]


def unwrapped(root: Any) -> Any:
    """The model inside what makes it parallel or compiled."""
    for _ in range(MOST_WRAPPERS):
        kind = type(root).__name__
        inner = "_orig_mod" if kind == "OptimizedModule" else "module" if kind in _PARALLEL else ""
        within = vars(root).get("_modules", {}).get(inner)
        if within is None:
            break
        root = within
    return root


def _plain(name: str) -> str:
    return ".".join(part for part in str(name).split(".") if part not in _WRAPPERS)
