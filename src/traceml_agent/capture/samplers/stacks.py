"""Sees now and then in which line of the program the training thread stands, and in which phase.

In a thread of its own: that of the agent may sit in a slow call of NVML or of a disk. Between two
samples lie 0.5 to 1.5 intervals, drawn anew each time, so that no step keeps pace with them.

A sample stands for one interval and for the time that it came late. Late means that the thread was
kept from running: most often by code that holds the interpreter lock, which is then at work for as
long, and is seen where it lets go.
"""

import os
import sys
import threading
import time
from random import Random
from typing import TYPE_CHECKING

from traceml_agent.capture.frames import current_frames, switch_as_before, switch_faster
from traceml_agent.capture.open_step import pause_limit
from traceml_agent.capture.source_text import SourceText
from traceml_agent.capture.stack_tally import MOST_ROWS, Sample, StackTally
from traceml_agent.guard import guard, is_off
from traceml_agent.schema.phases import INPUT_WAIT, PHASES
from traceml_agent.schema.stacks import OUTSIDE, RESIDUAL, UNKNOWN, Stacks

if TYPE_CHECKING:
    from traceml_agent.capture.samplers.causes import CauseWatch
    from traceml_agent.capture.session import Session

LATE_NS = 1_000_000
"""A sample that was kept waiting for longer has missed what ran when it was due. Chosen: ten times
what a thread takes to wake up on a machine at rest."""
YIELD_PART = 0.99
"""Of the switch interval. A sample that waited for less did not take the lock: the program let go
of it. Chosen: a thread that takes it has waited for the whole of it after it woke up."""
LONGEST_NS = 5_000_000_000
"""Of one sample. Chosen: what is longer was a stopped process, as StallWatch has it."""
MOST_CPU_SHARE = 0.005
"""Of a core. Source: the promise of docs/overhead.md."""
CALM_PART = 0.4
"""Below this part of it the next faster pace fits with some room. Chosen."""
CHECK_EVERY = 128
"""Samples between two looks at the own cost, 6 s."""
SLOWEST_NS = 1_000_000_000
FIRST_WRITE_NS = 2_000_000_000
LEAST_WRITE_NS = 5_000_000_000
WRITE_PART = 0.1
"""The table is written again when it is a tenth older: a killed run loses that part at most, and a
run of a month writes two hundred."""
MOST_OPEN = 2_000
"""Samples of one step that are kept back. Chosen: a step of 100 s."""
JOIN_S = 0.2
ROWS_OF_RANKS, LEAST_ROWS = 64 * MOST_ROWS, 20
"""Rows of all ranks together, and of one. Chosen: a fold of 1,024 ranks reads 20,000 of them."""
START_SLACK_S = 0.02
"""The kernel tells when a process began, and when a file was written, to 10 ms."""

clock = time.perf_counter_ns


class StackSampler:
    """Started in the agent's thread once a step is closed; ended there."""

    def __init__(self, session: "Session", hz: float, guest: "CauseWatch | None" = None) -> None:
        """`guest` looks too each time that a sample is taken."""
        self._session = session
        self._guest = guest
        self._interval_ns = self._shortest_ns = int(1e9 / hz)
        self._tally = StackTally()
        self._source: SourceText | None = None
        self._directory = working_directory()
        self._stop = threading.Lock()
        self._stop.acquire()
        self._thread = threading.Thread(target=self._run, name="traceml-stacks", daemon=True)
        self._since_ns = clock()
        self._write_at = self._since_ns + FIRST_WRITE_NS
        self._step = session.tracker.step
        self._open: list[Sample] = []  # of the step that is not closed yet
        self.cpu_ns = 0

    def start(self) -> None:
        """Begins to sample."""
        self._thread.start()
        if self._session.config.exact_lines:
            switch_faster()

    def stop(self) -> None:
        """Ends sampling; what was counted can still be taken."""
        switch_as_before()
        if self._stop.locked():
            self._stop.release()
        self._thread.join(JOIN_S)
        if not self._thread.is_alive():
            self._settle(at_end=True)

    def due(self) -> list[Stacks]:
        """The table, if it is time to write it again."""
        if clock() < self._write_at:
            return []
        return [self.table()]

    def table(self) -> Stacks:
        """All that was seen so far."""
        now = clock()
        self._write_at = now + int(max(LEAST_WRITE_NS, WRITE_PART * (now - self._since_ns)))
        if self._source is None:
            self._source = SourceText(started_wall_s(self._session), self._directory)
        recorder = self._session.recorder
        ranks = 1 if recorder is None else recorder.identity.world_size
        most_rows = max(LEAST_ROWS, min(MOST_ROWS, ROWS_OF_RANKS // ranks))
        return Stacks(
            monotonic_ns=now,
            since_ns=self._since_ns,
            step=self._session.tracker.step,
            interval_ns=self._interval_ns,
            **self._tally.take(self._source, most_rows)._asdict(),
        )

    def _run(self) -> None:
        random = Random()  # not the one that the program may have seeded
        waits, rest = _RunDelay(), self._session.rest
        samples = 0
        begun, begun_cpu = clock(), time.thread_time_ns()
        while self._guest is not None or not is_off("stacks"):
            wait_ns = int(self._interval_ns * (0.5 + random.random()))
            due = clock() + wait_ns
            if self._stop.acquire(timeout=wait_ns / 1e9):
                break
            if rest.is_on:
                wait_ns = rest.peek(random.random())
                due = clock() + wait_ns
                if self._stop.acquire(timeout=wait_ns / 1e9):
                    break
            late_ns = max(0, clock() - due)
            waited_ns = late_ns - min(late_ns, waits.since_last())
            # No line of the program runs while garbage is collected.
            collected = 0 if self._guest is None else self._guest.collected_since(due)
            if not is_off("stacks"):
                with guard("stacks"):
                    self._settle()
                    if not rest.is_on:  # else nobody knows which phase is open
                        self._sample(due, late_ns, waited_ns, collected)
            if self._guest is not None:
                self._guest.look(waited_ns)
            self.cpu_ns = cpu = time.thread_time_ns()
            samples += 1
            if samples % CHECK_EVERY == 0:
                now = clock()
                self._pace((cpu - begun_cpu) / max(1, now - begun))
                begun, begun_cpu = now, cpu
        if self._guest is not None:
            self._guest.end()

    def _pace(self, cpu_share: float) -> None:
        """Samples half as often where that costs too much, and again as often once it does not."""
        if cpu_share > MOST_CPU_SHARE:
            self._interval_ns = min(2 * self._interval_ns, SLOWEST_NS)
        elif cpu_share < CALM_PART * MOST_CPU_SHARE:
            self._interval_ns = max(self._interval_ns // 2, self._shortest_ns)

    def _sample(self, due: int, late_ns: int, waited_ns: int, collected: int = 0) -> None:
        tracker = self._session.tracker
        frame = current_frames().get(tracker.owner)
        phase, since = tracker.phase, tracker.since
        if frame is None:
            return
        name = PHASES[phase] if phase >= 0 else RESIDUAL if tracker.segment.start else OUTSIDE
        forced = waited_ns >= YIELD_PART * 1e9 * sys.getswitchinterval()
        late_ns, waited_ns = max(0, late_ns - collected), max(0, waited_ns - collected)
        late = waited_ns >= LATE_NS
        before = late and since > due
        if before:
            # What ran when it was due has ended: before a phase that is most often the residual.
            name = RESIDUAL if phase >= 0 else UNKNOWN
        yielded = late and not forced
        weight_ns = self._interval_ns + min(late_ns, LONGEST_NS)
        collated = fetched = None
        begun, loader, item, collate = tracker.collating
        if late and phase == INPUT_WAIT and since <= due:
            if begun >= since:
                if due < begun:
                    fetched, yielded = item, True
                elif yielded:
                    collated = collate
            elif yielded and loader == tracker.fetch_key:  # still among the items
                fetched = item
        sample = self._tally.seen(
            frame, name, weight_ns, late=late, before=before, yielded=yielded, collated=collated,
            fetched=fetched,
        )  # fmt: skip
        self._open.append(sample)
        if len(self._open) >= MOST_OPEN:
            self._settle(at_once=True)

    def _settle(self, *, at_once: bool = False, at_end: bool = False) -> None:
        """Counts what was seen in a step once the step is closed: the end of a loop is in none."""
        tracker = self._session.tracker
        if self._step == tracker.step and not (at_once or at_end):
            return
        self._step = tracker.step
        samples, self._open = self._open, []
        rest_ns = sum(s.weight_ns for s in samples if s.key[0] == RESIDUAL)
        idle = not at_once and (at_end or rest_ns > pause_limit(tracker.last_duration))
        for sample in samples:
            is_idle = idle and sample.key[0] == RESIDUAL
            self._tally.count(sample.outside() if is_idle else sample)


class _RunDelay:
    """How long this thread waited for a core; the rest of a late sample is the interpreter lock."""

    def __init__(self) -> None:
        try:
            flags = os.O_RDONLY | os.O_CLOEXEC
            self._fd = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", flags)
        except OSError:
            self._fd = -1
        self._last = 0
        self.since_last()

    def since_last(self) -> int:
        """Nanoseconds since the last call; 0 where the kernel does not say."""
        if self._fd < 0:
            return 0
        try:
            total = int(os.pread(self._fd, 100, 0).split()[1])
        except (OSError, IndexError, ValueError):
            return 0
        delay, self._last = total - self._last, total
        return delay


def working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return os.sep


def started_wall_s(session: "Session") -> float:
    """When the code of the program cannot have been loaded yet: as the process began."""
    from traceml_agent.capture.opening import process_age_ns

    age_ns = process_age_ns()
    if session.torch_imported_ns is not None:  # of the parent, where this is a forked child
        age_ns = max(age_ns, clock() - session.torch_imported_ns)
    return time.time() - age_ns / 1e9 + START_SLACK_S
