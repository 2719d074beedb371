"""Stretches of which a framework tells: an evaluation, a sanity check, a checkpoint, logging.

Where the time of one is known already it is the same phase as without the framework: what a patch
would see inside is counted with it, once. Logging is no phase; its time stays in the residual, and
an event says how much it was.
"""

import time
from _thread import get_ident
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from traceml_agent.capture.framework import NOTED_EACH, OPEN_LOGGING, standing_for
from traceml_agent.capture.open_step import NONE
from traceml_agent.capture.patches.checkpoint import Detail
from traceml_agent.capture.patches.disguise import hide_frame
from traceml_agent.capture.session import SESSION
from traceml_agent.guard import guard
from traceml_agent.schema.phases import CHECKPOINT, EVAL, PATCH_OF_PHASE, PHASES
from traceml_agent.schema.records import LOGGING_EVENT, Event

PHASE_OF_KIND = {"eval": EVAL, "sanity_check": EVAL, "checkpoint": CHECKPOINT, "logging": NONE}
LOGGING_EVERY_NS = 1_000_000_000
"""Calls of loggers within this time are one event. Chosen: as often as a sample."""
LOGGING_LONG_NS = 10_000_000
"""A call that takes longer is noted at once. Chosen: long beside most steps."""

clock = time.perf_counter_ns


class Stretch:
    """A stretch of the training thread, from `with` to its end, as an event and a phase.

    Inside one of the same kind, and in another thread, it is nothing: who tells twice is heard
    once. `detail` may be filled until the end. A checkpoint interrupts an evaluation; its time is
    not in that of the evaluation.
    """

    __slots__ = ("_begun", "_inner_ns", "_phase", "_previous", "active", "detail", "kind")

    def __init__(self, kind: str, detail: Detail | None = None) -> None:
        self.kind = kind
        self.detail: Detail = {} if detail is None else detail
        self.active = False
        self._phase = PHASE_OF_KIND[kind]
        self._previous = NONE
        self._begun = 0
        self._inner_ns = 0

    def __enter__(self) -> "Stretch":
        tracker = SESSION.tracker
        if SESSION.torch is None or get_ident() != tracker.owner:
            return self
        if any(other._phase == self._phase for other in _OPEN):
            return self
        if self._phase != NONE:
            within = tracker.phase
            if within != NONE and not (within == EVAL and _OPEN and self._phase == CHECKPOINT):
                return self  # a part of what runs: a compilation, a call of the model
            if SESSION.gates[PATCH_OF_PHASE[PHASES[self._phase]]].shut:
                return self
            self._previous = tracker.enter(self._phase)
            tracker.evaluating += self._phase == EVAL
        elif OPEN_LOGGING:
            return self
        else:
            OPEN_LOGGING.append(self.kind)
        self.active = True
        _OPEN.append(self)
        self._begun = clock()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self.active:
            return
        self.active = False
        elapsed = clock() - self._begun
        if self._phase == NONE:
            OPEN_LOGGING.clear()
        else:
            SESSION.tracker.evaluating -= self._phase == EVAL
            if SESSION.tracker.phase == self._phase:
                SESSION.tracker.leave(self._previous)
        while _OPEN and _OPEN.pop() is not self:
            pass  # of a generator that nobody ended
        if _OPEN and self._phase != NONE:
            _OPEN[-1]._inner_ns += elapsed
        with guard("stretch"):
            if error is not None:
                self.detail["failed"] = 1
            if self._phase == NONE:
                LOGGING.add(elapsed, SESSION.tracker.phase)
            else:
                SESSION.note_event(self.kind, elapsed - self._inner_ns, self.detail)


_OPEN: list[Stretch] = []
"""Of the training thread, outermost first."""


class Logging:
    """What loggers took: few events for many calls."""

    __slots__ = ("_calls", "_elapsed", "_in_phases", "_noted", "_noted_at")

    def __init__(self) -> None:
        self._calls = self._elapsed = self._in_phases = self._noted_at = self._noted = 0

    def add(self, elapsed: int, phase: int) -> None:
        """One call ended, in this phase: an evaluation logs too, and that is no residual."""
        self._calls += 1
        self._elapsed += elapsed
        if phase >= 0:
            self._in_phases += elapsed
        SESSION.looks["logging"] = self.look
        rarer = self._noted // NOTED_EACH
        quiet_ns = clock() - self._noted_at
        if elapsed >= LOGGING_LONG_NS << rarer or quiet_ns >= LOGGING_EVERY_NS << rarer:
            self._noted += 1
            SESSION.events.append(self._event())

    def look(self, at_end: bool) -> Sequence[Event]:
        """What is left at the end."""
        return [self._event()] if at_end and self._calls else []

    def _event(self) -> Event:
        now = self._noted_at = clock()
        elapsed = self._elapsed
        detail: Detail = {
            "call": "log_metrics",
            "calls": self._calls,
            "in_phases_ns": self._in_phases,
        }
        self._calls = self._elapsed = self._in_phases = 0
        return Event(LOGGING_EVENT, now - elapsed, elapsed, SESSION.tracker.step + 1, detail)


LOGGING = Logging()

_WRAPPERS: set[Any] = set()


def watch(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Puts `make(original)` in the place of a method of a class, once."""
    original = vars(owner)[name] if name in vars(owner) else getattr(owner, name)
    if original in _WRAPPERS:
        return
    wrapper = standing_for(make(original), original)
    _WRAPPERS.add(wrapper)
    setattr(owner, name, wrapper)


def within(begin: Callable[..., Stretch | None], end: Callable[[Any, Stretch], None] | None) -> Any:
    """Makes wrappers for `watch`: a call is the stretch that `begin` gives for the same
    arguments (None: it is none), and `end` fills in what is known afterwards."""

    def make(original: Any) -> Any:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            stretch = None
            with guard("stretch"):
                stretch = begin(self, *args, **kwargs)
                if stretch is not None:
                    stretch.__enter__()
            if stretch is None or not stretch.active:
                return original(self, *args, **kwargs)
            try:
                result = original(self, *args, **kwargs)
            except BaseException as error:
                stretch.__exit__(type(error), error, None)
                hide_frame(error)
                raise
            if end is not None:
                with guard("stretch"):
                    end(self, stretch)
            stretch.__exit__(None, None, None)
            return result

        return call

    return make
