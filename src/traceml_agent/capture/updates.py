"""Sees parameter updates that no optimizer hook reports: manual, compiled, or third-party ones."""

import sys
import weakref
from typing import Any

UNKNOWN_VERSION = -1


class UpdateProbe:
    """Watches the version counter of one parameter, without keeping the parameter alive.

    `version` is set to UNKNOWN_VERSION when an optimizer hook reported an update: the counter
    then says nothing new.
    """

    __slots__ = ("_parameter", "_works", "version")

    def __init__(self) -> None:
        self._parameter: weakref.ref[Any] | None = None
        self.version = UNKNOWN_VERSION
        self._works = False

    def wants_parameter(self) -> bool:
        """Whether there is nothing to watch yet."""
        return self._parameter is None

    def watch(self, module: Any) -> None:
        """Watches the first trainable parameter of a module."""
        for parameter in module.parameters():
            if parameter.requires_grad:
                self.watch_parameter(parameter)
                return

    def watch_parameter(self, parameter: Any) -> None:
        """Watches this parameter."""
        self._parameter = weakref.ref(parameter)
        self.version = parameter._version

    def version_moved(self) -> bool:
        """Whether the watched parameter was written since the last call."""
        parameter = self._parameter() if self._parameter is not None else None
        if parameter is None:
            return False
        before, self.version = self.version, parameter._version
        return before not in (UNKNOWN_VERSION, self.version)

    def saw_update(self, optimizer_was_called: bool) -> bool:
        """Whether parameters changed since the last call, as far as can be told.

        `p.data` leaves no version: then every backward pass is taken for an update, as long as
        the program has built no optimizer.
        """
        parameter = self._parameter() if self._parameter is not None else None
        if parameter is not None:
            before, self.version = self.version, parameter._version
            if before not in (UNKNOWN_VERSION, self.version):
                self._works = True
                return True
            if before == UNKNOWN_VERSION or self._works:
                return False
        return not optimizer_was_called and not any_optimizer_built()


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
