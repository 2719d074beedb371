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
from collections.abc import Callable
from typing import Any

from traceml_agent.capture.open_step import NONE
from traceml_agent.capture.patches.checkpoint import Detail, detail_of
from traceml_agent.capture.patches.disguise import hide_frame, like
from traceml_agent.capture.session import SESSION
from traceml_agent.capture.user_code import user_line
from traceml_agent.guard import guard
from traceml_agent.schema.phases import CHECKPOINT, EVAL, PATCH_OF_PHASE, PHASES
from traceml_agent.schema.records import FRAMEWORK_EVENT, LOGGING_EVENT, Event

NOTED_NS = 100_000
"""Logging is an event once it took so long, alone or together. Chosen: 1 % of a step of 10 ms."""
NOTED_EACH = 1_000
"""After so many events each next one stands for twice the time: a run that logs in each step leaves
some thousands of them, and their sum stays right."""

clock = time.perf_counter_ns
Method = Callable[..., Any]
OPEN_LOGGING: list[str] = []
"""The framework that is logging: one that another one calls meanwhile is a part of it."""


class Framework:
    """What one framework did in this process so far. Only the training thread writes it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._begin()
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        self.counts: dict[str, int] = {}
        self.epochs: float | None = None
        self.steps: int | None = None
        OPEN_LOGGING.clear()
        self._unnoted_ns = 0
        self._noted = 0

    def count(self, kind: str) -> None:
        """One more of `evaluations`, `checkpoints`, ..."""
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def trained(self, epochs: float, steps: int) -> None:
        """A training ended, with so many epochs and steps by the framework's own account."""
        self.count("trainings")
        self.epochs = (self.epochs or 0.0) + epochs
        self.steps = (self.steps or 0) + steps
        self.tell()

    def tell(self) -> None:
        """Writes down what is known by now; a later one wins."""
        # Not known before the package is imported to its end.
        version = getattr(sys.modules.get(self.name), "__version__", None)
        detail: dict[str, str | int | float | None] = {
            "framework": self.name,
            "version": version if isinstance(version, str) else None,
            **self.counts,
        }
        if self.epochs is not None:
            detail |= {"epochs": self.epochs, "steps": self.steps}
        step = SESSION.tracker.step
        SESSION.events.append(Event(FRAMEWORK_EVENT, clock(), None, step, detail))

    def begin_logging(self) -> bool:
        """Whether this is the outermost call that logs."""
        if OPEN_LOGGING:
            return False
        OPEN_LOGGING.append(self.name)
        return True

    def end_logging(self, elapsed_ns: int, call: str) -> None:
        """Logging took so long, phases in it aside."""
        OPEN_LOGGING.clear()
        self._unnoted_ns += max(0, elapsed_ns)
        if self._unnoted_ns >= NOTED_NS << (self._noted // NOTED_EACH):
            self._noted += 1
            SESSION.note_event(LOGGING_EVENT, self._unnoted_ns, {"call": call})
            self._unnoted_ns = 0


def patch(
    owner: type, name: str, wrap: Callable[..., Method], *args: Any, **kwargs: Any
) -> list[str]:
    """Puts a wrapper around a method; its name in a list if this version of the class has none."""
    original = vars(owner).get(name)
    if not inspect.isfunction(original):
        return [name]
    setattr(owner, name, standing_for(wrap(original, *args, **kwargs), original))
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


def in_phase(original: Method, phase: int, framework: Framework, kind: str, call: str) -> Method:
    """The method, all of it in one phase where none is open; `kind` counts it."""
    tracker, gate = SESSION.tracker, SESSION.gates[PATCH_OF_PHASE[PHASES[phase]]]

    def method(*args: Any, **kwargs: Any) -> Any:
        if gate.shut or tracker.phase != NONE or get_ident() != tracker.owner:
            return original(*args, **kwargs)
        detail: Detail = {"call": call}
        with guard("line of a framework's call"):
            caller = sys._getframe(1)
            if phase == CHECKPOINT:
                detail = detail_of(call, caller)
            else:
                detail["at"] = user_line(caller)
            del caller
        failed = 1
        previous = tracker.enter(phase)
        tracker.evaluating += phase == EVAL
        try:
            result = original(*args, **kwargs)
            failed = 0
            return result
        except BaseException as error:
            hide_frame(error)
            raise
        finally:
            elapsed = tracker.leave(previous)
            tracker.evaluating -= phase == EVAL
            with guard("framework"):
                framework.count(kind)
                if failed and phase == CHECKPOINT:
                    detail["failed"] = 1
                SESSION.note_event(PHASES[phase], elapsed, detail)
                framework.tell()

    return method


def to_its_end(original: Method, where: str, told: Callable[[Any], None] | None = None) -> Method:
    """A training loop: its last step ends with it, whatever the program does afterwards. `told` is
    called with the object that trained."""
    tracker = SESSION.tracker

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(self, *args, **kwargs)
        except BaseException as error:
            hide_frame(error)
            raise
        finally:
            with guard(where):
                if get_ident() == tracker.owner:
                    tracker.end_training()
                    if told is not None:
                        told(self)

    return run


def as_logging(original: Method, framework: Framework, call: str) -> Method:
    """The method, its time noted as logging where no phase is open: a part of the residual."""
    tracker = SESSION.tracker

    def method(*args: Any, **kwargs: Any) -> Any:
        if get_ident() != tracker.owner:
            return original(*args, **kwargs)
        framework.count("logs")
        if tracker.phase != NONE or not framework.begin_logging():
            return original(*args, **kwargs)
        segment = tracker.segment
        before = sum(segment.acc)
        begun = clock()
        try:
            return original(*args, **kwargs)
        except BaseException as error:
            hide_frame(error)
            raise
        finally:
            elapsed = clock() - begun
            with guard("framework"):
                now = tracker.segment  # another one: what is in it was measured in here
                inside = sum(now.acc) - (before if now is segment else 0)
                framework.end_logging(elapsed - inside, call)

    return method
