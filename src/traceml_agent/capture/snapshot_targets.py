"""Which parameters a snapshot is about, and how they are called."""

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from traceml_agent.guard import or_none

MOST_TENSORS = 256
"""Of a snapshot, the largest ones. Chosen: all of a model of some 20 blocks; 70 KB a record."""
MOST_LOOKED = 1 << 22
"""Elements of one tensor: 16 MiB of float32. Of a larger one, BLOCKS blocks are looked at."""
BLOCKS = 64
ALIGNED = 64
"""Bytes between the beginnings of two tensors in a buffer."""
MOST_ROOTS = 64
"""Modules remembered. Chosen: a program with more makes them in a loop, and keeps none."""

_TYPES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
_DEVICES = ("cpu", "cuda")
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of names that torch's wrappers add."""
MOST_WRAPPERS = 8
_PARALLEL = ("DistributedDataParallel", "DataParallel")


class Target:
    """A parameter of a snapshot. Plain slots: made by the hundred."""

    __slots__ = ("device", "dtype", "elements", "is_shard", "looked", "name", "order", "reference", "room",
                 "shape", "size")  # fmt: skip

    def __init__(self, parameter: Any, tensor: Any, name: str, order: int) -> None:
        self.reference = weakref.ref(parameter)
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


class Roots:
    """The models of the program, as they were called or named by hand, and their parameters."""

    def __init__(self) -> None:
        self._roots: dict[int, weakref.ref[Any]] = {}
        self._names: dict[int, tuple[weakref.ref[Any], str]] = {}  # by id of the parameter

    def add(self, module: Any) -> None:
        """Remembers a model, not keeping it alive."""
        known = self._roots.get(id(module))
        if known is not None and known() is module:
            return
        if len(self._roots) >= MOST_ROOTS:
            self._roots = {key: ref for key, ref in self._roots.items() if ref() is not None}
        if len(self._roots) < MOST_ROOTS:
            self._roots[id(module)] = weakref.ref(module)

    def name_of(self, parameter: Any) -> str | None:
        """As its model calls it; None for the parameter of no model that is known."""
        known = self._names.get(id(parameter))
        return known[1] if known is not None and known[0]() is parameter else None

    def give_names(self, torch: Any, wanted: Iterable[Any]) -> None:
        """Names those parameters that have none. A name once given stays.

        Those of the largest model first; with several models, its type stands before each name.
        """
        nameless = {id(p) for p in wanted if self.name_of(p) is None}
        if not nameless:
            return
        self._names = {k: known for k, known in self._names.items() if known[0]() is not None}
        found = [(root, _named(torch, root) or []) for ref in tuple(self._roots.values())
                 if (root := ref()) is not None]  # fmt: skip
        found.sort(key=lambda pair: -len(pair[1]))
        shares: list[tuple[str, list[tuple[str, Any]]]] = []
        for root, named in found:
            share = [(name, p) for name, p in named if id(p) in nameless]
            nameless -= {id(p) for _, p in share}
            if share:
                shares.append((type(_unwrapped(root)).__name__, share))
        is_alone = len(shares) == 1 and not self._names
        kinds = Counter(name.split(".")[0] for _, name in self._names.values())
        seen: Counter[str] = Counter()
        taken = {name for _, name in self._names.values()}
        for kind, share in shares:
            seen[kind] += 1
            number = seen[kind] + (1 if kinds[kind] else 0)
            prefix = kind if number == 1 else f"{kind}#{number}"
            for name, parameter in share:
                full = _free(name if is_alone else f"{prefix}.{name}", taken)
                taken.add(full)
                self._names[id(parameter)] = (weakref.ref(parameter), full)


def watched(torch: Any, model: Any) -> list[Any]:
    """The parameters of a model, each once."""
    return [parameter for _, parameter in _named(torch, model) or ()]


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
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return "a type of its own"
    if tensor.device.type not in _DEVICES:
        return f"on {tensor.device.type}"
    if not is_plain(torch, tensor):
        return "not dense floating-point"
    return None if tensor.numel() else "empty"


def is_plain(torch: Any, tensor: Any) -> bool:
    """Whether the memory of a tensor is its elements, each once, and these are such numbers."""
    if tensor.layout is not torch.strided or str(tensor.dtype).removeprefix("torch.") not in _TYPES:
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
def _named(torch: Any, root: Any) -> list[tuple[str, Any]]:
    module = torch.nn.Module
    return [(_plain(name), p) for name, p in module.named_parameters(_unwrapped(root))]


def _unwrapped(root: Any) -> Any:
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


def _free(name: str, taken: set[str]) -> str:
    if name not in taken:
        return name
    number = 2
    while f"{name}#{number}" in taken:
        number += 1
    return f"{name}#{number}"
