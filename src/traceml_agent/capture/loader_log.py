"""LoaderLog: joins what the training thread asked for with what the workers of a loader made."""

from collections import deque
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from traceml_agent.capture.board import (
    BATCHES,
    COLLATE,
    CPU,
    DELAY,
    FAILURES,
    FAULTS,
    FETCH,
    IDLE,
    READ,
    SEND,
    WATCHED,
    Row,
)  # fmt: skip
from traceml_agent.capture.loader_passes import Pass, PassLog
from traceml_agent.capture.loader_singles import Single, Singles
from traceml_agent.capture.loader_stacks import StackSums

if TYPE_CHECKING:
    from traceml_agent.capture.loaders import Ask, Facts, Iteration
    from traceml_agent.schema.loaders import WorkerSums
    from traceml_agent.schema.records import Record

AHEAD_MOST = 64
"""Batches that are looked at beyond the one that is waited for. Chosen: 16 workers, 4 ahead."""
NOT_SEEN = "workers not seen: they did not find the memory of the training process"
AGAIN_NS = 60_000_000_000
"""Sums are written when they grew by a quarter, or after so long."""
MADE_KEPT = 8_192
"""Batches of an epoch that were made and not asked for, or by a thread that nobody watches."""

_SUMS = (BATCHES, FETCH, COLLATE, CPU, IDLE, FAILURES, DELAY, WATCHED, SEND, READ, FAULTS)


class _Seen:
    """How much of an iteration was taken."""

    def __init__(self, workers: int) -> None:
        self.counts = [dict.fromkeys(_SUMS, 0) for _ in range(workers)]
        self.made: dict[int, tuple[int, Row]] = {}  # by number, of the epoch in progress
        self.heap: list[tuple[int, int, Row]] = []  # the same by when it was made
        self.later: deque[tuple[int, Row]] = deque()  # of epochs that nobody asked for yet
        self.is_torn = False  # a batch of this epoch was lost
        self.epoch = 0
        self.asked_in = -1
        self.passes: dict[int, Pass] = {}  # by epoch, the last one alone
        self.collate_ns = 0


class LoaderLog:
    """Sums over all iterators of one loader; all of it belongs to the agent's thread."""

    def __init__(self, number: int, facts: "Facts") -> None:
        self.number = number
        self.facts = facts
        self.role: str | None = None
        self.status = "active"
        self.epochs = self.start_ns = self.first_wait_ns = self.restart_ns = 0
        self.batches = self.wait_ns = self.known = self.ready = self.ready_ahead = 0
        self.ready_wait_ns = self.made_wait_ns = self.behind_ns = self.transfer_ns = 0
        self.tokens = self.token_batches = 0
        self.sums: dict[int, dict[int, int | None]] = {}
        self.stacks = StackSums(number)
        self._singles = Singles(number)
        self.passes = PassLog(number)
        self._ahead = min(AHEAD_MOST, (facts.prefetch or 2) * facts.workers)
        self._asked_before = False
        self._written = (0, 0)
        self._written_ns = 0

    def take(self, iteration: "Iteration") -> None:
        """Takes what came in since the last call."""
        seen = iteration.seen
        if seen is None:
            slots = iteration.board.slots if iteration.board is not None else ()
            seen = iteration.seen = _Seen(len(slots))
        self.status = iteration.status
        ends = tuple(iteration.ends)  # before the asks: all of these passes are among them
        # The asks first: whatever was made before one of them is on the board by now.
        asks = [iteration.asks.popleft() for _ in range(len(iteration.asks))]
        self._take_facts(iteration, seen)
        if iteration.board is not None:
            self._take_board(iteration, seen)
        for ask in asks:
            self._end_passes(iteration, seen, ask[0] - 1)
            self.passes.asked(seen.passes, ask[0], *ask[2:])
            if iteration.has_workers:
                self._take_ask(ask, seen)
            else:
                self._take_own(ask)
        if ends:
            self._end_passes(iteration, seen, ends[-1][0])

    def _end_passes(self, iteration: "Iteration", seen: _Seen, last: int) -> None:
        """Takes the ends of the passes up to this one."""
        while iteration.ends and iteration.ends[0][0] <= last:
            self.passes.ended(seen.passes, *iteration.ends.popleft())

    def _take_facts(self, iteration: "Iteration", seen: _Seen) -> None:
        for start_ns in [iteration.starts_ns.popleft() for _ in range(len(iteration.starts_ns))]:
            self.start_ns += start_ns
            self.passes.started(start_ns)
            if self.epochs:
                self.restart_ns += start_ns
            self.epochs += 1
        for tokens in [iteration.tokens.popleft() for _ in range(len(iteration.tokens))]:
            if tokens is not None:
                self.tokens += tokens
                self.token_batches += 1
        collate_ns = iteration.collate_ns
        if not iteration.has_workers:
            own = self.sums.setdefault(0, dict.fromkeys(_SUMS))
            added = collate_ns - seen.collate_ns
            if iteration.times_collate:
                own[COLLATE] = (own[COLLATE] or 0) + added
        seen.collate_ns = collate_ns

    # With workers

    def _take_board(self, iteration: "Iteration", seen: _Seen) -> None:
        if iteration.board is None:
            return
        for worker, slot in enumerate(iteration.board.slots):
            counts = seen.counts[worker]
            before, last = counts[BATCHES], slot.get(BATCHES)  # once: the worker goes on
            if not last:
                continue
            rows = slot.rows(before, last)
            seen.is_torn |= len(rows) < last - before
            for row in rows:
                self._keep(worker, row, seen)
            sums = self.sums.setdefault(worker, dict.fromkeys(_SUMS))
            for name in _SUMS:
                value = last if name == BATCHES else slot.get(name)
                if value >= 0:
                    sums[name] = (sums[name] or 0) + value - counts[name]
                    counts[name] = value
            self.stacks.take((id(iteration), worker), slot, is_last=iteration.ended)

    def _keep(self, worker: int, row: Row, seen: _Seen) -> None:
        if row[0] != seen.epoch:
            if row[0] > seen.epoch and len(seen.later) < MADE_KEPT:
                seen.later.append((worker, row))
        elif self.facts.in_order:
            if len(seen.made) >= MADE_KEPT:
                seen.made.pop(next(iter(seen.made)))
            seen.made[row[1]] = (worker, row)
        elif len(seen.heap) < MADE_KEPT:
            heappush(seen.heap, (row[2] + row[3], worker, row))
        else:
            seen.is_torn = True

    def _begin_epoch(self, epoch: int, seen: _Seen) -> None:
        seen.epoch = epoch
        seen.is_torn = False
        seen.made.clear()
        seen.heap.clear()
        later, seen.later = seen.later, deque()
        for worker, row in later:
            self._keep(worker, row, seen)

    def _take_ask(self, ask: "Ask", seen: _Seen) -> None:
        epoch, number, asked, came = ask
        is_first = epoch != seen.asked_in
        if is_first:
            seen.asked_in = epoch
            if epoch != seen.epoch:
                self._begin_epoch(epoch, seen)
        if self.facts.in_order:
            made = seen.made.pop(number, None)
        else:
            # As they come: where one is missing, all that follow would be taken for another.
            made = heappop(seen.heap)[1:] if seen.heap and not seen.is_torn else None
        self._singles.add(Single(made, asked, came - asked))
        if is_first:
            self.restart_ns += came - asked if self._asked_before else 0
            self.first_wait_ns += came - asked
            self._asked_before = True
            return
        self.batches += 1
        self.wait_ns += came - asked
        if made is not None:
            self._split(number, made[1], asked, came, seen)

    def _split(self, number: int, row: Row, asked: int, came: int, seen: _Seen) -> None:
        """Which part of the wait was for the batch to be made, and which for what follows."""
        self.known += 1
        done = row[2] + row[3]
        later = self._later(number, seen)
        self.ready_ahead += sum(end <= asked for end in later) + (done <= asked)
        if done <= asked:
            self.ready += 1
            self.ready_wait_ns += came - asked
            self.transfer_ns += came - asked
            return
        until = min(done, came)
        self.made_wait_ns += until - asked
        self.transfer_ns += came - until
        first = min(later, default=until)
        if first < until:
            self.behind_ns += until - max(first, asked)

    def _later(self, number: int, seen: _Seen) -> list[int]:
        """When the batches after this one were made, as far as they were."""
        if not self.facts.in_order:
            return []
        made = seen.made
        numbers = range(number + 1, number + 1 + self._ahead)
        return [row[2] + row[3] for n in numbers if n in made for row in (made[n][1],)]

    # Without workers

    def _take_own(self, ask: "Ask") -> None:
        epoch, number, asked, came = ask
        self.batches += 1
        self.wait_ns += came - asked
        own = self.sums.setdefault(0, dict.fromkeys(_SUMS))
        own[BATCHES] = (own[BATCHES] or 0) + 1
        own[FETCH] = (own[FETCH] or 0) + came - asked
        row = (epoch, number, asked, came - asked, -1, -1)
        self._singles.add(Single((0, row), asked, came - asked))

    # What is written

    def records(self, now: int, *, is_last: bool, all_passes: bool) -> "list[Record]":
        """What is worth writing by now."""
        records: list[Record] = [*self._singles.records(now, is_last=is_last)]
        records += self.passes.records(everything=all_passes)
        state = (self.batches, self.epochs)
        grown = self.batches >= 1.25 * self._written[0] + 1
        due = grown or now - self._written_ns > AGAIN_NS or is_last
        if due and state != self._written:
            self._written, self._written_ns = state, now
            records.append(self._record(now))
        records += self.stacks.records(now, is_last=is_last)
        return records

    def _record(self, now: int) -> "Record":
        from traceml_agent.schema.loaders import Loader

        facts = self.facts
        return Loader(
            monotonic_ns=now,
            loader=self.number,
            dataset=facts.dataset,
            iterable=facts.iterable,
            workers=facts.workers,
            status=self.status if self.sums or not self.batches else NOT_SEEN,
            role=self.role,
            batch_size=facts.batch_size,
            prefetch=facts.prefetch,
            persistent=facts.persistent,
            pinned=facts.pinned,
            in_order=facts.in_order,
            context=facts.context,
            epochs=self.epochs,
            start_ns=self.start_ns,
            first_wait_ns=self.first_wait_ns,
            restart_ns=self.restart_ns,
            batches=self.batches,
            wait_ns=self.wait_ns,
            known=self.known,
            ready=self.ready,
            ready_ahead=self.ready_ahead,
            ready_wait_ns=self.ready_wait_ns,
            made_wait_ns=self.made_wait_ns,
            behind_ns=self.behind_ns,
            transfer_ns=self.transfer_ns,
            tokens=self.tokens,
            token_batches=self.token_batches,
            sums=[_sums(worker, found) for worker, found in sorted(self.sums.items())],
        )


def _sums(worker: int, found: dict[int, int | None]) -> "WorkerSums":
    from traceml_agent.schema.loaders import WorkerSums

    return WorkerSums(
        worker=worker,
        batches=found[BATCHES] or 0,
        fetch_ns=found[FETCH] or 0,
        collate_ns=found[COLLATE],
        cpu_ns=found[CPU],
        idle_ns=found[IDLE],
        delay_ns=found[DELAY],
        watched_ns=found[WATCHED],
        send_ns=found[SEND],
        read_bytes=found[READ],
        major_faults=found[FAULTS],
        failures=found[FAILURES] or 0,
    )
