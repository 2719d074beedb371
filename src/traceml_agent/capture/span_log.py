"""SpanLog: turns scopes and marks into records. In whichever thread drains; one at a time.

Nothing of the program is called here: a value that is no plain number or text is written as the
name of its type, and a scalar on a device once somebody has fetched it.
"""

import math
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any

from traceml_agent.capture.marks import Later, Mark, short
from traceml_agent.capture.scopes import (
    EVICTED,
    HERE,
    MARKS_EVICTED,
    OTHER_THREAD,
    Span,
    Told,
    Tree,
)  # fmt: skip
from traceml_agent.redact import own_secrets, redact
from traceml_agent.schema.spans import Marks, MarkSums, Scopes, ScopeSums, Spans

if TYPE_CHECKING:
    from traceml_agent.schema.records import Record

ROWS_A_DRAIN = 20_000
"""Closed scopes that one drain takes. Chosen: 0.1 s of work; 40,000 scopes a second with drains
every half second. The rest waits, and beyond TRACEML_TRACE_MAX_SPANS is lost and counted."""
ROWS_A_RECORD = 2_000
OPEN_LOOKED = 1_000
"""Open scopes that are looked at in a drain, the newest ones."""
NAMES_SUMMED = 1_000
"""Names that are summed up apart; a program may put a number into a name."""
OTHER_NAMES = "(other names)"
SUMS_EVERY_NS = 1_000_000_000
LATER_KEPT = 10_000
TEXTS_KEPT = 4_096
_JSON_INT = 1 << 63
_IN_MEMORY = (EVICTED, MARKS_EVICTED)
"""What gave way to newer ones there; the spool has it."""
NOT_WRITTEN, NOT_SUMMED = "marks_not_written", "marks_not_summed"

_SAMPLE = "1234567890"
NOTHING_TOLD = Told()
"""Of all scopes without marks."""

Noted = tuple[int, Mark]
"""Id of the scope, and the mark."""


def take(now: int) -> "list[Record]":
    """What the scopes of this process have that is not in its spool yet."""
    tree = HERE.tree
    if tree is None:
        return []
    if tree.log is None:
        tree.log = SpanLog(tree)
    everything = HERE.wants_all or HERE.is_leaving
    records: list[Record] = tree.log.take(now, everything, HERE.is_leaving)
    return records


class SpanLog:
    """How much of a tree is written."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._texts: dict[tuple[str, str], str] = {}
        self._secrets = own_secrets()
        self._later: deque[Noted] = deque(maxlen=LATER_KEPT)
        self._sums: dict[str, list[int]] = {}  # name: count, total, longest
        self._mark_sums: dict[tuple[str | None, str], tuple[int, Mark]] = {}
        self._changed: set[str] = set()
        self._marks_changed: set[tuple[str | None, str]] = set()
        self._awaited: set[tuple[str | None, str]] = set()  # written before the device gave them
        self._told_dropped: dict[str, int] = {}
        self._summed_ns = 0

    def take(self, now: int, everything: bool, is_last: bool) -> "list[Record]":
        """The records; `everything`: however much there is, and all sums."""
        fresh = self._tree.fresh
        room = len(fresh) if everything else min(len(fresh), ROWS_A_DRAIN)
        closed = [span for span in (self._pop() for _ in range(room)) if span is not None]
        opened = self._tree.open.copy()
        looked = islice(reversed(opened.values()), OPEN_LOOKED)
        left = [span for span in looked if span.end_ns is None]
        noted: list[Noted] = []
        new = [span for span in left if span.told is None]
        for span in (self._tree.run, *closed, *left):
            if span.points or span.summaries:
                self._take_marks(span, noted)
            elif span.told is None:
                span.told = NOTHING_TOLD
        self._add_up(closed)
        spans = [*reversed(new), *closed]
        records: list[Record] = []
        for begin in range(0, len(spans), ROWS_A_RECORD):
            records.append(self._spans(spans[begin : begin + ROWS_A_RECORD]))
        for span in closed:
            span.told = None
        noted = [*self._fetched(is_last), *noted]
        for begin in range(0, len(noted), ROWS_A_RECORD):
            records.append(self._marks(noted[begin : begin + ROWS_A_RECORD]))
        return records + self._summed(now, everything)

    def _pop(self) -> Span | None:
        """A closed span; the deque may lose one meanwhile, but never the last."""
        try:
            return self._tree.fresh.popleft()
        except IndexError:
            return None

    # Marks

    def _take_marks(self, span: Span, noted: list[Noted]) -> None:
        told = span.told
        if told is None or told is NOTHING_TOLD:
            if span.end_ns is not None and not span.summaries:  # the usual one
                for mark in span.points.copy() if span.points else ():
                    self._note(span, mark, noted)
                return
            told = span.told = Told()
        if span.summaries is not None:
            fresh = span.summaries[told.summaries :]
            told.summaries += len(fresh)
            for mark in fresh:
                self._note(span, mark, noted)
                self._sum_mark(span, mark)
        if span.points:
            points = list(span.points.copy())
            if told.point is not None:
                at = next((i for i in range(len(points), 0, -1) if points[i - 1] is told.point), 0)
                del points[:at]
            if points:
                told.point = points[-1]
            for mark in points:
                self._note(span, mark, noted)

    def _note(self, span: Span, mark: Mark, noted: list[Noted]) -> None:
        if not _is_known(mark) and len(self._later) == LATER_KEPT:
            self._tree.dropped[NOT_WRITTEN] += 1
        (noted if _is_known(mark) else self._later).append((span.id, mark))

    def _fetched(self, is_last: bool) -> list[Noted]:
        """Scalars of a device that somebody fetched by now."""
        found: list[Noted] = []
        for _ in range(len(self._later)):
            noted = self._later.popleft()
            if is_last or _is_known(noted[1]):
                found.append(noted)
            else:
                self._later.append(noted)
        return found

    # Sums

    def _add_up(self, closed: list[Span]) -> None:
        took: dict[str, list[int]] = {}
        for span in closed:
            took.setdefault(span.name, []).append((span.end_ns or span.start_ns) - span.start_ns)
        for raw, durations in took.items():
            name = self._text("", raw)
            if name not in self._sums and len(self._sums) >= NAMES_SUMMED:
                name = OTHER_NAMES
            sums = self._sums.setdefault(name, [0, 0, 0])
            sums[0] += len(durations)
            sums[1] += sum(durations)
            sums[2] = max(sums[2], *durations)
            self._changed.add(name)

    def _sum_mark(self, span: Span, mark: Mark) -> None:
        scope = None if span is self._tree.run else self._text("", span.name)
        key = (scope, self._text("", mark.name))
        if key not in self._mark_sums and len(self._mark_sums) >= NAMES_SUMMED:
            self._tree.dropped[NOT_SUMMED] += 1
            return
        count, _ = self._mark_sums.get(key, (0, mark))
        self._mark_sums[key] = (count + 1, mark)
        self._marks_changed.add(key)

    def _summed(self, now: int, everything: bool) -> "list[Record]":
        dropped = {n: c for n, c in self._tree.dropped.copy().items() if n not in _IN_MEMORY}
        fetched = {key for key in self._awaited if _is_known(self._mark_sums[key][1])}
        self._marks_changed |= fetched
        is_new = self._changed or self._marks_changed or dropped != self._told_dropped
        if not is_new or not (everything or now - self._summed_ns >= SUMS_EVERY_NS):
            return []
        self._summed_ns = now
        rows = [ScopeSums(name, *self._sums[name]) for name in sorted(self._changed)]
        marks = []
        for key in sorted(self._marks_changed, key=lambda key: (key[0] or "", key[1])):
            count, mark = self._mark_sums[key]
            (self._awaited.discard if _is_known(mark) else self._awaited.add)(key)
            last, special = self._value(key[1], mark)
            marks.append(MarkSums(key[1], count, key[0], last, special))
        self._changed.clear()
        self._marks_changed.clear()
        self._told_dropped = dropped
        return [Scopes(now, rows, marks, dropped)]

    # Columns

    def _spans(self, spans: list[Span]) -> Spans:
        names = _Names(self._text)
        start_ns = min(span.start_ns for span in spans)
        ends = [span.end_ns for span in spans]
        return Spans(
            start_ns=start_ns,
            names=names.found,
            id=[span.id for span in spans],
            parent=[0 if span.parent is None else span.parent.id for span in spans],
            name=[names.numbers[span.name] for span in spans],
            indexes=[self._index(span.index) for span in spans],
            begun_ns=[span.start_ns - start_ns for span in spans],
            duration_ns=[
                None if end is None else max(0, end - span.start_ns)
                for span, end in zip(spans, ends, strict=True)
            ],
            # Of the same moment as the end: a span may be closed meanwhile.
            cpu_ns=[
                None if end is None or span.cpu_ns is None else max(0, span.cpu_ns)
                for span, end in zip(spans, ends, strict=True)
            ],
            phase=[
                None if span.phase == OTHER_THREAD else max(0, span.phase + 1) for span in spans
            ],
            attrs=self._attrs([span.attrs for span in spans]),
        )

    def _marks(self, noted: list[Noted]) -> Marks:
        names = _Names(self._text)
        values: list[Any] = []
        special: dict[str, str] = {}
        for row, (_, mark) in enumerate(noted):
            value = mark.value
            if type(value) is not float or value - value != 0 or self._is_secret(mark.name):
                value, word = self._value(mark.name, mark)
                if word is not None:
                    special[str(row)] = word
            values.append(value)
        return Marks(
            names=names.found,
            span=[number for number, _ in noted],
            name=[names.numbers[mark.name] for _, mark in noted],
            at_ns=[mark.monotonic_ns for _, mark in noted],
            values=values,
            special=special,
            summary=[row for row, (_, m) in enumerate(noted) if m.kind == "summary"],
            attrs=self._attrs([mark.attrs for _, mark in noted]),
        )

    def _attrs(self, rows: list[Any]) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for row, attrs in enumerate(rows):
            if attrs:
                found[str(row)] = {
                    self._text("", name): self._attribute(name, value)
                    for name, value in dict(attrs).items()
                }
        return found

    def _is_secret(self, name: str) -> bool:
        """Whether what has this name is never written."""
        return self._text(name, _SAMPLE) != _SAMPLE

    def _attribute(self, name: str, value: Any) -> Any:
        if type(value) in (int, float) and self._is_secret(name):
            return self._text(name, str(value))
        if type(value) is float and not math.isfinite(value):
            return str(value)
        if type(value) in (bool, float, type(None)) or _fits(value):
            return value
        return _words(value) if type(value) is int else self._text(name, _words(value))

    def _index(self, index: Any) -> Any:
        return index if index is None or _fits(index) else self._text("", _words(index))

    def _value(self, name: str, mark: Mark) -> tuple[Any, str | None]:
        """A value as JSON holds it, and a word for those that it does not."""
        value = mark.value
        if isinstance(value, Later):
            value = value.value() if value.is_known else None
        if value is not None and type(value) is not str and self._is_secret(name):
            value = str(value)
        if type(value) is int and not _fits(value):
            return None, str(value) if value.bit_length() < 4_096 else None
        if type(value) is float and not math.isfinite(value):
            return None, "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
        return (self._text(name, value) if type(value) is str else value), None

    def _text(self, name: str, text: str) -> str:
        """At most 256 bytes, without what is, or is called, a secret."""
        key = (name, text)
        known = self._texts.get(key)
        if known is None:
            if len(self._texts) >= TEXTS_KEPT:
                self._texts.clear()
            known = redact(f"{name}={text}" if name else text, self._secrets)
            known = self._texts[key] = short(known.removeprefix(f"{name}=") if name else known)
        return known


class _Names:
    """The names of a record, each once; `numbers` by the name as the program has it."""

    def __init__(self, text: Callable[[str, str], str]) -> None:
        self.found: list[str] = []
        self.numbers = _Numbers(self.found, text)


class _Numbers(dict[str, int]):
    def __init__(self, found: list[str], text: Callable[[str, str], str]) -> None:
        self._found, self._text = found, text

    def __missing__(self, name: str) -> int:
        """A name that is new in this record."""
        self[name] = len(self._found)
        self._found.append(self._text("", name))
        return self[name]


def _is_known(mark: Mark) -> bool:
    """Whether its value is no longer on a device."""
    return not isinstance(mark.value, Later) or mark.value.is_known


def _fits(value: Any) -> bool:
    return type(value) is int and -_JSON_INT <= value < _JSON_INT


def _words(value: Any) -> str:
    """A value that was kept, as text."""
    if type(value) is str:
        return short(value)
    if type(value) is int and value.bit_length() >= 4_096:
        return "<int>"
    try:
        return str(value)
    except ValueError:  # a number of more than 4,300 digits is in it
        return f"<{type(value).__name__}>"
