"""StallWatch: notices that no step is closed any more, and writes down where the process stands.

It lives in the agent's thread and looks at two numbers that are there in any case: the number of
the last closed step, and when a patch was last called. Nothing is done to the process.
"""

import time
from collections import deque
from typing import TYPE_CHECKING

from traceml_agent.capture.open_step import NEVER
from traceml_agent.guard import guarded
from traceml_agent.schema.phases import LONG_PHASES, PHASES
from traceml_agent.schema.records import Event

if TYPE_CHECKING:
    from traceml_agent.capture.recorder import Recorder
    from traceml_agent.capture.session import Session

STEPS_RATIO = 10
"""A stall lasts 10 median steps at least. Source: issue of the feature; with the floor of
TRACEML_HANG_S it leaves alone whatever a loop does now and then between two steps."""
RECENT = 64
"""Ticks whose steps the median is made of. Chosen: the last half minute."""
PAUSE_NS = 5_000_000_000
"""The agent's thread sleeps so much longer than it asked for only if the whole process stood still.
Chosen: ten intervals; a machine that is busy delays a thread by less."""
MOST_STALLS = 100
"""Written down with their stacks, in one process. Chosen: some megabytes at most."""


class StallWatch:
    """Ticks in the agent's thread; all its state belongs to that thread."""

    def __init__(self, session: "Session", recorder: "Recorder") -> None:
        self._session = session
        self._recorder = recorder
        self._floor_ns = int(session.config.hang_s * 1e9)
        self._step = 0
        self._since = 0
        self._look_at = NEVER
        self._is_written = False  # as a stall that came to rest
        self._is_noted = False  # as one that is busy, or waits for a person
        self._may_last = False  # it is in a phase that takes as long as it takes
        self._written = 0
        self._stood: str | None = None  # the stack of the last look
        self._recent: deque[tuple[int, int]] = deque(maxlen=RECENT)

    def wait_for_first(self, since_ns: int) -> None:
        """No step was closed at all since then; called before the first tick."""
        self._since = since_ns
        self._look_at = since_ns + self._floor_ns

    def tick(self, now: int) -> None:
        """Called twice a second: a comparison or two unless something is wrong."""
        step = self._recorder.last_step
        if step != self._step:
            if self._is_written and not self._may_last and self._step:
                self._end_stall(now)
            self._recent.append((self._session.tracker.last_duration, step - self._step))
            self._step = step
            self._since = now
            self._is_written = self._is_noted = False
            self._look_at = now + self._floor_ns if self._floor_ns else NEVER
        elif now >= self._look_at:
            self._look(now)

    def overslept(self, late_ns: int) -> None:
        """The thread slept `late_ns`, PAUSE_NS or more, longer than it asked for.

        Then Python did not run at all: the process was stopped (SIGSTOP, a debugger of C code, a
        frozen container), or code in C held the interpreter lock. That is no time in which a step
        could have been closed.
        """
        self._since += late_ns
        if self._look_at != NEVER:
            self._look_at += late_ns
        closed = self._recorder.last_step - self._step
        if closed * self._typical_ns() < late_ns / 2:  # else only this thread was late
            start = time.perf_counter_ns() - late_ns
            self._recorder.write([Event("pause", start, late_ns, self._recorder.last_step + 1)])

    def _look(self, now: int) -> None:
        """The floor is over. Is it long for this training, and is nothing at all going on?"""
        is_shut = any(gate.shut for gate in self._session.gates.values())
        if is_shut and not self._session.rest.is_on:
            self._look_at = NEVER  # patches that pass through close no steps
            return
        limit = max(self._floor_ns, STEPS_RATIO * self._typical_ns())
        if now < self._since + limit:
            self._look_at = self._since + limit
            return
        quiet = now - max(self._since, self._session.tracker.since, self._session.rest.end)
        if quiet < limit:
            # Busy, as in an evaluation. If it comes to rest one day, that is written down too.
            self._look_at = now + limit - quiet
            if not self._is_noted:
                self._write(now, limit, quiet)
            return
        # Start-up has many parts: where it stands is written again each time it took twice as long.
        self._look_at = NEVER if self._step else now + now - self._since
        if self._write(now, limit, quiet) is not None:
            self._look_at = now + limit  # the person may go on, into a real stall
        else:
            self._is_written = True

    def _typical_ns(self) -> int:
        """The median step, each tick standing for the steps that were closed in it."""
        recent = sorted(self._recent)
        half = sum(steps for _, steps in recent) / 2
        for duration, steps in recent:
            half -= steps
            if half <= 0:
                return duration
        return 0

    def _write(self, now: int, limit: int, quiet: int) -> str | None:
        """Writes the stall once; returns what it waits for if that is a person."""
        from traceml_agent.capture.samplers.threads import input_awaited, stacks_of_all_threads
        from traceml_agent.schema.stalls import Stall

        tracker = self._session.tracker
        phase = PHASES[tracker.phase] if tracker.phase >= 0 else None
        self._may_last = phase in LONG_PHASES
        awaited = input_awaited(tracker.owner)
        if awaited is not None and self._is_noted:
            return awaited
        self._is_noted = True
        self._written += 1
        if self._written > MOST_STALLS:
            return awaited
        stacks, left_out = stacks_of_all_threads(tracker.owner)
        stall = Stall(
            monotonic_ns=now,
            step=self._step,
            since_ns=self._since,
            limit_ns=limit,
            quiet_ns=quiet,
            phase=phase,
            input_from=awaited,
            threads=stacks,
            threads_left_out=left_out,
        )
        self._recorder.write([stall])
        self._recorder.hurry_digest()
        # After the stacks are safe, and never while the training thread may be inside c10d.
        stands = stacks[0].stack if stacks and stacks[0].training else None
        was_here, self._stood = stands is not None and stands == self._stood, stands
        if awaited is None and quiet >= limit and (self._step or was_here):
            guarded("process groups", self._write_process_groups)
        return awaited

    def _write_process_groups(self) -> None:
        from traceml_agent.capture.samplers.process_groups import process_groups
        from traceml_agent.schema.stalls import ProcessGroups

        groups = process_groups()
        if groups:
            self._recorder.write([ProcessGroups(time.perf_counter_ns(), self._step, groups)])
            self._recorder.hurry_digest()

    def _end_stall(self, now: int) -> None:
        """A step was closed after all: it was a stall, and no hang."""
        self._recorder.write([Event("stall", self._since, now - self._since, self._step + 1)])
