"""Recorder: the open files of an ACTIVE process, and how closed steps get into them."""

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from traceml_agent.capture.device import DeviceStep
from traceml_agent.capture.segment import Segment
from traceml_agent.capture.totals import Totals
from traceml_agent.guard import faults, guard
from traceml_agent.schema.phases import DEVICE_PHASES, PHASES
from traceml_agent.schema.records import (
    DeviceSteps,
    End,
    Fault,
    Header,
    Identity,
    Overhead,
    Record,
    StepSums,
)
from traceml_agent.spool.digest import DigestWriter
from traceml_agent.spool.format import DIGEST_SUFFIX
from traceml_agent.spool.layout import HEADER_SIZE, RECORD_SIZE, pack_step
from traceml_agent.spool.ring import Ring, Row
from traceml_agent.spool.rows import batches_of
from traceml_agent.spool.writer import SpoolWriter, sums_of

STALL_S = 0.5
"""How long a step waits, once, for a disk that does not answer while the ring is full. Chosen: ten
times what a drain of a full ring takes on a busy machine."""
RETRY_S = 5.0
"""How long to leave a disk alone that did not take steps: to encode a full ring costs 10 ms."""
ROWS_LIMIT = 65_536
"""Steps kept in memory where there is no ring and the disk does not answer: 40 MB."""

Ending = tuple[str, int | None, str | None, str | None]
"""How a process ends: status, exit code, exception and stack."""


class Recorder:
    """Owns the spool, the ring and the locks of this process.

    The training thread writes closed steps into the ring; the sampler thread, or whoever finds
    the ring full, drains them into the spool.
    """

    inherited_stack_fd: ClassVar[int | None] = None
    """In a forked child: where the fatal handlers write that the parent installed."""

    def __init__(self, path: Path, writer: SpoolWriter, ring: Ring | None) -> None:
        """`path` is that of the process in the run directory; its spool may lie on the node."""
        self.path = path
        self.run_dir = path.parent
        self.writer = writer
        self.ring = ring
        self.identity = Identity(0, 0, 0, 1, 1, 0, "none")
        self.descriptors: list[int] = []  # the liveness lock; kept open until the end
        self.stack_fd: int | None = None
        self.totals = Totals()
        self.last_step = 0
        self.taken = 0  # steps up to this one are in the spool, or on their way
        self.activate_ns = 0
        self.thread_cpu_ns = 0
        self.other_threads_cpu_ns: dict[str, int] = {}  # of the agent, by name
        self.suppliers: list[Callable[[], list[Record]]] = []  # asked before each write
        self.on_first_step: Callable[[], None] | None = None
        self.on_no_forward: Callable[[int], None] | None = None
        self.pending: Callable[[], list[Record]] = list
        self.warn: Callable[[str], None] | None = None
        self.is_closed = False  # the spool has its end
        self._digest_at = 0.0
        self._lost_steps = 0
        self._rows: list[Row] = []  # in place of a ring
        self._is_stalled = False  # the disk did not take the last steps
        self._retry_at = 0.0
        self._reported_faults: dict[str, int] = {}
        self._lock = threading.Lock()

    # The training thread

    def close_step(
        self, step: int, start_ns: int, duration_ns: int, measured: Segment, micro_batches: int
    ) -> None:
        """Keeps a closed step where a SIGKILL cannot take it."""
        samples = measured.samples
        if samples is None:
            samples = -1
        counts = (measured.d2h_ns, micro_batches, samples, measured.updates, step)
        ring = self.ring
        if ring is None:
            if len(self._rows) < ROWS_LIMIT:
                self._rows.append((step, start_ns, duration_ns, *measured.acc, *counts))
            else:
                self._lost_steps += 1
        else:
            if step - ring.drained > ring.capacity:
                self.make_room()
            offset = HEADER_SIZE + (step - 1) % ring.capacity * RECORD_SIZE
            pack_step(ring.buffer, offset, step, start_ns, duration_ns, *measured.acc, *counts)
        self.last_step = step
        if not measured.forwards and self.on_no_forward is not None:
            self.on_no_forward(step)
        if self.on_first_step is not None:
            on_first_step, self.on_first_step = self.on_first_step, None
            on_first_step()

    def make_room(self) -> None:
        """Drains the full ring; where the disk hangs or is full, its oldest step is given up."""
        if not self._is_stalled and not self._locked(self._drain, STALL_S):
            self._is_stalled = True  # the sampler thread sits in a write; it tells when it is back

    def _locked(self, action: Callable[[], None], timeout_s: float) -> bool:
        is_ours = self._lock.acquire(timeout=timeout_s)
        try:
            if is_ours:
                action()
        finally:
            if is_ours:
                self._lock.release()
        return is_ours

    # The sampler thread, and the end

    def drain(self, *, last: bool = False, timeout_s: float = -1) -> None:
        """Writes all closed steps and pending records to the spool; `last`: whatever failed."""
        if last or not self._is_stalled or time.monotonic() >= self._retry_at:
            self._locked(self._drain, timeout_s)

    def _drain(self) -> None:
        if self.is_closed:
            return
        with guard("pending records"):
            self._write(self.pending())
        for supply in self.suppliers:
            with guard("supplied records"):
                self._write(supply())
        rows = self._take()
        if not rows:
            return
        batches = batches_of(rows)
        if self._write(batches):
            for batch in batches:
                self.totals.add(batch if isinstance(batch, StepSums) else sums_of(batch))
            self._is_stalled = False
            if self.ring is not None:
                self._lost_steps += rows[0][0] - self.ring.drained - 1
                self.ring.mark_drained(rows[-1][0])
        elif self.ring is None:
            self._lost_steps += len(rows)
        else:
            # They stay in the ring for another try, and for the reader.
            for batch in batches:
                self.writer.lost[batch.kind] -= 1
            self._is_stalled = True
            self._retry_at = time.monotonic() + RETRY_S

    def follow(self, header: Header) -> None:
        """Begins the digest. Where the spool is on the node, that stands for it in the run.

        A single rank needs none: its spool is read as fast.
        """
        spool = self.writer.path
        if self.path != spool:
            home = str(self.run_dir.resolve())
            header = dataclasses.replace(header, spool_path=str(spool), run_dir=home)
            self.writer.digest = DigestWriter(self.path, spool, header)
            self.update_digest(0.0)  # others look for this rank
        elif header.identity.world_size > 1:
            self.writer.digest = DigestWriter(spool.with_suffix(DIGEST_SUFFIX), spool, header)

    def update_digest(self, interval_s: float) -> None:
        """Brings the digest up to date, if that was last done so long ago."""
        now = time.monotonic()
        if self.writer.digest is not None and now >= self._digest_at:
            self._digest_at = now + interval_s
            self.writer.digest.update()
            if self.writer.digest.error is not None and self.path != self.writer.path:
                self._say_once(self.writer.digest.error)

    def hurry_digest(self) -> None:
        """Something came that others should see soon."""
        self._digest_at = 0.0

    def write(self, records: list[Record]) -> bool:
        """Writes records that are no steps; whether the disk took them."""
        with self._lock:
            return not self.is_closed and self._write(records)

    def _write(self, records: Sequence[Record]) -> bool:
        if self.writer.write(records):
            return True
        self._say_once(self.writer.error)
        return False

    def _say_once(self, error: str | None) -> None:
        if self.warn is not None:
            warn, self.warn = self.warn, None
            warn(f"cannot write to {self.run_dir}: {error}; training goes on")

    def _take(self) -> list[Row]:
        if self.ring is not None:
            self.taken = self.last_step  # first: a step up to here does not open again
            return self.ring.rows(self.last_step)
        rows, self._rows = self._rows, []
        return rows

    def overhead(self, hot_path_ns: int | None) -> Overhead:
        """What the agent cost so far."""
        return Overhead(
            monotonic_ns=time.perf_counter_ns(),
            steps=self.last_step,
            hot_path_ns=hot_path_ns,
            thread_cpu_ns=self.thread_cpu_ns + sum(tuple(self.other_threads_cpu_ns.values())),
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
        dropped = {kind: count for kind, count in self.writer.lost.items() if count}
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

    def finish(self, cost: Overhead, end: Ending) -> None:
        """Writes what is left and the `end`, and closes the spool; the ring goes if it can."""
        self.drain(last=True)
        is_whole = self.write([cost, *self.new_faults(), self.end(*end)]) and not self._is_stalled
        if is_whole or not self.writer.path.exists():
            self._close_ring(remove=True)
        else:
            self.give_up(end)
        self.is_closed = True
        self.writer.close()
        self.hurry_digest()
        self.update_digest(0.0)
        if is_whole and self.path != self.writer.path:
            self._leave_node()
        self.release()

    def _leave_node(self) -> None:
        """Removes a spool on the node of which the digest holds all."""
        if self.writer.digest is not None and self.writer.digest.is_whole:
            with contextlib.suppress(OSError):
                self.writer.path.unlink()
                self.writer.path.parent.rmdir()

    def give_up(self, end: Ending) -> None:
        """Leaves to the reader what the disk did not take: the ring survives this process."""
        if self.ring is not None:
            self.ring.mark_ended(end[0], end[1])
            self._close_ring(remove=False)

    def announce_exec(self, end: Ending) -> None:
        """The process is about to become another program. If that fails, later steps say so."""
        self.drain(last=True)
        self.write([*self.new_faults(), self.end(*end)])
        self.hurry_digest()
        self.update_digest(0.0)

    def _close_ring(self, remove: bool) -> None:
        if self.ring is not None:
            self.ring.close(remove)
            self.ring = None

    def release(self) -> None:
        """Drops the liveness lock."""
        for descriptor in self.descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self.descriptors = []

    def abandon(self) -> None:
        """In a forked child: the fatal stack of the child must not land in the parent's file."""
        if self.stack_fd is not None:
            Recorder.inherited_stack_fd = self.stack_fd
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
