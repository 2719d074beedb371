"""The scopes that a program opens and the marks it sets, as a tree in memory.

No lock on the way in: numbers come from a counter and closed spans go to a deque, each one step of
the interpreter. Which scope is the innermost is kept by context, so threads and asyncio tasks each
have their own; a task that is started inside a scope begins inside it.
"""

import itertools
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from traceml_agent.capture.marks import PLAIN, Mark, plain
from traceml_agent.capture.say import say

DEEPEST = 64
"""Scopes within one another. Source: the promise of docs/api.md; deeper ones are dropped."""
MOST_POINTS = 1_024
"""Point marks of a span that are kept, the newest ones."""
TOO_DEEP, EVICTED = "scopes_too_deep", "spans_evicted"

clock, cpu_clock = time.perf_counter_ns, time.thread_time_ns
Attrs = Mapping[str, Any]


class Span:
    """One scope: a context manager that is entered once."""

    # A scope may take 2 us, so these are set when they are needed, and calls are few.
    __slots__ = (
        "_cpu_start",
        "_tree",
        "attrs",
        "cpu_ns",
        "depth",
        "end_ns",
        "id",
        "index",
        "name",
        "parent",
        "points",
        "start_ns",
        "summaries",
    )

    def __init__(self, tree: "Tree", name: str, index: int | None, attrs: Attrs) -> None:
        self._tree = tree
        self.name = name
        self.index = index
        self.attrs = attrs
        self.depth = 0  # not entered, or left out

    def __enter__(self) -> "Span":
        if self.depth:
            raise RuntimeError(f"scope {self.name!r} was entered before; make a new one")
        tree = self._tree
        parent = _CURRENT.get()
        if parent is None or parent._tree is not tree:  # in a forked child: one of its parent
            self.parent, depth = None, 1
        else:
            self.parent, depth = parent, parent.depth + 1
            if depth > DEEPEST:
                tree.drop(TOO_DEEP)
                return self
        self.depth = depth
        self.end_ns: int | None = None
        self.cpu_ns: int | None = None
        self.points: deque[Mark] | None = None
        self.summaries: list[Mark] | None = None
        self.id = number = next(tree.numbers)
        self._cpu_start = cpu_clock()
        self.start_ns = clock()
        tree.open[number] = self
        _CURRENT.set(self)
        return self

    def __exit__(self, *error: object) -> None:
        end_ns = clock()
        if not self.depth or self.end_ns is not None:
            return
        innermost = _CURRENT.get()
        if innermost is self:
            self.cpu_ns = cpu_clock() - self._cpu_start
            _CURRENT.set(self.parent)
        else:
            self._close_inner(innermost, end_ns)
        self._tree.close(self, end_ns)

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


class Tree:
    """All spans of this process: the open ones, and the closed ones up to a number."""

    make = Span

    def __init__(self, most_spans: int) -> None:
        self.numbers = itertools.count(1)
        self.open: dict[int, Span] = {}
        self.closed: deque[Span] = deque(maxlen=most_spans)
        self.dropped: Counter[str] = Counter()
        self.run = Span(self, "run", None, {})  # of marks outside any scope
        self.run.points = self.run.summaries = None

    def mark(self, name: str, value: Any, kind: str, attrs: Attrs) -> None:
        """Attaches a mark to the innermost open scope, or to the run."""
        if type(value) not in PLAIN:
            value = plain(name, value)
        span = _CURRENT.get()
        if span is None or span._tree is not self:
            span = self.run
        mark = Mark(clock(), name, value, kind, attrs)
        if kind == "point" and span.points is not None:
            span.points.append(mark)
        else:
            span.add(mark)

    def loop(self, name: str, items: Iterable[Any]) -> Iterator[Any]:
        """The items, each inside a scope of its own."""
        for index, item in enumerate(items):
            with Span(self, name, index, {}):
                yield item

    def close(self, span: Span, end_ns: int) -> None:
        """Moves a span to the closed ones; the oldest of too many is lost."""
        span.end_ns = end_ns
        self.open.pop(span.id, None)
        if len(self.closed) == self.closed.maxlen:
            self.dropped[EVICTED] += 1
        self.closed.append(span)

    def drop(self, reason: str) -> None:
        """Counts what is not kept; the first one of a kind is told."""
        self.dropped[reason] += 1
        if self.dropped[reason] == 1 and reason == TOO_DEEP:
            say(f"scopes beyond {DEEPEST} within one another are not kept")

    def spans(self) -> list[Span]:
        """Closed and open ones, by number."""
        found = {span.id: span for span in (*self.open.copy().values(), *self.closed.copy())}
        return [found[number] for number in sorted(found)]


class Loop:
    """Items that are each inside a scope, as often as they are gone through."""

    def __init__(self, tree: Tree, name: str, items: Iterable[Any]) -> None:
        self._tree, self._name, self._items = tree, name, items

    def __iter__(self) -> Iterator[Any]:
        return self._tree.loop(self._name, self._items)

    def __len__(self) -> int:
        return len(self._items)  # type: ignore[arg-type]  # its own TypeError where there is none
