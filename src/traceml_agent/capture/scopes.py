"""The scopes that a program opens and the marks it sets, as a tree in memory.

No lock on the way in: numbers come from a counter and closed spans go to a deque, each one step of
the interpreter. Which scope is the innermost is kept by context, so threads and asyncio tasks each
have their own; a task that is started inside a scope begins inside it.
"""

import itertools
import threading
import time
from _thread import get_ident
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

from traceml_agent.capture.marks import (
    PLAIN,
    Later,
    Mark,
    index_of,
    kept,
    plain,
    text_of,
)
from traceml_agent.capture.say import say

DEEPEST = 64
"""Scopes within one another. Source: the promise of docs/api.md; deeper ones are dropped."""
MOST_POINTS = 1_024
"""Point marks of a span that are kept, the newest ones."""
TOO_DEEP, EVICTED, MARKS_EVICTED = "scopes_too_deep", "spans_evicted", "marks_evicted"
NOT_WRITTEN = "spans_not_written"
"""Closed faster than they could be taken into the spool."""
CPU_FRESH_NS = 10_000
"""How old a reading of the CPU clock may be that a scope begins with: between two readings no more
CPU time passes than that, and a reading takes 0.3 to 0.9 us."""
CPU_LEAST_NS = 10 * CPU_FRESH_NS
"""Shorter scopes have no CPU time: it would be wrong by more than a tenth."""
NO_PHASE = -1
OTHER_THREAD = -3

clock, cpu_clock = time.perf_counter_ns, time.thread_time_ns
Attrs = Mapping[str, Any]


class Span:
    """One scope. Entered once more, it is another span."""

    # A scope may take 2 us, so these are set when they are needed, and calls are few.
    __slots__ = (
        "_cpu_start",
        "_thread",
        "_tree",
        "again",
        "attrs",
        "cpu_ns",
        "depth",
        "end_ns",
        "id",
        "index",
        "name",
        "parent",
        "phase",
        "points",
        "start_ns",
        "summaries",
        "told",
    )

    parent: "Span | None"

    def __init__(self, tree: "Tree", name: str, index: Any, attrs: Attrs) -> None:
        self._tree = tree
        self.name = name if type(name) is str else text_of(name)
        self.index: Any = index if index is None or type(index) is int else index_of(index)
        self.attrs = kept(attrs) if attrs else attrs
        self.depth = 0  # not entered, or left out
        self.again: list[Span] | None = None  # open spans of further entries

    def __enter__(self) -> "Span":
        tree = self._tree
        if self.depth:  # once more: a span of its own
            again = Span(tree, self.name, self.index, self.attrs)
            if self.again is None:
                self.again = []
            self.again.append(again)
            return again.__enter__()
        parent = _CURRENT.get()
        while parent is not None and parent.end_ns is not None:  # a task that outlives its scope
            parent = parent.parent
        if parent is None or parent._tree is not tree:  # in a forked child: one of its parent
            self.parent, depth = None, 1
        else:
            self.parent, depth = parent, parent.depth + 1
            if depth > DEEPEST:
                tree.drop(TOO_DEEP)
                self._thread = get_ident()
                return self
        self.depth = depth
        self.end_ns: int | None = None
        self.cpu_ns: int | None = None
        self.points: deque[Mark] | None = None
        self.summaries: list[Mark] | None = None
        self.told: Told | None = None
        self.id = number = next(tree.numbers)
        self._thread = thread = get_ident()
        watched = _PHASES.tracker
        self.phase = watched.phase if thread == watched.owner else OTHER_THREAD
        self.start_ns = now = clock()
        reader, at_ns, cpu_ns = tree.cpu_reading
        if now - at_ns > CPU_FRESH_NS or reader != thread:
            cpu_ns = cpu_clock()
            tree.cpu_reading = (thread, now, cpu_ns)
        self._cpu_start = cpu_ns
        tree.open[number] = self
        _CURRENT.set(self)
        return self

    def __exit__(self, *error: object) -> None:
        end_ns = clock()
        if self.again and (entered := self._entered_here(self.again)) is not self:
            self.again.remove(entered)
            entered.__exit__(*error)
            return
        if not self.depth or self.end_ns is not None:
            return
        innermost = _CURRENT.get()
        tree = self._tree
        if innermost is self:
            if end_ns - self.start_ns >= CPU_LEAST_NS and get_ident() == self._thread:
                cpu_ns = cpu_clock()
                tree.cpu_reading = (self._thread, end_ns, cpu_ns)
                self.cpu_ns = cpu_ns - self._cpu_start
            _CURRENT.set(self.parent)
        else:
            self._close_inner(innermost, end_ns)
        # What `Tree.close` does, without the call.
        self.end_ns = end_ns
        tree.open.pop(self.id, None)
        if len(tree.closed) == tree.most_spans:
            tree.lose()
        tree.closed.append(self)
        tree.fresh.append(self)
        if tree.on_close is not None:
            tree.on_close(self)

    def _entered_here(self, again: "list[Span]") -> "Span":
        """Of several entries the innermost of this thread or task, or the last one."""
        around = set()
        span = _CURRENT.get()
        while span is not None:
            around.add(id(span))
            span = span.parent
        thread = get_ident()
        for entered in reversed(again):
            is_left_out = not entered.depth and entered._thread == thread
            if is_left_out or id(entered) in around:
                return entered
        return self if id(self) in around else again[-1]

    def _close_inner(self, innermost: "Span | None", end_ns: int) -> None:
        """Closes what was left open inside, such as the scope of a loop that nobody ended."""
        inner: list[Span] = []
        span = innermost
        while span is not None and span is not self:
            inner.append(span)
            span = span.parent
        if span is None:
            return  # closed from another thread or task: what is open there stays so
        for left in inner:
            if left.end_ns is None:
                self._tree.close(left, end_ns)
        _CURRENT.set(self.parent)

    def add(self, mark: Mark) -> None:
        """Attaches a mark."""
        if mark.kind == "summary":
            if self.summaries is None:
                self.summaries = []
            self.summaries.append(mark)
        else:
            if self.points is None:
                self.points = deque(maxlen=MOST_POINTS)
            self.points.append(mark)

    def marks(self) -> list[Mark]:
        """All marks that are kept, in the order in which they were set."""
        found = [*(self.summaries or ()), *(self.points or ())]
        return sorted(found, key=lambda mark: mark.monotonic_ns)


_CURRENT: ContextVar[Span | None] = ContextVar("traceml_scope", default=None)


class Told:
    """What of an open span is in the spool."""

    __slots__ = ("point", "summaries")

    def __init__(self) -> None:
        self.point: Mark | None = None  # the last one
        self.summaries = 0


class Watched:
    """Which phase of the training is open; before torch is there, none ever is."""

    def __init__(self) -> None:
        self.phase = NO_PHASE
        self.owner = threading.main_thread().ident or 0


class Phases:
    """The tracker of the process, once there is one; it has the attributes of `Watched`."""

    tracker: Any = Watched()


_PHASES = Phases()


def watch(tracker: Any) -> None:
    """From now on a scope notes in which phase of this tracker it was opened."""
    _PHASES.tracker = tracker


class Here:
    """The tree of this process, for those who write it; a forked child begins anew."""

    tree: "Tree | None" = None
    wants_all = False  # the next drain takes all that there is
    is_leaving = False  # it is the last one

    def begin(self, tree: "Tree | None") -> None:
        """A new tree, or none."""
        self.tree = tree
        self.wants_all = self.is_leaving = False


HERE = Here()


class Tree:
    """All spans of this process: the open ones, and the closed ones up to a number."""

    make = Span

    def __init__(self, most_spans: int) -> None:
        self.most_spans = most_spans
        self.numbers = itertools.count(1)
        self.open: dict[int, Span] = {}
        self.closed: deque[Span] = deque(maxlen=most_spans)
        self.fresh: deque[Span] = deque(maxlen=most_spans)  # closed, and not in the spool yet
        self.cpu_reading = (0, 0, 0)  # thread, when, and CPU time
        self.on_close: Callable[[Span], None] | None = None
        self.has_later = False  # scalars on a device were marked
        self.log: Any = None  # a SpanLog once there is a spool
        self.dropped: Counter[str] = Counter()
        self.run = Span(self, "run", None, {})  # of marks outside any scope
        self.run.id, self.run.told, self.run.end_ns = 0, None, None
        self.run.points = self.run.summaries = None

    def bound(self, most_spans: int) -> None:
        """Keeps so many closed spans from now on."""
        if most_spans != self.most_spans:
            self.dropped[EVICTED] += max(0, len(self.closed) - most_spans)
            if self.log is not None:
                self.dropped[NOT_WRITTEN] += max(0, len(self.fresh) - most_spans)
            self.most_spans = most_spans
            self.closed = deque(self.closed, maxlen=most_spans)
            self.fresh = deque(self.fresh, maxlen=most_spans)

    def mark(self, name: str, value: Any, kind: str, attrs: Attrs) -> None:
        """Attaches a mark to the innermost open scope, or to the run."""
        if type(value) not in PLAIN:
            value = plain(name, value)
            if type(value) is Later:
                self.has_later = True
        span = _CURRENT.get()
        while span is not None and span.end_ns is not None:
            span = span.parent
        if span is None or span._tree is not self:
            span = self.run
        if type(name) is not str:
            name = text_of(name)
        mark = Mark(clock(), name, value, kind, kept(attrs) if attrs else attrs)
        if kind != "point" or span.points is None:
            span.add(mark)
            return
        if len(span.points) == MOST_POINTS:
            self.dropped[MARKS_EVICTED] += 1
        span.points.append(mark)

    def close(self, span: Span, end_ns: int) -> None:
        """Moves a span to the closed ones; the oldest of too many is lost."""
        span.end_ns = end_ns
        self.open.pop(span.id, None)
        if len(self.closed) == self.most_spans:
            self.lose()
        self.closed.append(span)
        self.fresh.append(span)
        if self.on_close is not None:
            self.on_close(span)

    def lose(self) -> None:
        """Counts a span that gives way to another one."""
        self.dropped[EVICTED] += 1
        if len(self.fresh) == self.most_spans and self.log is not None:
            self.dropped[NOT_WRITTEN] += 1

    def drop(self, reason: str) -> None:
        """Counts what is not kept; the first one of a kind is told."""
        self.dropped[reason] += 1
        if self.dropped[reason] == 1 and reason == TOO_DEEP:
            say(f"scopes beyond {DEEPEST} within one another are not kept")

    def fetch(self, most_ns: int) -> None:
        """Waits for the scalars on a device that nobody has fetched yet, the newest first, for so
        long at most; those that are left have no value."""
        until = clock() + most_ns
        for span in (self.run, *reversed(self.spans())):
            for mark in reversed(span.marks()):
                if clock() > until:
                    return
                mark.plain_value()

    def spans(self) -> list[Span]:
        """Closed and open ones, by number."""
        found = {span.id: span for span in (*self.open.copy().values(), *self.closed.copy())}
        return [found[number] for number in sorted(found)]
