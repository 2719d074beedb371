"""Times compilations by Dynamo's own callbacks: the phase compile, taken out of forward."""

from _thread import get_ident
from typing import Any

from traceml_agent.capture.open_step import NONE
from traceml_agent.capture.session import SESSION
from traceml_agent.guard import guard
from traceml_agent.schema.phases import COMPILE, PHASES


def install(dynamo: Any) -> str:
    """Registers a callback at the start and one at the end of each outermost compilation."""
    from torch._dynamo.callback import callback_handler

    tracker = SESSION.tracker
    interrupted: list[int] = []

    # Dynamo runs these while it compiles: an error here would be the user's error.
    def on_start(_args: Any = None) -> None:
        with guard("compile callback"):
            SESSION.compiled = True
            if get_ident() == tracker.owner and tracker.phase != COMPILE:
                interrupted.append(tracker.enter(COMPILE))

    def on_end(_args: Any = None) -> None:
        with guard("compile callback"):
            if interrupted and get_ident() == tracker.owner:
                previous = interrupted.pop()
                if tracker.phase == COMPILE:
                    elapsed = tracker.leave(previous)
                    within = {"within": PHASES[previous]} if previous != NONE else {}
                    SESSION.note_event("compile", elapsed, dict(within))

    callback_handler.register_start_callback(on_start)
    callback_handler.register_end_callback(on_end)
    return "active"
