"""StepTracker: which phase is open, where a step ends, what a step cost.

No call marks a step. What counts as evidence:

* A *proof* of training is a backward pass or an optimizer step. Waiting, copies and forward calls
  since the last proof are provisional: a validation loop looks the same until its end.
* A step closes when, after an update, a loader is asked again that gave this step its first batch.
* Without such a request it closes when an optimizer steps that already stepped in this step: then
  it ended at the first event after its last update, which is where a new segment began.
* Without any optimizer, an update is seen by the version counter of a parameter.

All methods are called by one thread, the one that trains; `owner` is its identifier. The methods
that run in every step are written flat: between two tensor operations a call of Python costs
several times what it costs in a tight loop.
"""

import time
from collections.abc import Callable
from typing import Any

from traceml_agent.capture.segment import Segment
from traceml_agent.capture.updates import UpdateProbe
from traceml_agent.schema.phases import (
    BACKWARD,
    EVAL,
    FORWARD,
    H2D,
    INPUT_WAIT,
    OPTIMIZER,
    PHASES,
)

NONE = -1
IDLE_NS = 10_000_000_000
IDLE_RATIO = 20
"""A pause between two steps longer than 10 s and than 20 steps is idle time and belongs to no
step. Chosen: longer than the work between two steps of any loop seen, shorter than a person's
pause between two cells of a notebook."""
ROLES_LIMIT = 1000  # loaders remembered; a program that makes a loader a step must not grow

_clock = time.perf_counter_ns

CloseStep = Callable[[int, int, int, Segment, int], None]
"""Called with step number, start, duration (ns), what was measured, number of micro-batches."""


class StepTracker:
    """The state of the training loop. Plain slots: it is read and written on the hot path."""

    __slots__ = (
        "_attend",
        "_batches",
        "_carried",
        "_done",
        "_done_end",
        "_eval_seen",
        "_evaluated",
        "_fetch_key",
        "_forward_ns",
        "_h2d_ns",
        "_in_scaler",
        "_input_ns",
        "_opened_update",
        "_optimizer_depth",
        "_optimizers",
        "_proven",
        "_roles",
        "device",
        "last_duration",
        "on_close",
        "on_proof",
        "opened",
        "optimizer_calls",
        "outside",
        "owner",
        "phase",
        "probe",
        "segment",
        "since",
        "step",
    )

    def __init__(self, owner: int, on_proof: Callable[[], None], on_close: CloseStep) -> None:
        """`on_proof` is called once, at the first proof of training, before any step closes."""
        self.owner = owner
        self.on_proof: Callable[[], None] | None = on_proof
        self.on_close = on_close
        self.device: Any = None  # a DeviceTimer once a CUDA device is in use
        self.probe = UpdateProbe()
        self.phase = NONE
        self.since = 0  # when the open phase, or the time between phases, began
        self.step = 0  # last closed step
        self.last_duration = 0
        self.opened = 0  # phases opened so far, for the cost estimate
        self.optimizer_calls = 0
        self.outside = [0] * len(PHASES)
        self.segment = Segment(0)
        self._done: Segment | None = None  # earlier segments of the open step
        self._done_end = 0
        self._attend = True  # the next event has to begin a segment
        self._proven = False  # the open step holds a proof of training
        self._optimizers: list[int] = []  # that stepped in the open step
        self._optimizer_depth = 0
        self._opened_update = False
        self._in_scaler = False
        self._roles: dict[int, int] = {}  # loader -> INPUT_WAIT or EVAL
        self._fetch_key = 0
        self._carried = 0  # batches fetched ahead
        # Provisional: since the last proof
        self._input_ns = 0
        self._h2d_ns = 0
        self._forward_ns = 0
        self._batches: list[tuple[int, int | None]] = []
        self._eval_seen = False  # a call without gradients, or of a module in eval mode
        self._evaluated = False  # batches turned out to be evaluation

    # Opening and closing phases

    def enter(self, phase: int) -> int:
        """Opens a phase; returns the one it interrupts, to be handed to `leave`."""
        now = _clock()
        if self._attend:
            self._begin_segment(phase, now)
        previous = self.phase
        if previous >= 0:
            self.segment.acc[previous] += now - self.since
        if self.device is not None:
            self.device.switch(previous, phase)
        self.phase = phase
        self.since = now
        self.opened += 1
        return previous

    def leave(self, previous: int) -> int:
        """Closes the open phase, resumes `previous`; returns the nanoseconds since it opened."""
        now = _clock()
        phase = self.phase
        elapsed = now - self.since
        if phase >= 0:
            self.segment.acc[phase] += elapsed
        if self.device is not None:
            self.device.switch(phase, previous)
        self.phase = previous
        self.since = now
        return elapsed

    def _begin_segment(self, phase: int, now: int) -> None:
        """The first event of the program, or the first one after an update."""
        segment = self.segment
        if segment.start == 0:
            # A model moved to its device, or a checkpoint, long before training starts no step.
            if phase in (INPUT_WAIT, FORWARD, BACKWARD, OPTIMIZER):
                self._start_at(now)
            return
        self._attend = False
        idle = now - self.since > max(IDLE_NS, IDLE_RATIO * (self.since - segment.start))
        self._done_end = self.since if idle else now
        if self._done is None:
            self._done = segment
        else:
            self._done.join(segment)
        self.segment = Segment(now)

    # The data loader

    def begin_fetch(self, key: int) -> None:
        """A loader is asked for its next batch: perhaps the end of a step."""
        if self.phase == OPTIMIZER:
            self._abort_update()  # its step raised, and the loop went on
        if self._eval_seen:
            self._settle_as_eval()
        now = _clock()
        segment = self.segment
        if self._proven:
            first = segment if self._done is None else self._done
            if key in first.keys and self._is_updated(first):
                self._close_all(now)
                segment = self.segment
        elif segment.start:
            self._skip_pause(now)
        if self._attend:
            self._begin_segment(INPUT_WAIT, now)
        segment = self.segment
        if key not in segment.keys:
            segment.keys.append(key)
        self._fetch_key = key
        if self.device is not None:
            self.device.switch(NONE, INPUT_WAIT)
        self.phase = INPUT_WAIT
        self.since = now
        self.opened += 1

    def end_fetch(self, samples: int | None) -> None:
        """The batch is there; `samples` is its size, None if that cannot be seen."""
        now = _clock()
        elapsed = now - self.since
        self.segment.acc[INPUT_WAIT] += elapsed
        self._input_ns += elapsed
        if self.device is not None:
            self.device.switch(INPUT_WAIT, NONE)
        self.phase = NONE
        self.since = now
        self._batches.append((self._fetch_key, samples))

    def end_fetch_without_batch(self) -> None:
        """The loader is exhausted, has failed, or has only started its workers."""
        elapsed = self.leave(NONE)
        if self._roles.get(self._fetch_key) == EVAL:
            self.segment.acc[INPUT_WAIT] -= elapsed
            self.segment.acc[EVAL] += elapsed
        else:
            self._input_ns += elapsed

    def _is_updated(self, first: Segment) -> bool:
        if self._optimizers:
            return not self._opened_update
        backwards = first.backwards or self.segment.backwards
        return backwards > 0 and self.probe.saw_update(self.optimizer_calls > 0)

    def _skip_pause(self, now: int) -> None:
        """Between two loops: before the first step, or after a pause, training starts afresh."""
        only_evaluated = self._evaluated and self.on_proof is not None
        if only_evaluated or now - self.since > max(IDLE_NS, IDLE_RATIO * self.last_duration):
            self._start_at(now)

    def _start_at(self, now: int) -> None:
        """The open step starts now; what was measured before stays outside any step."""
        for segment in (self._done, self.segment):
            if segment is not None:
                for phase, elapsed in enumerate(segment.acc):
                    self.outside[phase] += elapsed
        self._done = None
        self.segment = Segment(now)
        self._attend = False
        self._forget_provisional()

    # Copies, forward and backward

    def end_transfer(self, previous: int, to_device: bool) -> None:
        """A copy between devices ended."""
        elapsed = self.leave(previous)
        if to_device:
            self._h2d_ns += elapsed
        else:
            # A copy to the host waits for the device: no phase, but a named part of the residual.
            self.segment.acc[H2D] -= elapsed
            self.segment.d2h_ns += elapsed

    def end_forward(self, previous: int, in_training_mode: bool) -> None:
        """An outermost module call with gradients ended."""
        now = _clock()
        elapsed = now - self.since
        segment = self.segment
        segment.acc[FORWARD] += elapsed
        segment.forwards += 1
        self._forward_ns += elapsed
        if self.device is not None:
            self.device.switch(FORWARD, previous)
        self.phase = previous
        self.since = now
        if not in_training_mode:
            self._eval_seen = True

    def end_eval(self, previous: int) -> None:
        """An outermost module call without gradients ended."""
        self.leave(previous)
        self.segment.forwards += 1
        self._eval_seen = True

    def begin_backward(self) -> int:
        """A backward pass starts: what came before it was training."""
        if self._proven and self.phase == NONE and not self._optimizers:
            parted = self._done is not None or self._attend
            if parted and not self._batches and self.probe.saw_update(self.optimizer_calls > 0):
                self._close_at_segment()
        previous = self.enter(BACKWARD)
        self._prove()
        return previous

    def end_backward(self, previous: int) -> None:
        """A backward pass ended."""
        self.leave(previous)
        if previous == NONE:
            self.segment.backwards += 1
            if not self._optimizers:
                self._attend = True

    # Optimizers

    def begin_update(self, optimizer_id: int) -> None:
        """An optimizer starts a step."""
        self.optimizer_calls += 1
        if self.phase == OPTIMIZER:
            if self._in_scaler or optimizer_id != self._optimizers[-1]:
                self._optimizer_depth += 1  # an optimizer inside a GradScaler or another optimizer
                return
            self._abort_update()
        self._begin_update(optimizer_id)

    def begin_scaler_update(self, optimizer_id: int) -> bool:
        """A GradScaler decides whether the optimizer may step; False: not an outermost call."""
        if self.phase != NONE:
            return False
        self._in_scaler = True
        self._begin_update(optimizer_id)
        return True

    def _begin_update(self, optimizer_id: int) -> None:
        if optimizer_id in self._optimizers:
            self._close_at_segment()
        # An optimizer may step inside backward (one per parameter, as a gradient hook): then the
        # time is backward's, and only the update counts.
        if self.phase == NONE:
            self._opened_update = True
            self.enter(OPTIMIZER)
        else:
            self._opened_update = False
        self._optimizers.append(optimizer_id)
        if not self._proven or self._batches or self._eval_seen:
            self._prove()

    def end_update(self) -> None:
        """The step of an optimizer ended."""
        if self._optimizer_depth:
            self._optimizer_depth -= 1
            return
        if self._opened_update:
            self._opened_update = False
            if self.phase == OPTIMIZER:
                self.leave(NONE)
        self.segment.updates += 1
        self._attend = True
        self.probe.forget_version()

    def end_scaler_update(self, updated: bool) -> None:
        """The GradScaler is done; not `updated`: a gradient was infinite and the step skipped."""
        self._in_scaler = False
        self._optimizer_depth = 0
        self.end_update()
        if not updated:
            self.segment.updates -= 1

    def _abort_update(self) -> None:
        self.leave(NONE)
        self._optimizer_depth = 0
        self._opened_update = False
        self._in_scaler = False

    # Evidence

    def _prove(self) -> None:
        """What is provisional was training."""
        self._proven = True
        if self._batches:
            for key, samples in self._batches:
                self.segment.count_batch(key, samples)
                self._roles[key] = INPUT_WAIT
            self._batches = []
        self._input_ns = self._h2d_ns = self._forward_ns = 0
        self._eval_seen = self._evaluated = False
        if self.on_proof is not None:
            on_proof, self.on_proof = self.on_proof, None
            on_proof()

    def _settle_as_eval(self) -> None:
        """What is provisional was evaluation: batches were used and no gradient followed."""
        acc = self.segment.acc
        acc[INPUT_WAIT] -= self._input_ns
        acc[H2D] -= self._h2d_ns
        acc[FORWARD] -= self._forward_ns
        acc[EVAL] += self._input_ns + self._h2d_ns + self._forward_ns
        for key, _ in self._batches:
            self._roles[key] = EVAL
        self._forget_provisional()
        self._evaluated = True

    def _forget_provisional(self) -> None:
        self._input_ns = self._h2d_ns = self._forward_ns = 0
        if self._batches:
            self._batches = []
        self._eval_seen = self._evaluated = False

    # Steps

    def _close_at_segment(self) -> None:
        """The open step ended where the present segment began."""
        if self._done is None or self._attend:
            # Nothing happened between two steps of one optimizer.
            self._close_all(_clock())
            return
        self._close(self._done, self._done_end)
        self._proven = self.segment.backwards > 0 or self.segment.batches > 0

    def _close_all(self, end: int) -> None:
        measured = self.segment
        if self._done is not None:
            self._done.join(measured)
            measured = self._done
        self._close(measured, end)
        self.segment = Segment(end)
        self._proven = False
        self._input_ns = self._h2d_ns = self._forward_ns = 0
        self._batches = []
        self._eval_seen = self._evaluated = False

    def _close(self, measured: Segment, end: int) -> None:
        step = self.step = self.step + 1
        start = measured.start
        self.last_duration = end - start
        if measured.batches and measured.backwards:
            # A loop that fetches ahead has two batches in its first step and none in its last.
            at_hand = measured.batches + self._carried
            micro_batches = min(at_hand, measured.backwards)
            self._carried = at_hand - micro_batches
        else:
            per_update = measured.backwards // max(1, len(set(self._optimizers)))
            micro_batches = max(1, measured.batches, per_update)
            self._carried = max(0, self._carried - 1)
        self.on_close(step, start, end - start, measured, micro_batches)
        if self.device is not None:
            self.device.close_step(step)
        self._done = None
        self._optimizers = []
        self._attend = False
        if len(self._roles) > ROLES_LIMIT:
            self._roles.clear()

    def finish(self) -> None:
        """The program ends: closes a step whose update is done; the rest stays outside steps."""
        if self.phase >= 0:
            self.leave(NONE)
        if self._eval_seen:
            self._settle_as_eval()
        updated = self._optimizers or self.probe.saw_update(self.optimizer_calls > 0)
        if self._proven and updated:
            if self._done is not None and not self._attend:
                self._close(self._done, self._done_end)
            else:
                self._close_all(self.since)
        self._start_at(0)
        self._attend = True
