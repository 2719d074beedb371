"""Recorder: the open files of an ACTIVE process, and how closed steps get into them."""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from traceml_agent.capture.device import DeviceStep
from traceml_agent.capture.segment import Segment
from traceml_agent.guard import faults, guard
from traceml_agent.schema.phases import DEVICE_PHASES, PHASES
from traceml_agent.schema.records import DeviceSteps, End, Fault, Overhead, Record, StepSums
from traceml_agent.spool.reader import batches_of
from traceml_agent.spool.ring import HEADER_SIZE, RECORD_SIZE, Ring, Row, pack_step
from traceml_agent.spool.writer import SpoolWriter, sums_of


class Totals:
    """Exact sums over all closed steps, fed at each drain."""

    __slots__ = ("duration_ns", "micro_batches", "phase_ns", "samples", "steps", "updates")

    def __init__(self) -> None:
        self.steps = 0
        self.duration_ns = 0
        self.phase_ns = dict.fromkeys(PHASES, 0)
        self.micro_batches = 0
        self.samples: int | None = 0
        self.updates = 0

    def add(self, sums: StepSums) -> None:
        """Adds some steps."""
        self.steps += sums.count
        self.duration_ns += sums.duration_ns
        for phase, elapsed in sums.phase_ns.items():
            self.phase_ns[phase] += elapsed
        self.micro_batches += sums.micro_batches
        self.updates += sums.updates
        if sums.samples is None or self.samples is None:
            self.samples = None
        else:
            self.samples += sums.samples


class Recorder:
    """Owns the spool, the ring and the locks of this process.

    The training thread writes closed steps into the ring; the sampler thread, or whoever finds
    the ring full, drains them into the spool.
    """

    def __init__(self, run_dir: Path, writer: SpoolWriter, ring: Ring | None) -> None:
        self.run_dir = run_dir
        self.writer = writer
        self.ring = ring
        self.descriptors: list[int] = []  # the liveness lock; kept open until the end
        self.stack_fd: int | None = None
        self.totals = Totals()
        self.last_step = 0
        self.activate_ns = 0
        self.thread_cpu_ns = 0
        self.on_first_step: Callable[[], None] | None = None
        self.on_no_forward: Callable[[int], None] | None = None
        self.pending: Callable[[], list[Record]] = list
        self.warn: Callable[[str], None] | None = None
        self._lost_steps = 0
        self._rows: list[Row] = []  # in place of a ring
        self._reported_faults: dict[str, int] = {}
        self._lock = threading.Lock()

    # The training thread

    def close_step(
        self, step: int, start_ns: int, duration_ns: int, measured: Segment, micro_batches: int
    ) -> None:
        """Keeps a closed step where a SIGKILL cannot take it."""
        samples = measured.samples
        if samples is None or not measured.batches:
            samples = -1
        counts = (measured.d2h_ns, micro_batches, samples, measured.updates, step)
        ring = self.ring
        if ring is None:
            self._rows.append((step, start_ns, duration_ns, *measured.acc, *counts))
        else:
            if step - ring.drained > ring.capacity:
                self.drain()
            offset = HEADER_SIZE + (step - 1) % ring.capacity * RECORD_SIZE
            pack_step(ring.buffer, offset, step, start_ns, duration_ns, *measured.acc, *counts)
        self.last_step = step
        if not measured.forwards and self.on_no_forward is not None:
            self.on_no_forward(step)
        if self.on_first_step is not None:
            on_first_step, self.on_first_step = self.on_first_step, None
            on_first_step()

    # The sampler thread, and the end

    def drain(self) -> None:
        """Writes all closed steps and pending records to the spool."""
        with self._lock:
            with guard("pending records"):
                self._write(self.pending())
            rows = self._take()
            if rows:
                batches = batches_of(rows)
                for batch in batches:
                    self.totals.add(sums_of(batch))
                if not self.writer.write(batches):
                    # The ring keeps them for one more round at most: count them as lost here.
                    self._lost_steps += len(rows)
                if self.ring is not None:
                    self.ring.mark_drained(rows[-1][0])

    def write(self, records: list[Record]) -> None:
        """Writes records that are no steps."""
        with self._lock:
            self._write(records)

    def _write(self, records: list[Record]) -> None:
        if not self.writer.write(records) and self.warn is not None:
            warn, self.warn = self.warn, None
            warn(f"cannot write to {self.run_dir}: {self.writer.error}; training goes on")

    def _take(self) -> list[Row]:
        if self.ring is not None:
            return self.ring.rows(self.last_step)
        rows, self._rows = self._rows, []
        return rows

    def overhead(self, hot_path_ns: int | None) -> Overhead:
        """What the agent cost so far."""
        return Overhead(
            monotonic_ns=time.perf_counter_ns(),
            steps=self.last_step,
            hot_path_ns=hot_path_ns,
            thread_cpu_ns=self.thread_cpu_ns,
            activate_ns=self.activate_ns,
            spool_bytes=self.writer.written,
        )

    def new_faults(self) -> list[Record]:
        """Faults that the spool does not hold yet, or with an older count."""
        fresh: list[Record] = []
        for fault in faults():
            if self._reported_faults.get(fault.where) != fault.count:
                self._reported_faults[fault.where] = fault.count
                fresh.append(Fault(**{name: getattr(fault, name) for name in Fault.__slots__}))
        return fresh

    def end(
        self, status: str, exit_code: int | None, exception: str | None, stack: str | None
    ) -> End:
        """The last record."""
        dropped = dict(self.writer.lost)
        if self._lost_steps:
            dropped["step"] = self._lost_steps
        if self.writer.thinned_steps:
            dropped["thinned_steps"] = self.writer.thinned_steps
        totals = self.totals
        return End(
            monotonic_ns=time.perf_counter_ns(),
            status=status,
            exit_code=exit_code,
            exception=exception,
            stack=stack,
            steps=totals.steps,
            duration_ns=totals.duration_ns,
            phase_ns=totals.phase_ns,
            micro_batches=totals.micro_batches,
            samples=totals.samples,
            updates=totals.updates,
            dropped=dropped,
        )

    def close(self) -> None:
        """Closes everything; the ring goes if the spool holds all its steps."""
        if self.ring is not None:
            self.ring.close(remove=self.writer.error is None)
            self.ring = None
        self.writer.close()
        self.release()

    def release(self) -> None:
        """Drops the liveness lock."""
        for descriptor in self.descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self.descriptors = []

    def abandon(self) -> None:
        """In a forked child: the fatal stack of the child must not land in the parent's file."""
        if self.stack_fd is not None:
            with contextlib.suppress(OSError):
                null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
                os.dup2(null, self.stack_fd, inheritable=False)
                os.close(null)


def device_batches(steps: list[DeviceStep]) -> list[Record]:
    """One columnar record a run of consecutive steps."""
    records: list[Record] = []
    begin = 0
    for index in range(1, len(steps) + 1):
        if index < len(steps) and steps[index].step == steps[index - 1].step + 1:
            continue
        chunk = steps[begin:index]
        phase_ns: dict[str, list[int | None]] = {}
        for name in DEVICE_PHASES:
            phase = PHASES.index(name)
            column = [None if s.duration_ns is None else s.phase_ns.get(phase, 0) for s in chunk]
            phase_ns[name] = list(column)
        durations = [s.duration_ns for s in chunk]
        records.append(DeviceSteps(chunk[0].step, len(chunk), durations, phase_ns))
        begin = index
    return records
