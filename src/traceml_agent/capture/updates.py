"""Sees parameter updates that no optimizer hook reports: manual, compiled, or third-party ones."""

import sys
import weakref
from typing import Any

UNKNOWN_VERSION = -1


class UpdateProbe:
    """Watches the version counter of one parameter, without keeping the parameter alive.

    By a weak reference to the module or the optimizer that has it: `torch.utils.swap_tensors`,
    with which modules of tensor subclasses are moved and loaded, refuses a tensor that has one.
    `version` is set to UNKNOWN_VERSION when an optimizer hook reported an update: the counter
    then says nothing new.
    """

    __slots__ = ("_name", "_number", "_owner", "_works", "version")

    def __init__(self) -> None:
        self._owner: weakref.ref[Any] | None = None
        self._name: str | None = None  # in a module; None: the first one of an optimizer
        self._number = 0  # id of the parameter whose version is known
        self.version = UNKNOWN_VERSION
        self._works = False

    def wants_parameter(self) -> bool:
        """Whether there is nothing to watch yet."""
        return self._owner is None

    def watch(self, module: Any) -> None:
        """Watches the first trainable parameter of a module."""
        found = _first_trainable(module)
        if found is not None:
            owner, self._name = found
            self._owner = weakref.ref(owner)
            self._parameter()

    def watch_optimizer(self, optimizer: Any) -> None:
        """Watches the first parameter of an optimizer."""
        self._name = None
        self._owner = weakref.ref(optimizer)
        self._parameter()

    def _parameter(self) -> Any:
        """The parameter, if it still lives; another one in its place has not moved."""
        owner = self._owner() if self._owner is not None else None
        if owner is None:
            return None
        if self._name is None:
            groups = owner.param_groups
            parameter = groups[0]["params"][0] if groups and groups[0]["params"] else None
        else:
            parameter = owner._parameters.get(self._name)
        if parameter is not None and id(parameter) != self._number:
            if parameter.is_inference():  # made in inference_mode: it has no version
                return None
            self._number, self.version = id(parameter), parameter._version
        return parameter

    def version_moved(self) -> bool:
        """Whether the watched parameter was written since the last call."""
        parameter = self._parameter()
        if parameter is None:
            return False
        before, self.version = self.version, parameter._version
        return before not in (UNKNOWN_VERSION, self.version)

    def saw_update(self, optimizer_was_called: bool) -> bool:
        """Whether parameters changed since the last call, as far as can be told.

        `p.data` leaves no version: then every backward pass is taken for an update, as long as
        the program has built no optimizer.
        """
        parameter = self._parameter()
        if parameter is not None:
            before, self.version = self.version, parameter._version
            if before not in (UNKNOWN_VERSION, self.version):
                self._works = True
                return True
            if before == UNKNOWN_VERSION or self._works:
                return False
        return not optimizer_was_called and not any_optimizer_built()


def _first_trainable(module: Any) -> tuple[Any, str] | None:
    """The module that has the first trainable parameter, and its name there.

    By the dictionaries of the modules: a program may override `named_parameters`.
    """
    waiting, seen = [module], set()
    while waiting:
        owner = waiting.pop(0)
        if owner is None or id(owner) in seen:
            continue
        seen.add(id(owner))
        for name, parameter in owner._parameters.items():
            if parameter is not None and parameter.requires_grad and not parameter.is_inference():
                return owner, name
        waiting[:0] = owner._modules.values()
    return None


def any_optimizer_built() -> bool:
    """Whether some `torch.optim.Optimizer` was ever constructed: torch marks its `step` then."""
    module = sys.modules.get("torch.optim.optimizer")
    waiting = [module.Optimizer] if module is not None else []
    while waiting:
        cls = waiting.pop()
        if getattr(getattr(cls, "step", None), "hooked", False):
            return True
        waiting.extend(cls.__subclasses__())
    return False
