"""Bracket: the context manager around one step, whose bounds the program gives."""

from _thread import get_ident
from collections.abc import Callable
from types import TracebackType
from typing import Any

from traceml_agent.capture.decorated import decorated
from traceml_agent.capture.open_step import NONE
from traceml_agent.capture.patches.disguise import compiling_test
from traceml_agent.capture.patches.running import running_updates
from traceml_agent.capture.session import SESSION
from traceml_agent.guard import guard
from traceml_agent.schema.phases import EVAL, FORWARD, OPTIMIZER


class Bracket:
    """One step. Inside another one, within an update or a backward pass, or in a thread beside the
    one that trains it does nothing."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._folded = 0  # how often it was entered and does nothing

    def __enter__(self) -> "Bracket":
        torch = SESSION.torch
        if torch is None:
            self._folded += 1
            return self
        if compiling_test(torch)():
            return self
        tracker = SESSION.tracker
        if tracker.bracket is not None or SESSION.brackets.shut or not _may_begin():
            self._folded += 1
            return self
        if self._model is not None and tracker.probe.wants_parameter():
            with guard("model of a step"):
                tracker.probe.watch(self._model)
                SESSION.look_for_strategy(self._model)
        tracker.begin_bracket(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if SESSION.torch is not None and compiling_test(SESSION.torch)():
            return
        if self._folded:
            self._folded -= 1
            return
        tracker = SESSION.tracker
        if tracker.bracket is not self or SESSION.brackets.shut:
            return  # forgotten after an error of ours, in a forked child, or after `shutdown`
        if get_ident() == tracker.owner:
            tracker.end_bracket(failed=kind is not None)
        else:
            tracker.bracket = None  # a generator that is closed elsewhere: its step is not known

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """As a decorator: a bracket for each call, which may be in several threads at once."""
        return decorated("trace_step", function, lambda: Bracket(self._model))


_AROUND = (NONE, FORWARD, EVAL, OPTIMIZER)
"""Phases that a step may begin in: the loop may stand in the `forward` of a module. That of an
optimizer is left open where its step raised."""


def _may_begin() -> bool:
    """Whether this is the thread that trains, and not inside an update or a backward pass."""
    tracker = SESSION.tracker
    if get_ident() != tracker.owner and not SESSION.adopt_thread():
        return False
    return tracker.phase in _AROUND and not (tracker.updating and running_updates()())
