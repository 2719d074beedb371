"""Handlers of signals wait while the process leaves.

A handler runs between any two lines of the main thread. One that raises (of an alarm; of a
DataLoader whose worker died) would end the last records in their midst.
"""

import contextlib
import signal
import sys
from collections.abc import Iterator
from functools import partial

from traceml_agent.guard import code_of, to_nobody


@contextlib.contextmanager
def handlers_wait() -> Iterator[None]:
    """What signals the program handles in Python are told to their handlers after the body. SIGINT
    is not held back where it raises KeyboardInterrupt. Nothing changes outside the main thread."""
    handlers = {}
    came: list[int] = []
    try:
        for known in signal.valid_signals():
            handler = signal.getsignal(known)
            if callable(handler) and code_of(handler) is not None:
                signal.signal(known, lambda number, _: came.append(number))
                handlers[known] = handler
    except (OSError, ValueError):  # not the main thread
        pass
    try:
        yield
    finally:
        for known, handler in handlers.items():
            signal.signal(known, handler)
        for number in came:
            to_nobody(partial(handlers[signal.Signals(number)], number, sys._getframe()))
