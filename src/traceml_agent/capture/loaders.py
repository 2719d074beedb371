"""LoaderWatch: the DataLoaders of the training process, and what their workers wrote so far.

The training thread appends one tuple a batch; everything else happens in the agent's thread, when
it takes what there is into the spool. No strong reference to a loader or an iterator is kept: the
last one to go may have to end its workers, and that must happen where the program lets it go.
"""

import time
import weakref
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from traceml_agent.capture.board import GROWN, Board
from traceml_agent.capture.loader_log import LoaderLog
from traceml_agent.guard import guard
from traceml_agent.schema.phases import EVAL, INPUT_WAIT

if TYPE_CHECKING:
    from traceml_agent.schema.records import Record

MOST_LOADERS = 32
"""Told apart in one process. Chosen: a program with more makes them in a loop."""
SAME_DATASET = 8
"""So many loaders are told apart by their dataset too, further ones only while they live."""
ASKS_KEPT = 4096
"""Batches between two drains. Chosen: twice those of a loop of 250 us."""
ENDED_KEPT = 64
"""Iterators that ended between two drains; where none comes, no memory of more is kept."""

Ask = tuple[int, int, int, int]
"""Epoch, number of the batch in it (-1: unknown), when it was asked for and when it came."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a loader is. Two of the same facts that do not live together count as one."""

    dataset: str
    identity: int  # of the dataset
    iterable: bool
    workers: int
    batch_size: int | None
    prefetch: int | None
    persistent: bool
    pinned: bool
    in_order: bool
    context: str | None
    sampler: str


class Iteration:
    """One iterator of a loader. Plain slots: `asks` is appended to in the training thread."""

    __slots__ = (
        "asks", "board", "collate_ns", "ended", "ends", "epoch", "has_workers", "key", "log",
        "reference", "seen", "starts_ns", "status", "times_collate", "tokens",
    )  # fmt: skip

    def __init__(self, log: LoaderLog, key: int, has_workers: bool) -> None:
        self.log = log
        self.key = key  # of the tracker
        self.has_workers = has_workers
        self.board: Board | None = None
        self.status = "active"
        self.asks: deque[Ask] = deque(maxlen=ASKS_KEPT)
        self.tokens: deque[int | None] = deque(maxlen=ASKS_KEPT)  # of one batch of sixteen
        self.epoch = 0
        self.starts_ns: deque[int] = deque(maxlen=ASKS_KEPT)  # of each epoch
        self.collate_ns = 0  # without workers
        self.times_collate = False
        self.ends: deque[tuple[int, int]] = deque(maxlen=ASKS_KEPT)  # of passes: epoch and when
        self.ended = False
        self.reference: Any = None
        self.seen: Any = None  # of the log


class LoaderWatch:
    """All loaders of this process."""

    def __init__(self) -> None:
        self.live: dict[int, Iteration] = {}  # by id of the iterator
        self.is_last = False  # the process leaves: nothing is held back
        self._ended: deque[Iteration] = deque(maxlen=ENDED_KEPT)
        self._logs: list[LoaderLog] = []
        self._of_loader: dict[int, tuple[Any, LoaderLog]] = {}

    # The training thread

    def log_of(self, loader: Any, facts: Facts) -> LoaderLog | None:
        """The log of a loader; None for the loaders beyond MOST_LOADERS."""
        known = self._of_loader.get(id(loader))
        if known is not None and known[1].facts == facts:
            return known[1]
        log = self._free_log(facts)
        if log is None:
            return None
        number = id(loader)
        reference = weakref.ref(loader, lambda _: self._of_loader.pop(number, None))
        self._of_loader[number] = (reference, log)
        return log

    def _free_log(self, facts: Facts) -> LoaderLog | None:
        """That of a loader that is gone, or a new one."""
        # A copy: a loader may be collected meanwhile, and takes itself out.
        taken = {id(log) for _, log in tuple(self._of_loader.values())}
        free = [log for log in self._logs if id(log) not in taken]
        for log in free:
            if log.facts == facts:
                return log
        if len(self._logs) >= SAME_DATASET:
            for log in free:  # the program makes a dataset anew as well
                if replace(log.facts, identity=0) == replace(facts, identity=0):
                    return log
        if len(self._logs) >= MOST_LOADERS:
            return None
        self._logs.append(LoaderLog(len(self._logs), facts))
        return self._logs[-1]

    def add(self, iterator: Any, iteration: Iteration) -> None:
        """An iterator is ready."""
        number = id(iterator)

        def gone(_: Any) -> None:
            found = self.live.pop(number, None)
            if found is not None:
                self._end(found)

        iteration.reference = weakref.ref(iterator, gone)
        before = self.live.get(number)
        if before is not None:
            self._end(before)
        self.live[number] = iteration

    def _end(self, iteration: Iteration) -> None:
        iteration.ended = True
        self._ended.append(iteration)

    def forget(self) -> None:
        """In a forked child: these are loaders of the parent."""
        self.live.clear()
        self._ended.clear()
        self._logs.clear()
        self._of_loader.clear()
        self.is_last = False

    # The agent's thread

    def workers_grown_bytes(self) -> int | None:
        """What the workers of the oldest iterator that lives have grown by since they began: pages
        that they share with this process are none of it. None: not known of all of them."""
        for iteration in tuple(self.live.values()):
            if iteration.board is not None:
                grown = [slot.get(GROWN) for slot in iteration.board.slots]
                return sum(grown) if min(grown, default=-1) >= 0 else None
        return None

    def take(self, roles: dict[int, int], wants_all: bool = False) -> "list[Record]":
        """What is worth writing by now. `roles` are those that the tracker found, by loader;
        `wants_all`: somebody reads it."""
        ended = [self._ended.popleft() for _ in range(len(self._ended))]
        for iteration in (*ended, *tuple(self.live.values())):
            with guard("loader workers"):
                role = {INPUT_WAIT: "train", EVAL: "eval"}.get(roles.get(iteration.key, -1))
                iteration.log.role = role or iteration.log.role
                iteration.log.take(iteration)
        now = time.perf_counter_ns()
        records: list[Record] = []
        all_passes = wants_all or self.is_last or any(log.passes.began for log in self._logs)
        for log in self._logs:
            records += log.records(now, is_last=self.is_last, all_passes=all_passes)
        return records
