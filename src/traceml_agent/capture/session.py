"""SESSION: the one process-wide object. DORMANT -> ARMED (torch imported) -> ACTIVE (training)."""

import os
import sys
import threading
import time
from _thread import get_ident
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from traceml_agent.capture import scopes
from traceml_agent.capture.audit import RECORDER, Audit
from traceml_agent.capture.device import DeviceTimer, can_be_used, is_in_use
from traceml_agent.capture.frames import current_frames, switch_as_before
from traceml_agent.capture.mode import NO_SPOOL, STEP_PATCHES, asked
from traceml_agent.capture.open_step import NONE
from traceml_agent.capture.rest import Rest
from traceml_agent.capture.resume import restored_events
from traceml_agent.capture.say import say
from traceml_agent.capture.segment import Segment
from traceml_agent.capture.shadow import hidden_module
from traceml_agent.capture.steps import StepTracker
from traceml_agent.config import Config, resolve
from traceml_agent.guard import FAULT_LIMIT, Gate, forget_faults, guard, is_off
from traceml_agent.schema.phases import PATCH_OF_PHASE, PHASES

if TYPE_CHECKING:
    from traceml_agent.capture.recorder import Recorder
    from traceml_agent.identity import Group
    from traceml_agent.schema.records import Event, Record

# The records, the spool and the recorder are imported when training is proven: most processes
# that import torch never train.

EVENTS_LIMIT = 10_000
"""Events kept between two flushes."""
LOOKED_LIMIT = 100
FLUSH_S = 2.0
"""How long a flush waits for a disk. Chosen: as long as an exit does."""

OVER = "ended by shutdown()"

Look = Callable[[bool], "Sequence[Record]"]
"""Looks at what torch knows of itself; called with whether it is the last time."""


class Session:
    """What the agent knows in this process. After a fork the child starts again as ARMED."""

    def __init__(self) -> None:
        self.config = Config()
        self.torch: Any = None
        self.torch_imported_ns: int | None = None
        self.script: str | None = None
        self.discovery: Any = None  # of the forward patch
        self.flops: Any = None  # of the forward and backward patches
        self.collectives: Any = None  # of the collectives patch
        self.loaders: Any = None  # of the dataloader patch
        self.snapshots: Any = None  # a SnapshotWatch where they are wanted
        self.looks: dict[str, Look] = {}
        self.compiled = False
        self._may_use_cuda = False
        self.statuses: dict[str, str] = {}
        self.on_active: Any = None  # set by exit.py and the sampler loop
        self.on_waiting: Any = None  # the same: the first step does not come
        self.opening = threading.Lock()
        self.gates = {name: Gate() for name in set(PATCH_OF_PHASE.values())}
        self.by_hand = {name: Gate() for name in STEP_PATCHES}  # of what the program wraps
        self.brackets = Gate()  # of steps whose bounds the program gives
        self.is_over = False  # by `shutdown`, for this process and those that it forks
        self.tracker = StepTracker(0, self._activate, self.close_step)
        self.tracker.on_shut = self._shut_after_faults
        self.rest = Rest(self, self.tracker)
        self._begin()

    def _begin(self) -> None:
        self.pid = os.getpid()
        self.parent_pid = os.getppid()
        self.recorder: Recorder | None = None
        self.expects_step = False
        self.group: Group | None = None  # as it was given to init_process_group
        self.refusal: str | None = None
        self.events: deque[Event] = deque(maxlen=EVENTS_LIMIT)
        self.strategies: set[str] = set()
        self.looked: deque[Record] = deque(maxlen=LOOKED_LIMIT)
        self._told: tuple[dict[str, str], list[int]] = ({}, [])

    def arm(self, torch: Any) -> None:
        """Torch is there: reads the settings; no file and no thread yet."""
        self.torch = torch
        resolved = resolve(os.environ, arguments=asked().settings)
        self.config = resolved.config
        for problem in resolved.problems:
            say(problem)
        if "spool" not in self.config.output:
            self.refusal = NO_SPOOL  # as the user wants it: nothing to say
        scopes.watch(self.tracker)
        self._may_use_cuda = can_be_used(torch)
        self.script = getattr(sys.modules.get("__main__"), "__file__", None)  # gone at exit
        self.tracker.owner = threading.main_thread().ident or get_ident()
        os.register_at_fork(after_in_child=self._after_fork)
        if self.config.snapshots == "stats":
            self.take_snapshots(everything=True)

    def take_snapshots(self, everything: bool) -> None:
        """Figures of weights and gradients are wanted: of all models, or of those to be named."""
        if self.snapshots is None:
            from traceml_agent.capture.snapshots import SnapshotWatch

            self.snapshots = SnapshotWatch(self, everything)

    def end(self) -> None:
        """Every patch and wrapper passes through from now on, and no spool is opened."""
        self.rest.wake()
        self.is_over = self.brackets.shut = True
        for name in self.gates:
            self._shut_gates(name)
        self.looks.clear()
        if self.collectives is not None:
            self.collectives.shut(OVER)
        if self.discovery is not None:
            self.discovery.leave()

    def _activate(self) -> None:
        """The first proof of training: opens the spool, unless the first step took too long."""
        with guard("activate"):
            if not self._open():
                return
            with guard("resume"):
                self.events.extend(restored_events(self.torch))
            audit = Audit(self.tracker, self.config.max_overhead, self.shut, self.rest)
            audit.on_turn = self.look

    def begin_without_step(self, since_ns: int) -> None:
        """No step was closed since then, in a job of several ranks: a thread opens the spool."""
        if self._open() and self.on_waiting is not None:
            self.on_waiting(since_ns)

    def _open(self) -> bool:
        """Whether the spool is open; the one who comes first opens it."""
        with self.opening:
            if self.is_over:
                return False
            if self.recorder is None and self.refusal is None:
                self._open_recorder()
            return self.recorder is not None

    def _open_recorder(self) -> None:
        begun = time.perf_counter_ns()
        hidden = hidden_module()
        if hidden is not None:
            self.refusal = f"{hidden} hides a module that the agent needs; rename it"
            say(f"nothing is recorded: {self.refusal}")
            return
        from traceml_agent.capture.opening import open_recorder

        recorder = open_recorder(self)
        if recorder is None:
            return
        recorder.pending = self.pending_records
        self.recorder = recorder
        if self.on_active is not None:
            self.on_active(self, recorder)
        recorder.activate_ns = time.perf_counter_ns() - begun

    def _after_fork(self) -> None:
        """In the child: drops what belongs to the parent, writes and closes nothing of it."""
        with guard("after fork"):
            self.opening = threading.Lock()  # of the parent's thread, which is not here
            if self.recorder is not None:
                self.recorder.abandon()
            self._begin()
            switch_as_before()
            forget_faults()
            self.rest.begin_anew()
            self.tracker.__class__ = StepTracker
            StepTracker.__init__(self.tracker, get_ident(), self._activate, self.close_step)
            self.tracker.on_shut = self._shut_after_faults
            if self.loaders is not None:
                self.loaders.forget()
            if self.snapshots is not None:
                self.snapshots.after_fork()

    def adopt_thread(self) -> bool:
        """Called in another thread than the owner, at a proof of training: may it take over?

        Yes before anything was recorded (the loop runs in a thread, as under Ray), and when the
        owner has ended. Else the training of two threads would mix in one time line.
        """
        tracker = self.tracker
        ident = get_ident()
        if tracker.owner == ident:
            return True
        if tracker.on_proof is None and tracker.owner in current_frames():
            return False
        tracker.owner = ident
        return True

    # What the patches tell

    def set_status(self, name: str, status: str) -> None:
        """Notes whether a patch or sampler is "active", or why not."""
        self.statuses[name] = status

    def note_wrapped(self, patch: str) -> None:
        """The program times this part of a step by hand, from here on."""
        if self.statuses.get(patch) != "active" and not self.by_hand[patch].shut:
            self.set_status(patch, "active")

    def shut(self, patch: str, reason: str) -> None:
        """A patch passes through from now on; without the recorder, all of them do."""
        self.rest.wake()
        for name in self.gates if patch == RECORDER else (patch,):
            self._shut_gates(name)
            self.set_status(name, reason)
        if patch == RECORDER:
            self.brackets.shut = True
            if self.collectives is not None:
                self.collectives.shut(reason)
        with guard("breaker"):
            # From here on updates may show by the version of a parameter only: read it now.
            self.tracker.probe.version_moved()

    def _shut_gates(self, patch: str) -> None:
        self.gates[patch].shut = True
        if patch in self.by_hand:
            self.by_hand[patch].shut = True

    def _shut_after_faults(self, patch: str) -> None:
        self.shut(patch, f"switched off after {FAULT_LIMIT} errors of its own")

    def look(self, *, at_end: bool = False) -> None:
        """Looks at what is not told, seldom, and only in the training thread while it is at rest.

        DistributedDataParallel and a backward pass that hangs share a lock: a look from a watchdog
        that is about to end such a process, or from a hook within backward, would wait for ever.
        """
        at_rest = self.tracker.phase == NONE and not self.gates["backward"].shut
        if at_rest and get_ident() == self.tracker.owner:
            for name, look in self.looks.items():
                if not is_off(name):
                    with guard(name):
                        self.looked.extend(look(at_end))

    def note_event(
        self, name: str, duration_ns: int, detail: dict[str, str | int | float | None]
    ) -> None:
        """Keeps an event that just ended until the next flush."""
        from traceml_agent.schema.records import Event

        start = time.perf_counter_ns() - duration_ns
        self.events.append(Event(name, start, duration_ns, self.tracker.step + 1, detail))

    def look_for_strategy(self, root: Any) -> None:
        """Notes how ranks train together when the first root that says so is called."""
        from traceml_agent.capture.strategy import strategy_of_model

        with guard("strategy"):
            found = strategy_of_model(root)
            if found is not None and found not in self.strategies:
                from traceml_agent.schema.records import STRATEGY_EVENT, Event

                self.strategies.add(found)
                detail: dict[str, str | int | float | None] = {"strategy": found}
                now, step = time.perf_counter_ns(), self.tracker.step + 1
                self.events.append(Event(STRATEGY_EVENT, now, None, step, detail))

    def close_step(
        self, step: int, start_ns: int, duration_ns: int, measured: Segment, micro_batches: int
    ) -> None:
        recorder = self.recorder
        if recorder is not None:
            recorder.close_step(step, start_ns, duration_ns, measured, micro_batches)
        discovery = self.discovery
        if discovery is not None and (discovery.wide or not measured.forwards):
            discovery.step_closed(step)
        elif recorder is not None and not self._may_use_cuda:
            # Nothing left to find out: from now on steps go straight to the recorder.
            recorder.on_no_forward = discovery.start_again if discovery is not None else None
            self.tracker.on_close = recorder.close_step
        if self._may_use_cuda and is_in_use(self.torch):
            self._may_use_cuda = False
            self.tracker.device = DeviceTimer(self.torch)

    # What the writer takes

    def pending_records(self) -> "list[Record]":
        """What happened since the last call, steps aside."""
        from traceml_agent.capture.recorder import device_batches
        from traceml_agent.schema.records import Outside, Patches

        records: list[Record] = []
        statuses, outside = dict(self.statuses), self.tracker.outside[:]
        told_statuses, told_outside = self._told
        if statuses != told_statuses:
            records.append(Patches(time.perf_counter_ns(), statuses))
        if outside != told_outside and any(outside):
            phase_ns = dict(zip(PHASES, outside, strict=True))
            records.append(Outside(time.perf_counter_ns(), phase_ns))
        self._told = (statuses, outside)
        while self.events:
            records.append(self.events.popleft())
        records.extend(self._collective_records())
        if self.loaders is not None and not is_off("loader workers"):
            with guard("loader workers"):
                records.extend(self.loaders.take(self.tracker.roles(), scopes.HERE.wants_all))
        if not is_off("scopes"):
            from traceml_agent.capture.span_log import take

            with guard("scopes"):
                records.extend(take(time.perf_counter_ns()))
        if self.snapshots is not None:
            records.extend(self.snapshots.take())
        if self.recorder is not None:
            records.extend(self.recorder.new_faults())
        device = self.tracker.device
        if device is not None and device.resolved:
            records.extend(
                device_batches([device.resolved.popleft() for _ in range(len(device.resolved))])
            )
        return records

    def flush(self) -> None:
        """Writes all that is known now."""
        if self.recorder is not None:
            scopes.HERE.wants_all = True
            try:
                # A signal handler may have interrupted a drain in this very thread.
                self.recorder.drain(timeout_s=FLUSH_S)
            finally:
                scopes.HERE.wants_all = False

    def _collective_records(self) -> "list[Record]":
        records = [self.looked.popleft() for _ in range(len(self.looked))]
        if self.collectives is not None:
            records.extend(self.collectives.take(self.tracker.step, self.config.max_overhead))
        return records

    def hot_path_ns(self) -> int | None:
        """What the patches cost so far; None while too few steps were audited."""
        cost: int | None = self.tracker.audit.total_ns() if self.tracker.audit else None
        if cost is None:
            return None
        if self.collectives is not None:
            cost += int(self.collectives.log.cost_ns)
        return cost if self.snapshots is None else cost + int(self.snapshots.stall_ns)


SESSION = Session()
