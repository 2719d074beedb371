"""Epochs: which iteration of a loader the training is in, and how many steps are left of it.

An epoch is an iteration of a DataLoader in which optimizers stepped. It ends when the loader is
exhausted, or is iterated over again; what is between is told from its length and from the epoch
before. All methods are called in the training thread.
"""

from typing import Any

from traceml_agent.guard import or_none

MOST_LOOPS = 32
"""Iterations remembered. Chosen: a program with more makes loaders in a loop."""


class Loop:
    """One iteration of a loader."""

    __slots__ = ("batches", "length", "loader", "missed", "steps", "steps_before")

    def __init__(
        self, loader: int, length: int | None, steps_before: int | None, missed: int
    ) -> None:
        self.loader = loader
        self.length = length  # batches; None where the loader does not know
        self.steps_before = steps_before  # of the epoch before, of this loader
        self.missed = missed  # batches before the first one that was seen here
        self.batches = missed
        self.steps = 0

    def steps_left(self) -> int | None:
        """Steps that are still to come; None where nothing tells."""
        if self.steps_before is not None:
            return max(0, self.steps_before - self.steps)
        seen = self.batches - self.missed
        if self.length is None or not seen:
            return None
        return max(0, self.length - self.batches) * self.steps // seen


class Epochs:
    """The epochs of this process so far."""

    def __init__(self) -> None:
        self.ended = 0
        self.loop: Loop | None = None  # that gave the last batch
        self._loops: dict[int, Loop] = {}  # by id of the iterator
        self._steps: dict[int, int] = {}  # by loader: of its last epoch
        self._last_steps: int | None = None  # of the last epoch
        self.steps_since = 0  # the last epoch ended

    def stepped(self) -> None:
        """An update was made, the first one of its step."""
        self.steps_since += 1
        if self.loop is not None:
            self.loop.steps += 1

    def fetched(self, iterator: Any, loader: int) -> bool:
        """A batch came; whether that tells that an epoch has ended before.

        `loader` stays the same where the program makes its loader anew for each epoch.
        """
        number = iterator._num_yielded
        loop = self._loops.get(id(iterator))
        is_new_epoch = False
        if loop is None or number <= loop.batches:
            is_new_epoch = self._begin(iterator, loader)
            loop = self._loops[id(iterator)]
        loop.batches = number
        self.loop = loop
        return is_new_epoch

    def exhausted(self, iterator: Any) -> bool:
        """A loader has no more batches; whether that ends an epoch."""
        loop = self._loops.pop(id(iterator), None)
        if loop is None:
            return False
        if self.loop is loop:
            self.loop = None
        return self._ends(loop)

    def _begin(self, iterator: Any, loader: int) -> bool:
        left = [key for key, loop in self._loops.items() if loop.loader == loader]
        ended = False
        for key in left:  # not exhausted, but left
            ended = self._ends(self._loops.pop(key)) or ended
        while len(self._loops) >= MOST_LOOPS:
            del self._loops[next(iter(self._loops))]
        missed = iterator._num_yielded - 1
        length = _length(iterator)
        before = self._steps.get(loader, self._last_steps if length is None else None)
        loop = Loop(loader, length, before, missed)
        self._loops[id(iterator)] = loop
        return ended

    def _ends(self, loop: Loop) -> bool:
        if not loop.steps:
            return False
        if len(self._steps) >= MOST_LOOPS:
            self._steps.clear()
        if not loop.missed:
            self._steps[loop.loader] = self._last_steps = loop.steps
        if not self.steps_since:  # one of several loaders: the epoch ended with the first
            return False
        self.steps_since = 0
        self.ended += 1
        return True


@or_none
def _length(iterator: Any) -> int | None:
    return len(iterator)
