"""OpenStep: the phase that is open, the segments of the step in progress, and its closing.

The methods that run in every step are written flat: between two tensor operations a call of
Python costs several times what it costs in a tight loop.
"""

import time
from collections.abc import Callable
from types import CodeType
from typing import Any

from traceml_agent.capture.segment import Segment
from traceml_agent.capture.updates import UNKNOWN_VERSION, UpdateProbe
from traceml_agent.guard import INTERNAL, fault, is_of_a_handler, is_off
from traceml_agent.schema.phases import (
    BACKWARD,
    EVAL,
    FORWARD,
    H2D,
    INPUT_WAIT,
    LOGGING,
    OPTIMIZER,
    PATCH_OF_PHASE,
    PHASES,
)

NONE = -1
CLOSURE = -2
"""In the closure of an optimizer's step, of which a framework told: no phase, but no end of one."""
NEVER = 1 << 62
IDLE_NS = 10_000_000_000
IDLE_RATIO = 20
"""A pause between two steps longer than 10 s and than 20 steps is idle time and belongs to no
step. Chosen: longer than the work between two steps of any loop seen, shorter than a person's
pause between two cells of a notebook."""
ROLES_LIMIT = 1000
"""Loaders remembered: a program that makes a loader a step must not grow."""

clock = time.perf_counter_ns

CloseStep = Callable[[int, int, int, Segment, int], None]
"""Called with step number, start, duration (ns), what was measured, number of micro-batches."""


def pause_limit(step_ns: int) -> int:
    """How long a pause after a step of this length may be before it is idle time."""
    return max(IDLE_NS, IDLE_RATIO * step_ns)


Collate = tuple[int, int, CodeType | None, CodeType | None]
"""When the training thread last began to make a batch of items, for which loader, the function that
makes an item, and the one that makes the batch."""
NO_COLLATE: Collate = (0, 0, None, None)


class OpenStep:
    """The step in progress. Plain slots: it is read and written on the hot path."""

    __slots__ = (
        "_attend",
        "_batches",
        "_done",
        "_done_end",
        "_eval_seen",
        "_evaluated",
        "_exhausted",
        "_forward_ns",
        "_h2d_ns",
        "_in_scaler",
        "_input_ns",
        "_opened_update",
        "_optimizers",
        "_parted",
        "_proven",
        "_roles",
        "audit",
        "audit_at",
        "bracket",
        "carried",
        "collating",
        "device",
        "evaluating",
        "fetch_key",
        "last_duration",
        "on_close",
        "on_proof",
        "on_shut",
        "optimizer_calls",
        "outside",
        "owner",
        "phase",
        "probe",
        "segment",
        "since",
        "step",
        "updating",
    )

    def __init__(self, owner: int, on_proof: Callable[[], None], on_close: CloseStep) -> None:
        """`on_proof` is called once, at the first proof of training, before any step closes."""
        self.owner = owner
        self.on_proof: Callable[[], None] | None = on_proof
        self.on_close = on_close
        self.device: Any = None  # a DeviceTimer once a CUDA device is in use
        self.probe = UpdateProbe()
        self.since = 0  # when the open phase, or the time between phases, began
        self.step = 0  # last closed step
        self.last_duration = 0
        self.optimizer_calls = 0
        self.outside = [0] * len(PHASES)
        self.audit: Any = None  # an Audit once training is proven
        self.audit_at = NEVER  # step at whose end the audit takes its turn
        self.on_shut: Callable[[str], None] | None = None  # a patch failed too often
        self.collating = NO_COLLATE
        self._roles: dict[int, int] = {}  # loader -> INPUT_WAIT or EVAL
        self._forget_step()

    def _forget_step(self) -> None:
        self.phase = NONE
        self.segment = Segment(0)
        self._done: Segment | None = None  # earlier segments of the open step
        self._done_end = 0
        self._attend = True  # the next event has to begin a segment
        self._proven = False  # the open step holds a proof of training
        self._optimizers: list[int] = []  # that stepped in the open step
        self.updating = 0  # updates begun and not ended: one, and those inside it
        self._opened_update = False
        self._in_scaler = False
        self.fetch_key = 0
        self.carried = 0  # batches fetched ahead
        self.evaluating = 0  # evaluations of a framework that are open: updates in them are none
        self.bracket: object | None = None  # that the program opened around this step
        self._parted = False  # a bracket ended, and nothing of another step was seen
        self._exhausted = False  # a request in the bracket brought no batch
        # Provisional: since the last proof
        self._input_ns = 0
        self._h2d_ns = 0
        self._forward_ns = 0
        self._batches: list[tuple[int, int | None]] = []
        self._eval_seen = False  # a call without gradients, or of a module in eval mode
        self._evaluated = False  # batches turned out to be evaluation

    def steps_done(self) -> int:
        """Steps whose update is done: the open one counts as soon as an optimizer has stepped."""
        return self.step + bool(self._optimizers)

    def roles(self) -> dict[int, int]:
        """Of the loaders that are known by now: INPUT_WAIT or EVAL. For any thread."""
        return self._roles.copy()

    def evaluates(self, key: int) -> None:
        """A loader is asked while an evaluation runs, of which a framework told."""
        self._roles.setdefault(key, EVAL)

    def _fail(self, patch: str, error: Exception) -> None:
        """An error of ours stops here: it is counted, and the step in progress is forgotten.

        Device timing ends with it: an error of CUDA comes out of whatever call is next.
        """
        self._forget_step()
        if not is_of_a_handler(error):
            self.device = None
        fault(patch, error)
        if is_off(patch) and self.on_shut is not None:
            self.on_shut(patch)

    # Opening and closing phases

    def enter(self, phase: int) -> int:
        """Opens a phase; returns the one it interrupts, to be handed to `leave`."""
        try:
            now = clock()
            if self._attend:
                self._begin_segment(phase, now)
            previous = self.phase
            if previous >= 0:
                self.segment.acc[previous] += now - self.since
            if self.device is not None:
                self.device.switch(previous, phase)
            self.phase = phase
            self.since = now
            return previous
        except INTERNAL as error:
            self._fail(PATCH_OF_PHASE[PHASES[phase]], error)
            return NONE

    def leave(self, previous: int) -> int:
        """Closes the open phase, resumes `previous`; returns the nanoseconds since it opened."""
        try:
            now = clock()
            phase = self.phase
            elapsed = now - self.since
            if phase >= 0:
                self.segment.acc[phase] += elapsed
            if self.device is not None:
                self.device.switch(phase, previous)
            self.phase = previous
            self.since = now
            return elapsed
        except INTERNAL as error:
            self._fail(PATCH_OF_PHASE[PHASES[max(0, self.phase)]], error)
            return 0

    def _begin_segment(self, phase: int, now: int) -> None:
        """The first event of the program, or the first one after an update."""
        segment = self.segment
        if segment.start == 0:
            # A model moved to its device, or a checkpoint, long before training starts no step.
            if phase in (INPUT_WAIT, FORWARD, BACKWARD, OPTIMIZER):
                self._start_at(now)
            return
        if self._parted and phase == LOGGING:
            return  # the update of a bracket may still follow
        self._attend = False
        if self._parted:
            self._parted = phase == OPTIMIZER  # an update that follows belongs to the bracket
            if now - self.since > pause_limit(self.last_duration):
                self._start_at(now)
            return
        if self.phase >= 0:  # an optimizer stepped inside this phase, which now is interrupted
            self._split_phase(now)
        self._input_ns = self._h2d_ns = self._forward_ns = 0
        idle = now - self.since > pause_limit(self.since - segment.start)
        self._done_end = self.since if idle else now
        if self._done is None:
            self._done = segment
        else:
            self._done.join(segment)
        self.segment = Segment(now)

    def _split_phase(self, now: int) -> None:
        """What the open phase took so far belongs to the segment or step that ends now."""
        self.segment.acc[self.phase] += now - self.since
        self.since = now

    def _start_at(self, now: int) -> None:
        """The open step starts now; what was measured before stays outside any step."""
        for segment in (self._done, self.segment):
            if segment is not None:
                for phase, elapsed in enumerate(segment.acc):
                    self.outside[phase] += elapsed
        self._done = None
        self.segment = Segment(now)
        self._attend = self._parted = False
        self._forget_provisional()

    def _forget_provisional(self) -> None:
        self._input_ns = self._h2d_ns = self._forward_ns = 0
        self._batches.clear()
        self._eval_seen = self._evaluated = False

    # Evidence

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

    def _saw_update(self) -> bool:
        return self.probe.saw_update(self.optimizer_calls > 0)

    # Closing

    def _close_at_segment(self) -> None:
        """The open step ended where the present segment began."""
        if self._done is None or self._attend:
            # Nothing happened between two steps of one optimizer.
            now = clock()
            if self.phase >= 0:
                self._split_phase(now)
            self._close_all(now)
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
        self._forget_provisional()

    def _close(self, measured: Segment, end: int) -> None:
        step = self.step = self.step + 1
        start = measured.start
        self.last_duration = end - start
        backwards = measured.backwards
        if measured.in_update and measured.batches > backwards:
            backwards += 1  # the last of a few: in the closure of its optimizer
        if measured.batches and backwards:
            # A loop that fetches ahead has two batches in its first step and none in its last.
            at_hand = measured.batches + self.carried
            micro_batches = min(at_hand, backwards)
            self.carried = at_hand - micro_batches
        else:
            per_update = backwards // max(1, len(set(self._optimizers)))
            micro_batches = max(1, measured.batches, per_update)
            if not measured.batches:
                # A batch fetched ahead was counted in the step that fetched it.
                measured.samples = 0 if self.carried else None
            self.carried = max(0, self.carried - 1)
        self.on_close(step, start, end - start, measured, micro_batches)
        if self.device is not None:
            self.device.close_step(step)
        self._done = None
        self._optimizers.clear()
        self._attend = False
        if len(self._roles) > ROLES_LIMIT:
            self._roles.clear()
        if step >= self.audit_at:
            self.audit.turn(step)

    def cut(self, end: int) -> None:
        """Ends the step there, behind its update."""
        self.since = end
        self._close_all(end)

    def go_on(self, start: int, batches: list[tuple[int, int | None]], backwards: int) -> None:
        """A step began then, and had these batches (as `_batches` has them) and backward passes."""
        carried = self.carried
        self._forget_step()
        self.carried = carried
        self.segment = segment = Segment(start)
        self.since, self._attend = start, False
        self._batches = batches
        segment.keys.extend(key for key, _ in batches[:1])
        segment.backwards = backwards
        self._proven = backwards > 0
        self.probe.version = UNKNOWN_VERSION
