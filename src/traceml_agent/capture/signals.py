"""Handlers of signals wait while the process leaves.

A handler runs between any two lines of the main thread. One that raises (of an alarm; of a
DataLoader whose worker died) would end the last records in their midst.
"""

# As the interpreter has it: a profiler that wraps signal.signal tells the user of each call.
import _signal  # type: ignore[import-not-found]
import contextlib
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

from traceml_agent.guard import code_of, to_nobody


@contextlib.contextmanager
def handlers_wait() -> Iterator[None]:
    """What signals the program handles in Python are told to their handlers after the body. SIGINT
    is not held back where it raises KeyboardInterrupt. Nothing changes outside the main thread."""
    handlers: dict[int, Any] = {}
    came: list[int] = []

    def later(number: int, _: object) -> None:
        came.append(number)

    # Each until it ends: a handler that is not held yet, or no longer, may raise.
    while not to_nobody(partial(_hold, handlers, later)):
        pass
    try:
        yield
    finally:
        held = len(came)
        _tell(came[:held], handlers)
        while not to_nobody(partial(_release, handlers)):
            pass
        _tell(came[held:], handlers)


def _hold(handlers: dict[int, Any], later: Any) -> None:
    for number in _signal.valid_signals():
        handler = _signal.getsignal(number)
        if handler is later or not callable(handler) or code_of(handler) is None:
            continue
        handlers[number] = handler
        try:
            _signal.signal(number, later)
        except (OSError, ValueError):  # not the main thread
            handlers.clear()
            return


def _release(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        _signal.signal(number, handler)


def _tell(came: list[int], handlers: dict[int, Any]) -> None:
    for number in came:
        to_nobody(partial(handlers[number], number, sys._getframe()))
