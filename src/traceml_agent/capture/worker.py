"""What a DataLoader worker writes down of itself: when it made each batch, and where it stood.

Runs in the worker. It writes no file, and holds up nothing: its thread is not joined, and a worker
that is killed leaves what stood in the shared memory.
"""

import contextlib
import mmap
import os
import sys
import time
from _thread import get_ident, start_new_thread
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from traceml_agent.capture.board import (
    COLLATE,
    CPU,
    DELAY,
    FAILURES,
    FAULTS,
    FETCH,
    GROWN,
    IDLE,
    READ,
    SEND,
    WATCHED,
    Slot,
)
from traceml_agent.capture.frames import why_unsafe
from traceml_agent.capture.patches.disguise import hide_frame, like
from traceml_agent.capture.shadow import hidden_module
from traceml_agent.guard import INTERNAL, fault, guarded

WATCH_NS = 1_000_000
"""From one batch whose delay is read to the next at least: whether a batch is watched does not
depend on how long it takes. Chosen: the two readings take 4 us."""
COUNT_S = 0.5
"""Between two looks at the counters of the kernel."""

GOLDEN = 0.6180339887
"""Multiples of it, less their whole part, fill the span from 0 to 1 evenly. Source: Weyl."""
FETCH_PHASE, COLLATE_PHASE = "fetch", "collate"

clock = time.perf_counter_ns
cpu_clock = time.thread_time_ns

FindSlot = Callable[[], Slot | None]


class WorkerClock:
    """Times the batches of the worker. Plain slots: it is called twice a batch."""

    __slots__ = (
        "_before",
        "_begun",
        "_begun_cpu",
        "_delay",
        "_delays",
        "_epoch",
        "_find",
        "_idle_since",
        "_is_sampled",
        "_number",
        "_pause_s",
        "_samples",
        "_tries",
        "_watched_at",
        "collated",
        "doing",
        "pid",
        "sender",
        "slot",
        "thread",
    )

    def __init__(self, find: FindSlot, sample_hz: float) -> None:
        self._find = find
        self._pause_s = 1 / sample_hz if sample_hz else None
        self.slot = find()
        self.pid = os.getpid()
        self.thread = get_ident()
        self.sender: Callable[[], int | None] = lambda: None  # kernel's name of the thread
        self.doing: str | None = None  # what is sampled
        self.collated = 0
        self._begun = self._begun_cpu = 0
        self._epoch = 0
        self._number = 0
        self._tries = 0
        self._delays = Delays(self.pid)
        self._delay: int | None = None
        self._watched_at = 0
        self._idle_since = 0
        self._before: dict[int, int] = {}  # counted while the worker started
        self._is_sampled = False
        self._samples: Any = None

    # In the loop of the worker: an error of ours must not become one of the program's.

    def received(self, task: Any) -> None:
        """A task came out of the queue, or a sign that an epoch or the work is over."""
        try:
            self._received(task)
        except INTERNAL as error:
            self._fail(error)

    def finished(self, result: Any) -> None:
        """What was made of the task goes into the queue now."""
        try:
            self._finished(result)
        except INTERNAL as error:
            self._fail(error)

    def handed_on(self) -> None:
        """After the first batch, when the queue has a thread of its own already."""
        if not self._is_sampled and self.slot is not None:
            self._is_sampled = True
            try:
                start_new_thread(self._watch, ())
            except INTERNAL as error:  # no thread can be started here: counted is all the same
                fault("worker stacks", error)

    def _fail(self, error: Exception) -> None:
        """Nothing more is told of this worker."""
        self.slot = self.doing = None
        self._find = lambda: None
        fault("loader workers", error)

    def _received(self, task: Any) -> None:
        if type(task) is not tuple:
            if type(task).__name__ == "_ResumeIteration":
                self._epoch += 1
                self._idle_since = 0
            return
        if self.slot is None and not self._look_again():
            return
        if not self._begun:
            self._before = kernel_counts(None)
        now = clock()
        self._delay = None
        if now - self._watched_at >= WATCH_NS:
            self._watched_at = now
            self._delay = self._delays.read()
        self._number = task[0]
        self.collated = 0
        self._begun_cpu = cpu_clock()
        self._begun = clock()
        self.doing = FETCH_PHASE

    def _look_again(self) -> bool:
        """The trainer may not have said yet which slot is ours: looked for at 1, 2, 4, 8, ..."""
        self._tries += 1
        if self._tries & (self._tries - 1) == 0:
            self.slot = self._find()
        return self.slot is not None

    def _finished(self, result: Any) -> None:
        slot = self.slot
        if self.doing is None or slot is None:
            return
        self.doing = None
        now, cpu = clock(), cpu_clock() - self._begun_cpu
        fetch = now - self._begun
        kind = type(result).__name__
        if self._idle_since:  # not before the first task of an epoch: nobody waits between two
            slot.set(IDLE, slot.get(IDLE) + self._begun - self._idle_since)
        self._idle_since = now
        if kind == "_IterableDatasetStopIteration":
            return
        if kind == "ExceptionWrapper":
            slot.set(FAILURES, slot.get(FAILURES) + 1)
        self._watch_delay(slot, fetch)
        slot.set(FETCH, slot.get(FETCH) + fetch)
        slot.set(COLLATE, slot.get(COLLATE) + self.collated)
        slot.set(CPU, slot.get(CPU) + cpu)
        slot.push((self._epoch, self._number, self._begun, fetch, self.collated, cpu))

    def _watch_delay(self, slot: Slot, fetch: int) -> None:
        if self._delay is None:
            return
        after = self._delays.read()
        if after is not None:
            slot.set(DELAY, max(0, slot.get(DELAY)) + after - self._delay)
            slot.set(WATCHED, max(0, slot.get(WATCHED)) + fetch)

    def timed(self, collate: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """`collate_fn`, with its time counted."""

        def call(samples: Any) -> Any:
            begun = clock()
            self.doing = COLLATE_PHASE
            try:
                return collate(samples)
            except BaseException as error:
                hide_frame(error)
                raise
            finally:
                self.doing = FETCH_PHASE
                self.collated += clock() - begun

        return like(call, collate)

    # The thread

    def _watch(self) -> None:
        guarded("worker stacks", self._open_samples)
        count_at = clock()
        turn = 0.0
        while os.getpid() == self.pid:
            # Uneven, so that it does not keep step with the batches.
            turn = (turn + GOLDEN) % 1.0
            pause_s = (self._pause_s or COUNT_S) * (0.5 + turn)
            time.sleep(pause_s)
            if self.doing is not None and self._samples is not None:
                guarded("worker stacks", partial(self._samples.take, self.doing, pause_s))
            if clock() >= count_at:
                count_at = clock() + int(COUNT_S * 1e9)
                guarded("worker counters", self.count)

    def _open_samples(self) -> None:
        if why_unsafe() is not None:
            return
        if self.slot is not None and self._pause_s is not None and hidden_module() is None:
            from traceml_agent.capture.worker_stacks import Samples

            self._samples = Samples(self.thread, self.slot.started_s)

    def count(self, *, at_end: bool = False) -> None:
        """Brings the counters of the kernel and the stacks up to date."""
        slot = self.slot
        if slot is None:
            return
        for name, value in kernel_counts(self.sender()).items():
            slot.set(name, max(0, value - self._before.get(name, 0)))
        if self._samples is not None:
            self._samples.write(slot, at_end=at_end)

    def close(self) -> None:
        """The work is over."""
        if os.getpid() == self.pid:  # not a child that the worker forked
            self.doing = None
            self.count(at_end=True)


def kernel_counts(sender: int | None) -> dict[int, int]:
    """What the kernel counts of this worker: the thread that sends, memory, storage."""
    found = {}
    sending = None if sender is None else _cpu_of(sender)
    if sending is not None:
        found[SEND] = sending
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        found[FAULTS] = int(fields[9])
        found[GROWN] = int(fields[21]) * mmap.PAGESIZE
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = Path("/proc/self/io").read_text()
        found[READ] = int(text.partition("\nread_bytes:")[2].split()[0])
    return found


class Delays:
    """How long a thread waited for a core. Its file stays open, as reading it costs a tenth of
    opening it, and is never closed: the number may be another file's if the program closed it."""

    def __init__(self, thread: int) -> None:
        self._fd: int | None = None
        with contextlib.suppress(OSError):
            self._fd = os.open(f"/proc/self/task/{thread}/schedstat", os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> int | None:
        """Nanoseconds so far; None where nobody counts."""
        if self._fd is None:
            return None
        try:
            run, delay, _ = os.pread(self._fd, 100, 0).split()
            return int(delay) if run != b"0" else None
        except (OSError, ValueError):
            return None


def _cpu_of(thread: int) -> int | None:
    """CPU time of a thread; None where nobody counts."""
    try:
        text = Path(f"/proc/self/task/{thread}/schedstat").read_text()
        run, delay, _ = map(int, text.split())
    except (OSError, ValueError):
        return None
    return run if run or delay else None


def parent_pid() -> int | None:
    """The process that made the loader; None in one that multiprocessing did not start."""
    process = sys.modules.get("multiprocessing.process")
    parent = None if process is None else process.parent_process()
    return None if parent is None else int(parent.pid)
