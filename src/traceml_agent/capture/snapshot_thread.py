"""The thread that turns copies of tensors into figures, while the training goes on."""

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from traceml_agent.capture.snapshot_targets import Target
from traceml_agent.capture.staging import Parcel, Staging
from traceml_agent.capture.tensor_figures import figures_of
from traceml_agent.guard import guard

if TYPE_CHECKING:
    from traceml_agent.schema.snapshots import Snapshot, TensorFigures

POLL_S = 0.001
"""Between two looks whether a device has copied. Chosen: a copy of a buffer takes that long."""
DONE_KEPT = 16
"""Snapshots between two drains. Chosen: one comes every few steps at most."""


@dataclass(slots=True)
class Window:
    """A snapshot that is being taken. The training thread fills it, the other one its rows."""

    cause: str
    epoch: int | None
    first_step: int
    last_step: int
    pending: dict[int, list[Target]]  # by optimizer, 0 for none; the largest ones last
    left_out: dict[str, int]
    stall_ns: int = 0
    longest_stall_ns: int = 0
    reduced_ns: int = 0
    rows: "list[tuple[int, TensorFigures]]" = field(default_factory=list)

    def leave_out(self, reason: str, count: int = 1) -> None:
        """Parameters of which there will be no figures."""
        self.left_out[reason] = self.left_out.get(reason, 0) + count


@dataclass(frozen=True, slots=True)
class Entry:
    """A parameter in a parcel: where its weight and its gradient lie."""

    target: Target
    step: int
    weight_at: int
    gradient_at: int | None
    gradient_type: Any
    no_gradient: str | None


@dataclass(frozen=True, slots=True)
class Job:
    """A parcel to be read; without one, the window is complete."""

    window: Window
    parcel: Parcel | None
    entries: tuple[Entry, ...] = ()


class SnapshotThread:
    """Started with the first job; a daemon, which `stop` ends."""

    def __init__(self, torch: Any, staging: Staging) -> None:
        self.cpu_ns = 0
        self.done: deque[Snapshot] = deque(maxlen=DONE_KEPT)
        self._torch = torch
        self._staging = staging
        self._jobs: deque[Job] = deque()
        self._wake = threading.Event()
        self._is_stopped = False
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Starts the thread, or has it look for what is to do."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="traceml-snapshots", daemon=True)
            self._thread.start()
        self._wake.set()

    def give(self, job: Job) -> None:
        """Something to do, in the order in which it comes."""
        self._jobs.append(job)
        self.wake()

    def stop(self, timeout_s: float) -> None:
        """Ends the thread when it has done what it was given, or leaves it to itself."""
        self._is_stopped = True
        if self._thread is not None:
            self._wake.set()
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            with guard("snapshot buffers"):
                self._staging.make()
            while self._jobs:
                job = self._jobs.popleft()
                with guard("snapshot figures"):
                    self._do(job)
            self.cpu_ns = time.thread_time_ns()
            if self._is_stopped and not self._jobs:
                return

    def _do(self, job: Job) -> None:
        window, parcel = job.window, job.parcel
        if parcel is None:
            self.done.append(_snapshot(window))
            return
        begun = time.thread_time_ns()
        try:
            while not parcel.has_come():
                time.sleep(POLL_S)
            for entry in job.entries:
                window.rows.append((entry.target.order, self._row(parcel, entry)))
        finally:
            self._staging.give_back(parcel.buffer)
            window.reduced_ns += time.thread_time_ns() - begun

    def _row(self, parcel: Parcel, entry: Entry) -> "TensorFigures":
        from traceml_agent.schema.snapshots import TensorFigures

        torch, target, buffer = self._torch, entry.target, parcel.buffer
        weight = buffer.tensor(torch, entry.weight_at, target.looked, target.dtype)
        gradient = None
        if entry.gradient_at is not None:
            found = buffer.tensor(torch, entry.gradient_at, target.looked, entry.gradient_type)
            gradient = figures_of(torch, found)
        return TensorFigures(
            name=target.name,
            shape=target.shape,
            dtype=str(target.dtype).removeprefix("torch."),
            elements=target.elements,
            looked=target.looked,
            step=entry.step,
            weight=figures_of(torch, weight),
            gradient=gradient,
            no_gradient=entry.no_gradient,
            shard=target.is_shard,
        )


def _snapshot(window: Window) -> "Snapshot":
    from traceml_agent.schema.snapshots import Snapshot

    return Snapshot(
        monotonic_ns=time.perf_counter_ns(),
        cause=window.cause,
        epoch=window.epoch,
        first_step=window.first_step,
        last_step=window.last_step,
        tensors=[row for _, row in sorted(window.rows, key=lambda pair: pair[0])],
        stall_ns=window.stall_ns,
        longest_stall_ns=window.longest_stall_ns,
        reduced_ns=window.reduced_ns,
        left_out=window.left_out,
    )
