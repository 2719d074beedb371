"""Times compilations by Dynamo's own callbacks: the phase compile, taken out of forward."""

import sys
from _thread import get_ident
from typing import Any

from traceml_agent.capture.session import SESSION
from traceml_agent.capture.user_code import user_line
from traceml_agent.guard import guard
from traceml_agent.schema.phases import COMPILE, PHASES


def install(dynamo: Any) -> str:
    """Registers a callback at the start and one at the end of each outermost compilation."""
    from torch._dynamo.callback import callback_handler

    tracker, gate = SESSION.tracker, SESSION.gates["compile"]
    interrupted: list[int] = []

    # Dynamo runs these while it compiles: an error here would be the user's error.
    def on_start(_args: Any = None) -> None:
        with guard("compile callback"):
            SESSION.compiled = True
            if gate.shut:
                return
            if get_ident() == tracker.owner and tracker.phase != COMPILE:
                interrupted.append(tracker.enter(COMPILE))

    def on_end(args: Any = None) -> None:
        with guard("compile callback"):
            if interrupted and get_ident() == tracker.owner:
                previous = interrupted.pop()
                if tracker.phase == COMPILE:
                    elapsed = tracker.leave(previous)
                    detail: dict[str, str | int | float | None] = {**_numbered(args)}
                    if previous >= 0:
                        detail["within"] = PHASES[previous]
                    detail["at"] = user_line(sys._getframe(1))
                    SESSION.note_event("compile", elapsed, detail)

    callback_handler.register_start_callback(on_start)
    callback_handler.register_end_callback(on_end)
    return "active"


def _numbered(args: Any) -> dict[str, str]:
    """Dynamo's number of the compilation: of which frame, and how often that was compiled before.

    Newer versions of torch tell it.
    """
    number = getattr(args, "compile_id", None)
    return {} if number is None else {"id": str(number)[:40]}
