"""What a framework does beside its training: evaluation, saving, logging, by its own methods.

In a loop of one's own these are calls of the model and of `torch.save`, and both are seen. The
methods of a framework do more: they build loaders, gather, compute metrics, write safetensors,
delete old checkpoints and talk to trackers. With the method as the bounds, all of it has a name.
"""

import inspect
import os
import sys
import time
from _thread import get_ident
from collections.abc import Callable, Sequence
from typing import Any

from traceml_agent.capture.open_step import NONE
from traceml_agent.capture.patches.checkpoint import Detail, detail_of
from traceml_agent.capture.patches.disguise import hide_frame, like
from traceml_agent.capture.session import SESSION
from traceml_agent.capture.user_code import user_line
from traceml_agent.guard import guard
from traceml_agent.schema.phases import CHECKPOINT, EVAL, LOGGING, PATCH_OF_PHASE, PHASES
from traceml_agent.schema.records import FRAMEWORK_EVENT, Event

NOTED_NS = 1_000_000
"""A call that logs for so long is an event. Source: as a garbage collection."""
GATHERED_NS = 10_000_000
"""Shorter ones are one together: the last of them, with the sum of all. The first call is one as
well, for its line. Chosen: an event costs 15 us, which is then nothing."""
NOTED_EACH = 1_000
"""After so many events each next one has to take twice as long: a run that logs in each step leaves
some thousands of them. The time itself is that of the phase, and exact."""

clock = time.perf_counter_ns
Method = Callable[..., Any]
End = Callable[[], None]
Before = Callable[..., str | None]
"""Called with the detail of the event and the arguments of the call; returns what it counts as."""
_WRAPPERS: list[Any] = []
_INTERRUPTED_NS = [0]
"""What checkpoints took of the evaluation that is open: it goes on after them."""


class Framework:
    """What one framework did in this process so far. Only the training thread writes it."""

    def __init__(self, name: str, *packages: str) -> None:
        """`packages`: any of them has its version, if its name is another one."""
        self.name = name
        self._packages = packages or (name,)
        self._begin()
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        self.counts: dict[str, int] = {}
        self.epochs: float | None = None
        self.steps: int | None = None
        self._is_told = True
        self._unnoted_ns = 0
        self._noted = 0

    def count(self, kind: str) -> None:
        """One more of `evaluations`, `checkpoints`, ..."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self._is_told = False
        SESSION.looks[f"framework {self.name}"] = self._look

    def trained(self, epochs: float, steps: int) -> None:
        """A training ended, with so many epochs and steps by the framework's own account."""
        self.count("trainings")
        self.epochs = (self.epochs or 0.0) + epochs
        self.steps = (self.steps or 0) + steps
        self.tell()

    def tell(self) -> None:
        """Writes down what is known by now; a later one wins."""
        SESSION.events.append(self._event())

    def logged(self, elapsed_ns: int, call: str, caller: Any) -> None:
        """Logging took so long, by this call in this frame."""
        self._unnoted_ns += elapsed_ns
        often = self._noted // NOTED_EACH
        is_long = elapsed_ns >= NOTED_NS << often
        if not self._noted or is_long or self._unnoted_ns >= GATHERED_NS << often:
            self._noted += 1
            detail: Detail = {"call": call, "at": user_line(caller), "sum_ns": self._unnoted_ns}
            SESSION.note_event(PHASES[LOGGING], elapsed_ns, detail)
            self._unnoted_ns = 0

    def _look(self, at_end: bool) -> Sequence[Event]:
        return [self._event()] if at_end and not self._is_told else []

    def _event(self) -> Event:
        self._is_told = True
        # Not known before the package is imported to its end.
        known = (getattr(sys.modules.get(name), "__version__", None) for name in self._packages)
        detail: Detail = {
            "framework": self.name,
            "version": next((version for version in known if isinstance(version, str)), None),
            **self.counts,
        }
        if self.epochs is not None:
            detail |= {"epochs": self.epochs, "steps": self.steps}
        return Event(FRAMEWORK_EVENT, clock(), None, SESSION.tracker.step, detail)


def patch(
    owner: Any, name: str, wrap: Callable[..., Method], *args: Any, **kwargs: Any
) -> list[str]:
    """Puts a wrapper around a method, once; its name in a list if this version of the class has
    none."""
    original = vars(owner).get(name, getattr(owner, name, None))
    if original in _WRAPPERS:
        return []
    if not inspect.isfunction(original):
        return [name]
    wrapper = standing_for(wrap(original, *args, **kwargs), original)
    _WRAPPERS.append(wrapper)
    setattr(owner, name, wrapper)
    return []


def standing_for(wrapper: Any, original: Any) -> Any:
    """The wrapper, with the signature and the source of the original: libraries look at the
    parameters before they pass some, and some (Unsloth, Axolotl) rewrite the source."""
    made = like(wrapper, original)
    made.__wrapped__ = original
    return made


def status_of(missing: list[str]) -> str:
    """The status of the patch."""
    if not missing:
        return "active"
    return f"active, but for what this version does not have: {', '.join(missing)}"


def in_phase(
    original: Method,
    phase: int,
    framework: Framework,
    kind: str,
    call: str,
    before: Before | None = None,
    after: Callable[[Any, Detail], None] | None = None,
) -> Method:
    """The method, all of it one phase, EVAL or CHECKPOINT, where none is open; a checkpoint
    interrupts an evaluation. `kind` counts it; `before` and `after` know more of the object that is
    called."""
    tracker, gate = SESSION.tracker, SESSION.gates[PATCH_OF_PHASE[PHASES[phase]]]

    def method(*args: Any, **kwargs: Any) -> Any:
        within = tracker.phase
        fits = within == NONE or (phase == CHECKPOINT and within == EVAL and tracker.evaluating)
        if gate.shut or not fits or get_ident() != tracker.owner or SESSION.torch is None:
            return original(*args, **kwargs)
        detail: Detail = {"call": call}
        counted: str | None = kind
        with guard("call of a framework"):
            caller = sys._getframe(1)
            if phase == CHECKPOINT:
                detail = detail_of(call, caller)
            else:
                detail["at"] = user_line(caller)
            del caller
            if before is not None:
                counted = before(detail, *args, **kwargs)
        if counted is None:
            return original(*args, **kwargs)
        failed = 1
        previous = tracker.enter(phase)
        begun = tracker.since
        tracker.evaluating += phase == EVAL
        if within == NONE:
            _INTERRUPTED_NS[0] = 0
        try:
            result = original(*args, **kwargs)
            failed = 0
            return result
        except BaseException as error:
            hide_frame(error)
            raise
        finally:
            if tracker.phase == phase:
                tracker.leave(previous)
            tracker.evaluating -= phase == EVAL
            elapsed = tracker.since - begun
            with guard("framework"):
                if within != NONE:
                    _INTERRUPTED_NS[0] += elapsed
                elif phase == EVAL:
                    elapsed -= _INTERRUPTED_NS[0]
                framework.count(counted)
                if failed:
                    detail["failed"] = 1
                if after is not None:
                    after(args[0], detail)
                name = counted if counted == SANITY_CHECK else PHASES[phase]
                SESSION.note_event(name, elapsed, detail)
                framework.tell()

    return method


SANITY_CHECK = "sanity_check"
"""An evaluation before training, whose event has this name of its own."""


def as_logging(
    original: Method, framework: Framework, call: str, applies: Callable[..., bool] | None = None
) -> Method:
    """The method, all of it logging where no phase is open. `applies` is asked with its arguments
    whether it goes to any logger."""
    tracker, gate = SESSION.tracker, SESSION.gates[PATCH_OF_PHASE[PHASES[LOGGING]]]

    def method(*args: Any, **kwargs: Any) -> Any:
        if gate.shut or get_ident() != tracker.owner:
            return original(*args, **kwargs)
        if applies is not None:
            is_told = False
            with guard("logging"):
                is_told = applies(*args, **kwargs)
            if not is_told:
                return original(*args, **kwargs)
        framework.count("logs")
        if tracker.phase >= 0:  # a part of it; in the closure of an optimizer it is one of its own
            return original(*args, **kwargs)
        previous = tracker.enter(LOGGING)
        try:
            return original(*args, **kwargs)
        except BaseException as error:
            hide_frame(error)
            raise
        finally:
            elapsed = tracker.leave(previous)
            with guard("logging"):
                framework.logged(elapsed, call, sys._getframe(1))

    return method


def around(original: Method, where: str, begin: Callable[[Any], End | None]) -> Method:
    """The method; `begin` is called with its object before, and what that returns after it, however
    it ends."""

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        end: End | None = None
        with guard(where):
            end = begin(self)
        try:
            return original(self, *args, **kwargs)
        except BaseException as error:
            hide_frame(error)
            raise
        finally:
            if end is not None:
                with guard(where):
                    end()

    return method


def to_its_end(original: Method, where: str, begin: Callable[[Any], End]) -> Method:
    """A training loop: its last step ends with it, whatever the program does afterwards. `begin` is
    called with the object that trains, and what it returns at the end."""
    tracker = SESSION.tracker

    def training(trainer: Any) -> End:
        tell: End | None = None
        with guard(where):
            tell = begin(trainer)

        def end() -> None:
            if get_ident() == tracker.owner:
                tracker.end_training()
                if tell is not None:
                    tell()

        return end

    return around(original, where, training)
