"""Where all threads stand: `sys._current_frames`, where that is safe to call again and again."""

import gc
import sys
from collections import deque
from collections.abc import Callable, Iterator
from itertools import repeat
from types import FrameType
from typing import Any

NO_LOCK = "this Python has no interpreter lock: frames of running threads cannot be read"
COLLECTS_AT_ONCE = sys.version_info < (3, 12)
"""Until then making any object may start a garbage collection, also while `_current_frames` holds
the lock over all threads: if that collection lets go of the interpreter lock, and a thread that
gets it begins or ends another one, both wait for ever. Source: python/cpython#106883."""

EXACT_INTERVAL_S = 0.0005
"""Switch interval under TRACEML_EXACT_LINES, a tenth of Python's own. Chosen: a sample then comes
half a millisecond late at most."""


def why_unsafe() -> str | None:
    """Why frames of other threads must not be read here; None: they may."""
    is_locked: Callable[[], bool] = getattr(sys, "_is_gil_enabled", lambda: True)
    return None if is_locked() else NO_LOCK


def _without_collection() -> Callable[[], dict[int, FrameType]]:
    """The call with the garbage collector off meanwhile.

    One chain of C functions: between lines of Python another thread may switch the collector off
    for good, and would find it on.
    """
    was_on: deque[bool] = deque()
    found: deque[dict[int, FrameType]] = deque()
    again: dict[bool, Iterator[Any]] = {
        True: iter(gc.enable, 0),
        False: repeat(None),
    }
    chain = zip(
        map(was_on.append, iter(gc.isenabled, None)),
        iter(gc.disable, 0),
        map(found.append, iter(sys._current_frames, None)),
        map(next, map(again.__getitem__, iter(was_on.pop, None))),
        strict=False,
    )

    def frames() -> dict[int, FrameType]:
        next(chain)  # which keeps what it returns, so the frames are not in it
        return found.pop()

    return frames


current_frames: Callable[[], dict[int, FrameType]] = (
    _without_collection() if COLLECTS_AT_ONCE else sys._current_frames
)
"""The innermost frame of each thread, by its identifier."""


def switch_faster() -> None:
    """Shortens the switch interval: a thread that waits for the interpreter's lock gets it sooner,
    in the line that runs then."""
    interval_s = sys.getswitchinterval()
    if interval_s > EXACT_INTERVAL_S:
        sys.setswitchinterval(EXACT_INTERVAL_S)
        _of_the_program.append(interval_s)


def switch_as_before() -> None:
    """The interval is what it was, unless the program has set another one meanwhile."""
    while _of_the_program:
        interval_s = _of_the_program.pop()
        if abs(sys.getswitchinterval() - EXACT_INTERVAL_S) < 1e-6:  # kept in whole microseconds
            sys.setswitchinterval(interval_s)


_of_the_program: list[float] = []
"""The interval in seconds that is not in force meanwhile."""
