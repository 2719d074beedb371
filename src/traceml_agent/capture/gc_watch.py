"""GcWatch: what the garbage collector takes, by `gc.callbacks`: every collection, exactly.

Not a line of Python runs in the callbacks. Python handles a signal that came during a collection at
the first bytecode after it: were that ours, the KeyboardInterrupt, or whatever a handler of the
program raises, would be raised inside the callback, where CPython prints and drops it. So each
callback is a chain of C functions that ends in `deque.append`; the agent's thread reads the deques.

Nor is `sys._getframe` called there. Python 3.11 collects while it makes a generator, and then gives
out a frame that is half made; generator and frame share it later, and the process crashes
(python/cpython#94262). `sys._current_frames` leaves such frames out.
"""

import atexit
import gc
import os
import sys
import time
from _thread import get_ident
from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import repeat
from operator import attrgetter, is_, itemgetter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from traceml_agent.capture.frames import why_unsafe
from traceml_agent.schema.causes import GcTotals
from traceml_agent.schema.phases import PHASES
from traceml_agent.schema.records import Event, Record

if TYPE_CHECKING:
    from traceml_agent.capture.steps import StepTracker

NOTED_NS = 1_000_000
"""A pause of 1 ms is an event of its own; shorter ones are sums. Source: a tenth of the shortest
step in which a spike of 10 % is looked for, 10 ms."""
NOTED_EACH = 1_000
"""After so many events only pauses of twice that length are: a day of collections in each step
leaves some thousands of them. The sums stay exact."""
GENERATIONS = 3
WAITING_MOST = 50_000
"""Collections that wait for the agent's thread, which comes twice a second. Chosen: more than can
happen in that time; of a thread that hangs the oldest are lost."""
TOTALS_EVERY_NS = 10_000_000_000
"""How often sums are written: of a process that is killed the last 10 s are known by events."""
REMOVED = "removed from gc.callbacks by the program: not measured from then on"

_clock = time.perf_counter_ns


_nothing: Any = is_
# `setattr(self, "start", info)` calls the setter of the property with (self, info), all of it in C.


class _AtStart(map):  # type: ignore[type-arg]
    """Does its next step when a collection starts."""

    start, stop = property(None, next), property(None, _nothing)


class _AtStop(map):  # type: ignore[type-arg]
    """Does its next step when a collection has ended."""

    start, stop = property(None, _nothing), property(None, next)


class _Infos(deque):  # type: ignore[type-arg]
    """Keeps what the collector says of a collection that has ended."""

    start, stop = property(None, _nothing), property(None, deque.append)


class GcWatch:
    """Started and read in the agent's threads."""

    def __init__(self, tracker: "StepTracker") -> None:
        self._tracker = tracker
        self._count = [0] * GENERATIONS
        self._duration_ns = [0] * GENERATIONS
        self._noted = self._noted_ns = 0
        self._other = [0, 0]  # collections in other threads, and their time
        self._told = -1  # collections when the sums were last written,
        self._told_ns = 0  # and when that was
        self.is_in = False
        self._starts: deque[int] = deque(maxlen=WAITING_MOST)
        self._stops: deque[tuple[Any, ...]] = deque(maxlen=WAITING_MOST)
        self._infos = _Infos(maxlen=WAITING_MOST)
        last = _Infos([{"generation": 0}], maxlen=1)
        seen = zip(
            _calls(time.perf_counter_ns),
            _calls(get_ident),
            _calls(partial(attrgetter("owner", "phase", "step"), tracker)),
            _places(last),
            strict=False,
        )
        self.callbacks = (
            partial(setattr, last),
            partial(setattr, _AtStart(self._starts.append, _calls(time.perf_counter_ns))),
            partial(setattr, _AtStop(self._stops.append, seen)),
            partial(setattr, self._infos),
        )

    def start(self) -> None:
        """Watches from now on."""
        gc.callbacks.extend(self.callbacks)  # at once: no collection sees a part of them
        self.is_in = True
        # As Python ends it collects without any frame, which the callbacks ask for.
        atexit.register(self.stop)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.stop)

    def stop(self) -> None:
        """Watches no longer; called in a forked child too."""
        for callback in self.callbacks:
            if callback in gc.callbacks:
                gc.callbacks.remove(callback)
        self.is_in = False

    def was_removed(self) -> bool:
        """Whether the program has emptied the list of callbacks, as some do between tests."""
        is_whole = all(callback in gc.callbacks for callback in self.callbacks)
        if self.is_in and not is_whole:
            self.stop()
            return True
        return False

    def since(self, moment: int) -> int:
        """Nanoseconds of the last collection that lie behind this moment. For any thread."""
        try:
            begun, ended = self._starts[-1], self._stops[-1][0]
        except IndexError:  # taken into the spool meanwhile
            return 0
        return max(0, int(ended) - max(begun, moment))

    def take(self) -> list[Record]:
        """What happened since the last call; in the thread that writes."""
        records: list[Record] = []
        for _ in range(min(len(self._starts), len(self._stops), len(self._infos))):
            begun, info = self._starts.popleft(), self._infos.popleft()
            event = self._count_one(begun, self._stops.popleft(), info)
            if event is not None:
                records.append(event)
        collections, now = sum(self._count) + self._other[0], _clock()
        if collections == self._told or (self.is_in and now < self._told_ns + TOTALS_EVERY_NS):
            return records
        self._told, self._told_ns = collections, now
        records.append(
            GcTotals(
                monotonic_ns=now,
                step=self._tracker.step,
                count=self._count[:],
                duration_ns=self._duration_ns[:],
                noted=self._noted,
                noted_ns=self._noted_ns,
                other_count=self._other[0],
                other_ns=self._other[1],
            )
        )
        return records

    def _count_one(self, begun: int, stop: tuple[Any, ...], info: dict[str, Any]) -> Event | None:
        """Counts a collection; it is an event if it took long."""
        ended, ident, (owner, phase, step), (code, line) = stop
        elapsed = max(0, ended - begun)
        generation = min(info.get("generation", 0), GENERATIONS - 1)
        in_training = ident == owner
        if in_training:
            self._count[generation] += 1
            self._duration_ns[generation] += elapsed
        else:
            self._other[0] += 1
            self._other[1] += elapsed
        if elapsed < NOTED_NS << (self._noted // NOTED_EACH):
            return None
        detail: dict[str, str | int | float | None] = {
            "generation": generation,
            "collected": info.get("collected", 0),
        }
        if in_training:
            self._noted += 1
            self._noted_ns += elapsed
            if phase >= 0:
                detail["phase"] = PHASES[phase]
        else:
            detail["thread"] = "another"
        # Any line that makes an object may be interrupted: only one that calls it says something.
        if code is not None and "collect" in code.co_names:
            detail["at"] = _shown(code.co_filename, line or 0)
        return Event("gc", begun, elapsed, step + 1, detail)


def _calls(function: Any) -> Iterator[Any]:
    """The results of one call after another, which is never None, without end."""
    return iter(function, None)


def _places(last: _Infos) -> Iterator[Any]:
    """Code and line that run in this thread after a full collection, the one that programs ask for;
    None and None after another."""
    nowhere = SimpleNamespace(f_code=None, f_lineno=None)
    frames = map(dict.get, _calls(sys._current_frames), _calls(get_ident), repeat(nowhere))
    generations = map(itemgetter("generation"), map(itemgetter(-1), repeat(last)))
    sources = {GENERATIONS - 1: frames} if why_unsafe() is None else {}
    source = map(sources.get, generations, repeat(repeat(nowhere)))
    return map(attrgetter("f_code", "f_lineno"), map(next, source))


def _shown(file: str, line: int) -> str:
    from traceml_agent.redact import own_secrets, printable, redact  # costs 15 ms

    return printable(f"{redact(file, own_secrets())}:{line}")
