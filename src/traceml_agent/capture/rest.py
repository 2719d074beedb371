"""Rest: of very short steps only samples are looked into; all others are counted and timed.

A patch costs a few microseconds whatever the step costs, so on steps of less than a few
milliseconds all of them together are more than their limit. After the first steps they rest then:
for most steps they pass through, and the hook behind the update of the one optimizer
keeps when the step ended. docs/decisions/0020-rest.md says why.
"""

from _thread import get_ident
from typing import TYPE_CHECKING, Any

from traceml_agent.capture import scopes
from traceml_agent.capture.open_step import IDLE_NS, NEVER, NONE, clock
from traceml_agent.capture.resting import RestingTracker
from traceml_agent.capture.segment import Segment
from traceml_agent.capture.steps import StepTracker
from traceml_agent.guard import INTERNAL, Gate, fault, guard
from traceml_agent.schema.phases import INPUT_WAIT, PHASES
from traceml_agent.spool.layout import HEADER_SIZE, RECORD_SIZE, RESTED, pack_step

if TYPE_CHECKING:
    from traceml_agent.capture.session import Session

LONGEST_STEP_NS = 5_000_000
"""Longer steps are all looked into. Chosen: the patches cost 1 % of such a step or less."""
LIMIT_PART = 0.5
"""Of TRACEML_MAX_OVERHEAD: from this share of a step on the patches rest."""
WATCHED_STEPS = 32
RESTED_STEPS = 31 * WATCHED_STEPS
"""Steps that are looked into, and counted, in turn. Chosen: 3 % of the cost remains, and of a
minute of steps of 1 ms some 2,000 are known phase by phase."""
SHIFTS = 61
"""By up to so many steps each rest is longer, or what happens every 1,024 steps would always, or
never, be looked into. A prime."""
PEEKED_STEPS = 5
"""Looked into whenever a line is sampled, 20 times a second: the sample needs a phase."""
ALIKE_STEPS = WATCHED_STEPS - 1
"""The last so many steps have to be of one kind: one update, as many batches. Of those between two
rests all but the first, which was looked into in part."""
SLOW_LIMIT = 4
"""Counted steps in a row that are longer than LONGEST_STEP_NS: the training has changed."""
VAIN_STEPS = 8
VAIN_LIMIT = 3
"""So many rests that end within so few steps: this program does something else at each step."""
CLOSED_GATES = ("forward", "backward", "optimizer")
_ACC = len(PHASES)


class Rest:
    """Whether the patches rest, and what is counted meanwhile. Plain slots, as of the tracker.

    What runs in each step is written flat, and touches as few objects as it can: between two tensor
    operations each call of Python and each object costs up to a microsecond.
    """

    __slots__ = (
        "_closed", "_is_cut", "_keep", "_partly", "_recorder", "_ring", "_session", "_slow",
        "_start", "_tracker", "_typical_ns", "_unseen_ns", "_vain", "backwards", "batches",
        "end", "expected", "is_allowed", "is_on", "is_wanted", "is_within", "iteration", "iterator",
        "kept", "left", "loader", "odd", "optimizer", "rested", "size", "steps", "waited",
    )  # fmt: skip

    def __init__(self, session: "Session", tracker: StepTracker) -> None:
        self._session = session
        self._tracker = tracker
        self._closed: list[Gate] = []
        self._unseen_ns = self._partly = 0  # of the steps that _close_partly closes
        self._keep = tracker.on_close
        self.begin_anew()

    def begin_anew(self) -> None:
        """As at the beginning of a process: the child of a fork has what its parent had."""
        for gate in self._closed:
            gate.shut = False
        self._closed = []
        self._recorder: Any = None
        self._ring: Any = None
        self._vain = 0
        self._slow = 0  # counted steps in a row that were too long, over all rests
        self._typical_ns = 0
        self.is_on = False
        self.is_wanted = False  # after the next update, if that can be
        self.is_allowed = True
        self.steps = 0  # counted in all rests
        self.left = 0  # before the patches look again
        self.kept = 0  # what was left before a peek
        self.expected = 1  # batches a step
        self._forget(0)

    def _forget(self, loader: int) -> None:
        """Nothing is known of this rest yet."""
        self.rested = 0
        self.end = self._start = 0  # of the last counted step, and its beginning; 0: there is none
        self._is_cut = False  # the step in which this rest began is closed
        self.optimizer = 0  # id
        self.loader = loader  # key of the loader, 0: none
        self.iterator = 0  # id of the iterator of it
        self.iteration: Any = None  # what is known of that, for the thread that writes
        self.size: int | None = 0 if loader else None  # samples of a batch, None: not seen
        self.batches = 0  # since the last counted step
        self.waited = 0  # for these
        self.odd = 0  # samples more than batches of this size would have
        self.backwards = 0
        self.is_within = False  # a call of the model, or a backward pass

    # Before

    def helps(self, step_ns: float, cost_ns: float, limit_percent: float) -> bool:
        """Whether patches that cost so much of such a step should rest now and then."""
        limit = LIMIT_PART * limit_percent / 100
        return self.is_allowed and step_ns < LONGEST_STEP_NS and 0 < limit * step_ns < cost_ns

    def begin(self, optimizer: Any) -> None:
        """An update has ended: the patches rest from here on, if that changes no count."""
        self.is_wanted = False
        with guard("rest"):
            if self._can_begin():
                self._begin(id(optimizer))
            else:
                self._tracker.audit.woken(WATCHED_STEPS)

    def _can_begin(self) -> bool:
        session, tracker = self._session, self._tracker
        recorder, discovery = session.recorder, session.discovery
        gates = [session.gates[name] for name in (*CLOSED_GATES, "dataloader")]
        if (
            recorder is None
            or recorder.ring is None
            or recorder.writer.digest is not None
            or recorder.identity.world_size > 1
            or tracker.phase != NONE
            or tracker.updating
            or tracker.evaluating
            or tracker.bracket is not None
            or tracker.device is not None
            or session.is_over
            or session.snapshots is not None
            or tracker.audit.is_disturbed
            or tracker.audit.is_running
            or scopes.HERE.tree is not None
            or (discovery is not None and discovery.wide and not session.compiled)
            or any(gate.shut for gate in gates)
        ):
            return False
        self._recorder, self._ring = recorder, recorder.ring
        return self.left > 0 or self._are_alike(tracker.step)

    def _are_alike(self, last: int) -> bool:
        """Whether the last steps were of one kind; reads what the next ones will be taken for."""
        rows = [row for row in self._ring.newest(ALIKE_STEPS, last) if row[3 + _ACC] >= 0]
        counts = {(row[-4], row[-2]) for row in rows}  # batches, updates
        if len(rows) < ALIKE_STEPS or len(counts) != 1:
            return False
        ((self.expected, updates),) = counts
        self._typical_ns = sum(row[2] for row in rows) // len(rows)
        self._slow = 0
        return bool(updates == 1) and self._typical_ns < LONGEST_STEP_NS

    def _begin(self, optimizer: int) -> None:
        tracker = self._tracker
        self._forget(tracker.fetch_key)
        self.optimizer, self.end, self.kept = optimizer, tracker.since, 0
        if self.left <= 0:
            self.left = RESTED_STEPS + tracker.step % SHIFTS
        tracker.audit_at = NEVER
        self._closed = [self._session.gates[name] for name in CLOSED_GATES]
        for gate in self._closed:
            gate.shut = True
        self.is_on = True
        tracker.__class__ = RestingTracker

    def _cut(self) -> None:
        """Another step has begun behind the one in which the patches came to rest."""
        self._is_cut = True
        self._close_next(0)
        self._tracker.cut(self.end)

    def _close_next(self, unseen_ns: int, count: int = 1) -> None:
        """The next step that closes was looked into in part: its time counts, and its phases in
        the sums only. As a step of its own it would stand for many others. So do the next `count`,
        which were looked into for the sake of a line: what takes it delays them."""
        tracker = self._tracker
        if tracker.on_close != self._close_partly:
            self._keep = tracker.on_close
        self._unseen_ns, self._partly = unseen_ns, count
        tracker.on_close = self._close_partly

    def _close_partly(
        self, step: int, start: int, duration: int, measured: Segment, batches: int
    ) -> None:
        measured.d2h_ns = RESTED - self._unseen_ns
        measured.forwards = measured.forwards or 1  # unseen; else the patch would look for it
        self._unseen_ns = 0
        self._partly -= 1
        if self._partly <= 0:
            self._tracker.on_close = self._keep
        self._keep(step, start, duration, measured, batches)

    # Meanwhile

    def close_step(self) -> None:
        """The optimizer has made its step: that ends one here."""
        try:
            now = clock()
            if not self._is_cut:
                self._cut()
            tracker, ring, start, expected = self._tracker, self._ring, self.end, self.expected
            waited = self.waited
            batches = self.batches if self.loader else expected
            if not batches == self.backwards == expected:
                self.left = max(self.left, 1)  # they look at what comes, and then rest on
                self.wake(updated=now)
                return
            step = tracker.step + 1
            duration = now - start
            if duration > LONGEST_STEP_NS:
                self._slow += 1
                if self._slow >= SLOW_LIMIT:
                    self.left = 0
                if duration - waited > IDLE_NS:  # a pause: nobody can tell any more where it was
                    duration = self._typical_ns + waited
                    start = now - duration
            elif self._slow:
                self._slow = 0
            if step - ring.drained > ring.capacity:
                self._recorder.make_room()
            samples = -1 if self.size is None else expected * self.size + self.odd
            pack_step(
                ring.buffer, HEADER_SIZE + (step - 1) % ring.capacity * RECORD_SIZE,
                step, start, duration, waited, 0, 0, 0, 0, 0, 0, 0, 0, RESTED - duration + waited,
                expected, samples, 1, step,
            )  # fmt: skip
            self._recorder.last_step = tracker.step = step
            self._start, self.end = start, now
            self.batches = self.waited = self.odd = self.backwards = 0
            self.rested += 1
            self.left -= 1
            if self.left <= 0:
                self.wake()
        except INTERNAL as error:
            self.is_allowed = False
            self.wake()
            fault("rest", error)

    def is_asked(self, iterator: Any, live: dict[int, Any]) -> bool:
        """Whether another iterator than so far is that of the loader that the steps are made of.
        `live` are the iterators that are known, by id."""
        if self.iterator or id(getattr(iterator, "_index_sampler", None)) != self.loader:
            return False
        if get_ident() != self._tracker.owner:
            return False
        self.iterator, self.iteration = id(iterator), live.get(id(iterator))
        return True

    def came(self, size: int | None) -> None:
        """The first batch came, or one of another size."""
        if size is None or self.size is None:
            self.size = None
        elif not self.size:
            self.size = size
        else:
            self.odd += size - self.size

    def peek(self, part: float) -> int:
        """In a thread of the agent: has the patches look at the next few steps; returns after how
        many nanoseconds they do, and a `part` of two steps more."""
        left = self.left
        if self.is_on and left > 0:
            self.kept, self.left = left, 0
        return int((1.5 + 2 * part) * self._typical_ns)

    # After

    def wake(self, updated: int = 0) -> None:
        """The patches look again. The last counted step is open again, if nothing has followed:
        from here on everything is as if they had looked all the time, but for its phases.

        For what is no usual step (an evaluation, a new epoch) they do so until it is over, and then
        rest on: such steps are in the sample as often as the others. `updated`: when an update of
        the open step ended that is not counted yet.
        """
        if not self.is_on:
            return
        tracker = self._tracker
        for gate in self._closed:
            gate.shut = False
        tracker.__class__ = StepTracker
        self.is_on = False  # last: a handler of a signal may raise in between, and this comes again
        self._closed = []
        tracker.last_duration = self._typical_ns
        with guard("rest"):
            if self._is_cut or self.batches or self.backwards:
                self._take_up(updated)
        self.steps += self.rested
        in_vain = self.rested < VAIN_STEPS and self.left > 0
        self._vain = self._vain + 1 if in_vain else 0
        if self._vain >= VAIN_LIMIT:
            self.is_allowed = False
        if self._slow >= SLOW_LIMIT:
            self.left = self.kept = 0
        watched = WATCHED_STEPS if self.left <= 0 else 1
        if self.kept:
            watched, self.left, self.kept = PEEKED_STEPS, self.kept, 0
        tracker.audit.woken(watched if self.is_allowed else None)

    def _take_up(self, updated: int) -> None:
        """Leads the tracker to where it would be."""
        if not self._is_cut:
            self._cut()
        tracker, start, backwards = self._tracker, self.end, self.backwards
        batches, waited = self.batches, self.waited
        samples = None if self.size is None else batches * self.size + self.odd
        is_open = not updated and self._is_open(batches if self.loader else backwards)
        if is_open:
            start, backwards = self._start, self.expected
            batches = self.expected if self.loader else 0
            (row,) = self._ring.newest(1, tracker.step)
            waited += row[3]
            if samples is not None:
                samples = row[-3]
            self.rested -= 1
            tracker.step -= 1
            self._recorder.last_step = tracker.step
        known = [(self.loader, samples)] * bool(batches)
        known += [(self.loader, None if samples is None else 0)] * (batches - 1)
        is_peek = self.kept and self._slow < SLOW_LIMIT
        self._close_next(max(0, clock() - start - waited), PEEKED_STEPS if is_peek else 1)
        tracker.go_on(start, known, backwards)
        tracker.segment.acc[INPUT_WAIT] += waited
        if is_open or updated:
            tracker.begin_update(self.optimizer)
            tracker.end_update()

    def _is_open(self, followed: int) -> bool:
        """Whether the last counted step may still go on, and is not on its way into the spool."""
        return self._start > 0 and not followed and self._recorder.taken < self._tracker.step
