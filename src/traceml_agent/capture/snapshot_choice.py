"""Which parameters a snapshot is about, and how they are called."""

import weakref
from typing import TYPE_CHECKING, Any

from traceml_agent.capture.snapshot_targets import (
    Target,
    local_part,
    named_parameters,
    of_optimizer,
    reason_against,
    unwrapped,
)

if TYPE_CHECKING:
    from traceml_agent.capture.session import Session

MOST_TENSORS = 256
"""Of a snapshot, the largest ones. Chosen: all of a model of some 20 blocks; 130 KB a record."""
MOST_ROOTS = 64
"""Modules remembered. Chosen: a program with more makes them in a loop, and keeps none."""


class Root:
    """A model that was called from outside, or named by hand. It is not kept alive."""

    __slots__ = ("is_watched", "prefix", "reference")

    def __init__(self, module: Any) -> None:
        self.reference = weakref.ref(module)
        self.prefix: str | None = None  # before its names, once it has given some
        self.is_watched = False


class Choice:
    """The models and optimizers of the program."""

    def __init__(self, session: "Session", everything: bool) -> None:
        self.size = 0  # bytes that a snapshot copies, about
        self._session = session
        self._torch = session.torch
        self._everything = everything  # else the models that were named by hand
        self._roots: dict[int, Root] = {}
        self._optimizers: dict[int, weakref.ref[Any]] = {}

    def add_root(self, module: Any, is_watched: bool = False) -> None:
        """A model gives names, and is itself asked for if it `is_watched`."""
        root = self._roots.get(id(module))
        if root is None or root.reference() is not module:
            if len(self._roots) >= MOST_ROOTS:
                live = [(k, r) for k, r in self._roots.items() if r.reference() is not None]
                self._roots = dict(live)
            if len(self._roots) >= MOST_ROOTS and not is_watched:
                return
            root = self._roots[id(module)] = Root(module)
        root.is_watched = root.is_watched or is_watched

    def add_optimizer(self, optimizer: Any) -> list[Target] | None:
        """What a new optimizer writes to; None for one that is known."""
        known = self._optimizers.get(id(optimizer))
        if known is not None and known() is optimizer:
            return None
        self._optimizers[id(optimizer)] = weakref.ref(optimizer)
        torch, found = self._torch, []
        for _, parameter in of_optimizer(optimizer):
            tensor = local_part(parameter)
            if reason_against(torch, parameter, tensor) is None:
                found.append(Target(parameter, tensor, "", 0))
        self.size += sum(target.room for target in found)
        return found

    def parameters(self, key: int) -> dict[int, Any]:
        """By id: those of an optimizer, or for 0 those of the models that were named by hand."""
        if not key:
            return {id(p): p for p in self._watched()}
        reference = self._optimizers.get(key)
        optimizer = None if reference is None else reference()
        return {} if optimizer is None else {id(p): p for _, p in of_optimizer(optimizer)}

    def targets(self, left_out: dict[str, int]) -> list[tuple[int, Target]]:
        """The parameters with the ids of their optimizers (0: none), the largest ones first.

        Those that are left out are counted by reason.
        """
        rows: list[tuple[int, str | None, Any]] = []
        for key, reference in tuple(self._optimizers.items()):
            optimizer = reference()
            if optimizer is None:
                del self._optimizers[key]
            else:
                rows += [(key, name, p) for name, p in of_optimizer(optimizer)]
        watched = self._watched()
        rows += [(0, None, p) for p in watched]
        if not self._everything:
            wanted = {id(p) for p in watched}
            rows = [row for row in rows if id(row[2]) in wanted]
        names = self._names({id(p) for _, _, p in rows})
        found: list[tuple[int, Target]] = []
        seen: set[int] = set()
        for key, name, parameter in rows:
            if id(parameter) in seen:  # tied, or in an optimizer and a model
                continue
            seen.add(id(parameter))
            tensor = local_part(parameter)
            if tensor is parameter and self._is_replica():
                continue
            reason = reason_against(self._torch, parameter, tensor)
            if reason is not None:
                left_out[reason] = left_out.get(reason, 0) + 1
                continue
            full = names.get(id(parameter)) or name or ""
            found.append((key, Target(parameter, tensor, full, len(found))))
        found.sort(key=lambda pair: (-pair[1].elements, pair[1].order))
        if len(found) > MOST_TENSORS:
            left_out[f"beyond the {MOST_TENSORS} largest"] = len(found) - MOST_TENSORS
        return found[:MOST_TENSORS]

    def _watched(self) -> list[Any]:
        models = [root.reference() for root in self._roots.values() if root.is_watched]
        live = [model for model in models if model is not None]
        return [p for model in live for _, p in named_parameters(self._torch, model) or ()]

    def _names(self, wanted: set[int]) -> dict[int, str]:
        """By id of the parameter: as the model calls it.

        The largest model names first. With several models, the type of a model stands before its
        names; once it does, or does not, it stays so.
        """
        found = []
        for root in self._roots.values():
            model = root.reference()
            if model is not None:
                named = named_parameters(self._torch, model) or []
                kind = type(unwrapped(model)).__name__.removeprefix("FSDP")  # of fully_shard
                found.append((root, kind, named))
        found.sort(key=lambda item: (-len(item[2]), -sum(p.numel() for _, p in item[2])))
        names: dict[int, str] = {}
        shares: list[tuple[Root, str, list[tuple[str, int]]]] = []
        taken: set[int] = set()
        for root, kind, named in found:
            free = wanted - taken
            share = [(name, id(p)) for name, p in named if id(p) in free]
            taken.update(number for _, number in share)
            if share:
                shares.append((root, kind, share))
        prefixes = {root.prefix for root in self._roots.values() if root.prefix is not None}
        for root, kind, share in shares:
            if root.prefix is None:
                root.prefix = "" if len(shares) == 1 and not prefixes else _free(kind, prefixes)
                prefixes.add(root.prefix)
            names |= {number: root.prefix + name for name, number in share}
        return names

    def _is_replica(self) -> bool:
        """Whether rank 0 has the same: DistributedDataParallel keeps them equal."""
        recorder = self._session.recorder
        is_first = recorder is None or recorder.identity.rank == 0
        return not is_first and "ddp" in self._session.strategies


def _free(kind: str, prefixes: set[str]) -> str:
    """The type and a dot; with a number from the second model of a type on."""
    prefix, number = f"{kind}.", 1
    while prefix in prefixes:
        number += 1
        prefix = f"{kind}#{number}."
    return prefix
