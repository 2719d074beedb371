"""SnapshotWatch: when figures of weights and gradients are taken, and of which parameters.

At the end of an update, in the training thread, some parameters and their gradients are copied,
at most STEP_BYTES of them a step: the next update writes to them. All else happens in another
thread. A snapshot of a large model so spreads over the last steps of an epoch.
"""

import time
from _thread import get_ident
from typing import TYPE_CHECKING, Any

from traceml_agent.capture.epochs import Epochs
from traceml_agent.capture.open_step import NONE
from traceml_agent.capture.snapshot_choice import Choice
from traceml_agent.capture.snapshot_targets import Target, is_of_torch, is_plain, local_part
from traceml_agent.capture.snapshot_thread import Entry, Job, SnapshotThread, Window
from traceml_agent.capture.staging import Parcel, Staging
from traceml_agent.guard import INTERNAL, fault, is_off
from traceml_agent.schema.snapshots import EPOCH, EXIT, STEPS

if TYPE_CHECKING:
    from traceml_agent.capture.session import Session
    from traceml_agent.schema.snapshots import Snapshot

STEP_BYTES = 16 << 20
"""Copied at one step, unless a single tensor is larger. Chosen: 2 to 4 ms of the training thread,
and 25 million parameters with their gradients in 13 steps."""
STEPS_BETWEEN = 1000
"""After so many steps without a snapshot one is taken. Chosen: for loops without a loader, and for
trainings of a single epoch of days; at 0.1 s a step, every two minutes."""
TURNS = 64
"""After so many snapshots every second occasion is passed over, after as many more every further
one: a record has up to 100 KB. Chosen: a run of a million steps has some 400."""
PATIENCE = 64
"""Steps beyond those needed for which a snapshot waits for optimizers that do not step."""
STOP_S = 1.0
"""How long the exit waits for the figures of the last copies. Chosen: twice what they take."""
WHERE = "snapshots"


class SnapshotWatch:
    """The snapshots of this process. All methods but `take` are called in the training thread."""

    def __init__(self, session: "Session", everything: bool) -> None:
        self._session = session
        self._torch = session.torch
        self._choice = Choice(session, everything)
        self._forget()
        session.set_status(WHERE, "active")

    def _forget(self) -> None:
        self.stall_ns = 0
        self._epochs = Epochs()
        self._staging = Staging(self._torch)
        self._thread = SnapshotThread(self._torch, self._staging)
        self._window: Window | None = None
        self._step = 0  # the last one with an update
        self._opened_step = 0
        self._considered = -1  # the epoch for which an occasion was weighed
        self._occasions = 0
        self._stride = 1
        self._taken = 0
        self._spread = 1  # steps that the last snapshot took

    def after_fork(self) -> None:
        """In the child: the thread and what it was given are the parent's."""
        self._forget()

    def saw(self, module: Any) -> None:
        """A model was called from outside: it gives names."""
        self._choice.add_root(module)

    def watch(self, model: Any) -> None:
        """A model was named by hand."""
        self._choice.add_root(model, is_watched=True)

    # What the patches tell

    def fetched(self, iterator: Any, iteration: Any) -> None:
        """A batch came from a loader; `iteration` is what the watch of the loaders has of it."""
        try:
            sampler = iterator._index_sampler
            loader = id(sampler if iteration is None else iteration.log)
            if self._epochs.fetched(iterator, loader):
                self._end_epoch()
        except INTERNAL as error:
            self._fail(error)

    def exhausted(self, iterator: Any) -> None:
        """A loader has no more batches."""
        try:
            if self._epochs.exhausted(iterator):
                self._end_epoch()
        except INTERNAL as error:
            self._fail(error)

    def stepped(self, optimizer: Any) -> None:
        """An optimizer has made its update, and the gradients are still there."""
        try:
            begun = time.perf_counter_ns()
            step = self._session.tracker.steps_done()
            self._know(optimizer)
            if step != self._step:
                self._step = step
                self._epochs.stepped()
                if self._window is None:
                    self._weigh()
            window = self._window
            if window is not None:
                with self._torch._C.DisableTorchFunction():
                    if self._is_calm():
                        self._copy_some(id(optimizer), with_gradients=True, optimizer=optimizer)
                        self._copy_some(0, with_gradients=False)
                self._close_if_done()
                self._note_stall(window, time.perf_counter_ns() - begun)
        except INTERNAL as error:
            self._fail(error)

    def take(self) -> "list[Snapshot]":
        """The snapshots that are complete. For any thread."""
        done = self._thread.done
        return [done.popleft() for _ in range(len(done))]

    def close(self) -> None:
        """The process leaves: takes what weights it can, and waits for the figures a moment."""
        tracker = self._session.tracker
        at_rest = get_ident() == tracker.owner and tracker.phase == NONE and not tracker.updating
        if at_rest and self._session.recorder is not None and not is_off(WHERE):
            is_open_epoch = self._epochs.steps_since and self._considered != self._epochs.ended
            if self._window is None and is_open_epoch and self._step > self._opened_step:
                self._open(EXIT)
            self._copy_rest()
        if self._window is not None:
            self._close_window()
        self._thread.stop(STOP_S)

    # When

    def _weigh(self) -> None:
        """Whether a snapshot begins with this step."""
        loop = self._epochs.loop
        left = None if loop is None else loop.steps_left()
        needed = max(-(-self._choice.size // STEP_BYTES), self._spread)
        if left is not None and left < needed and self._considered != self._epochs.ended:
            self._considered = self._epochs.ended
            if self._is_turn():
                self._open(EPOCH)
        elif self._step - self._opened_step >= STEPS_BETWEEN * self._stride:
            self._open(STEPS)

    def _is_turn(self) -> bool:
        self._occasions += 1
        return (self._occasions - 1) % self._stride == 0

    def _end_epoch(self) -> None:
        """An epoch has ended: what no step was left for is taken without gradients."""
        if self._session.recorder is None:
            return
        begun = time.perf_counter_ns()
        if self._window is None and self._considered != self._epochs.ended - 1:
            self._considered = self._epochs.ended - 1
            if self._is_turn():
                self._open(EPOCH, self._epochs.ended)
        window = self._window
        if window is not None:
            self._copy_rest()
            self._close_if_done()
            self._note_stall(window, time.perf_counter_ns() - begun)

    def _note_stall(self, window: Window, elapsed_ns: int) -> None:
        self.stall_ns += elapsed_ns
        window.stall_ns += elapsed_ns
        window.longest_stall_ns = max(window.longest_stall_ns, elapsed_ns)

    # What

    def _know(self, optimizer: Any) -> None:
        with self._torch._C.DisableTorchFunction():
            targets = self._choice.add_optimizer(optimizer)
        if targets and any(target.device.type != "cpu" for target in targets):
            self._fit(targets)
            self._thread.wake()

    def _open(self, cause: str, epoch: int | None = None) -> None:
        self._opened_step = self._step
        left_out: dict[str, int] = {}
        with self._torch._C.DisableTorchFunction():
            found = self._choice.targets(left_out)
        if not found or self._session.recorder is None:
            return
        self._taken += 1
        if self._taken % TURNS == 0:
            self._stride *= 2
        if epoch is None and (self._epochs.ended or self._epochs.loop is not None):
            epoch = self._epochs.ended + 1
        pending: dict[int, list[Target]] = {}
        for key, target in reversed(found):
            pending.setdefault(key, []).append(target)
        self._fit([target for _, target in found])
        self._window = Window(cause, epoch, self._step, self._step, pending, left_out)

    def _fit(self, targets: list[Target]) -> None:
        size = max(max(t.room for t in targets), min(STEP_BYTES, sum(t.room for t in targets)))
        self._staging.fit(size, any(target.device.type != "cpu" for target in targets))

    def _is_calm(self) -> bool:
        """Whether copies from a device may be queued now: no graph is captured, no mode is on."""
        torch = self._torch
        if torch._C._len_torch_dispatch_stack():
            return False
        return not (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())

    # Copying

    def _copy_rest(self) -> None:
        with self._torch._C.DisableTorchFunction():
            if self._window is not None and self._is_calm():
                for key in self._window.pending:
                    while self._copy_some(key, with_gradients=False):
                        pass

    def _copy_some(self, key: int, with_gradients: bool, optimizer: Any = None) -> bool:
        """Copies what one buffer takes of these parameters; False if nothing was copied."""
        window = self._window
        pending = None if window is None else window.pending.get(key)
        if not pending or window is None:
            return False
        buffer = self._staging.take()
        if buffer is None:
            return False  # the other thread is not done: at the next step
        parcel, entries = Parcel(buffer), []
        parameters = self._choice.parameters(key)
        is_scaled = getattr(optimizer, "grad_scale", None) is not None
        why = "scaled" if is_scaled else None if with_gradients else "not at an update"
        while pending and parcel.filled + pending[-1].room <= buffer.size:
            target = pending.pop()
            parameter = parameters.get(target.identity)
            entry = None if parameter is None else self._copy(parcel, target, parameter, why)
            if entry is None:
                window.leave_out("gone or changed")
            else:
                entries.append(entry)
        parcel.close(self._torch)
        window.last_step = self._step
        self._thread.give(Job(window, parcel, tuple(entries)))
        return bool(entries)

    def _copy(self, parcel: Parcel, target: Target, parameter: Any, why: str | None) -> Any:
        """The entry of a parameter; None if it is no longer what was planned for."""
        torch, tensor = self._torch, local_part(parameter)
        if not _is_like(torch, tensor, target) or tensor.dtype != target.dtype:
            return None
        weight_at, gradient_at = parcel.add(torch, tensor, target.looked), None
        gradient = parameter.grad
        if why is None and gradient is None:
            why = "none"
        if why is None:
            gradient = local_part(gradient)
            if gradient.layout is not torch.strided:
                why = "sparse"
            elif not _is_like(torch, gradient, target) or gradient.element_size() > max(
                tensor.element_size(), 4
            ):
                why = "of another kind"
            else:
                gradient_at = parcel.add(torch, gradient, target.looked)
        kind = None if gradient_at is None else gradient.dtype
        return Entry(target, self._step, weight_at, gradient_at, kind, why)

    def _close_if_done(self) -> None:
        window = self._window
        if window is None:
            return
        patience = PATIENCE + self._choice.size // STEP_BYTES
        if not any(window.pending.values()) or self._step - window.first_step > patience:
            self._close_window()

    def _close_window(self) -> None:
        window, self._window = self._window, None
        if window is not None:
            self._spread = window.last_step - window.first_step + 1
            missed = sum(len(targets) for targets in window.pending.values())
            if missed:
                window.leave_out("not reached", missed)
            self._thread.give(Job(window, None))

    def _fail(self, error: Exception) -> None:
        self._window = None
        fault(WHERE, error)
        if is_off(WHERE):
            self._session.snapshots = None
            self._session.set_status(WHERE, "switched off after errors of its own")


def _is_like(torch: Any, tensor: Any, target: Target) -> bool:
    """Whether a tensor still is what the copy was planned for."""
    is_there = tensor.numel() == target.elements and tensor.device == target.device
    return is_there and is_of_torch(torch, tensor) and is_plain(torch, tensor)
