"""Handlers of signals wait while the process leaves.

A handler runs between any two lines of the main thread. One that raises (of an alarm; of a
DataLoader whose worker died) would end the last records in their midst.
"""

# As the interpreter has it: a profiler that wraps signal.signal tells the user of each call.
import _signal  # type: ignore[import-not-found]
import contextlib
import sys
from _thread import get_ident
from collections.abc import Callable, Iterator
from functools import partial
from threading import main_thread
from typing import Any

from traceml_agent.guard import code_of, to_nobody

ATTEMPTS = 100
"""Chosen: an alarm every 10 us ends two of three."""


@contextlib.contextmanager
def handlers_wait() -> Iterator[None]:
    """What signals the program handles in Python are told to their handlers after the body. SIGINT
    is not held back where it raises KeyboardInterrupt. Nothing changes outside the main thread."""
    handlers: dict[int, Any] = {}
    came: list[int] = []

    def later(number: int, _: object) -> None:
        came.append(number)

    _until_it_ends(partial(_hold, handlers, later))
    try:
        yield
    finally:
        _until_it_ends(partial(_release, handlers))
        for number in came:
            to_nobody(partial(handlers[number], number, sys._getframe()))


def _until_it_ends(action: Callable[[], None]) -> None:
    """A handler that is not held yet, or no longer, may raise meanwhile: then once more."""
    for _ in range(ATTEMPTS):
        if to_nobody(action):
            break


def _hold(handlers: dict[int, Any], later: Any) -> None:
    if get_ident() != main_thread().ident:
        return
    for number in _signal.valid_signals():
        handler = _signal.getsignal(number)
        if handler is not later and callable(handler) and code_of(handler) is not None:
            handlers[number] = handler
            _signal.signal(number, later)


def _release(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        _signal.signal(number, handler)
