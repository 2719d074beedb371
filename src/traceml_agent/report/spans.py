"""A tree of spans as people and programs read it: text, a dict, JSON, a data frame.

Spans come as `Row`s: from the process that has them in memory, or from its spool.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from traceml_agent.errors import TracemlError

FORMATS = ("tree", "dict", "json", "df")
COLUMNS = (
    "id", "parent_id", "name", "index", "wall_us", "cpu_ns", "gpu_ns", "memory_peak_bytes",
    "mark_count", "depth",
)  # fmt: skip
NOTHING = "(no spans)"
MOST_BITS, TOO_LARGE = 4_096, "<int>"
"""Of a whole number that is written, and what stands for a larger one. Chosen: as in the spool."""
_US, _MS, _S = 1_000, 1_000_000, 1_000_000_000


@dataclass(slots=True)
class Row:
    """One span. Times in nanoseconds of the monotonic clock; None: not measured, or still open."""

    id: int
    parent_id: int | None
    name: str
    index: int | str | None
    start_ns: int
    end_ns: int | None
    cpu_ns: int | None
    attrs: dict[str, Any]
    marks: list[tuple[str, Any, str]]  # name, value, kind
    phase: int | None = None  # in which it was opened: 0 none; None: not in the training thread
    gpu_ns: int | None = None  # on the device, of the steps in it
    fixed: bool = False  # below its parent whatever their times say
    children: list["Row"] = field(default_factory=list)

    def to_json(self, parent_id: int | None) -> dict[str, Any]:
        """The node with all below it."""
        return {
            "id": self.id,
            "parent_id": parent_id,
            "name": self.name,
            "index": self.index,
            "start_ns": self.start_ns,
            "end_ns": self.end_ns,
            "wall_us": self.wall_us,
            "cpu_ns": self.cpu_ns,
            "gpu_ns": self.gpu_ns,
            "memory_peak_bytes": None,
            "attrs": {name: _plain(value) for name, value in self.attrs.items()},
            "marks": [_mark(*mark) for mark in self.marks],
            "children": [child.to_json(self.id) for child in self.children],
        }

    @property
    def wall_us(self) -> float | None:
        """The duration; None while it is open."""
        return None if self.end_ns is None else (self.end_ns - self.start_ns) / _US


def forest(rows: Iterable[Row], name: str | None = None, last: int | None = None) -> list[Row]:
    """The roots, each with its children, in the order in which they began.

    `name` keeps the spans of that name with all below them; of these `last` keeps the N that were
    closed most recently. A span whose parent is not kept is a root. Raises ValueError for a
    negative `last`.
    """
    known = {row.id: row for row in rows}
    parents = {row.id: _parent_of(row, known) for row in known.values()}
    if name is not None:
        known = {i: row for i, row in known.items() if _is_below(i, name, known, parents)}
    if last is not None:
        if last < 0:
            raise ValueError(f"last is a number of spans from 0 on, not {last}")
        closed = [row for row in known.values() if row.end_ns is not None]
        closed.sort(key=lambda row: (row.end_ns or 0, row.id))
        known = {row.id: row for row in (closed[-last:] if last else [])}
    for row in known.values():
        row.children = []
    roots: list[Row] = []
    for row in sorted(known.values(), key=lambda row: (row.start_ns, row.id)):
        parent = parents[row.id]
        (known[parent].children if parent in known else roots).append(row)
    return roots


def _parent_of(row: Row, known: dict[int, Row]) -> int | None:
    """The nearest span around it: what outlives a span, such as a task, is no part of it."""
    if row.fixed:
        return row.parent_id
    number = row.parent_id
    for _ in known:  # a damaged spool may go round
        if number is None or number not in known:
            break
        parent = known[number]
        if parent.end_ns is None or (row.end_ns is not None and row.end_ns <= parent.end_ns):
            return number
        number = parent.parent_id
    return None


def _is_below(
    number: int, name: str, known: dict[int, Row], parents: dict[int, int | None]
) -> bool:
    """Whether a span, or one around it, has this name."""
    at: int | None = number
    for _ in known:
        if at is None or at not in known:
            break
        if known[at].name == name:
            return True
        at = parents[at]
    return False


def walk(roots: Sequence[Row]) -> Iterator[tuple[int, int | None, Row]]:
    """Depth from 0, number of the parent, and span, each before its children."""
    waiting: list[tuple[int, int | None, Row]] = [(0, None, root) for root in reversed(roots)]
    while waiting:
        depth, parent, row = waiting.pop()
        yield depth, parent, row
        waiting += [(depth + 1, row.id, child) for child in reversed(row.children)]


def text_of(roots: Sequence[Row]) -> str:
    """One line a span."""
    lines = [f"{'  ' * depth}{label(row)}" for depth, _, row in walk(roots)]
    return "\n".join(lines) if lines else NOTHING


def dict_of(roots: Sequence[Row], marks: Iterable[tuple[str, Any, str]] = ()) -> dict[str, Any]:
    """`{"roots": [...], "span_count": n, "marks": [...]}`; `marks` are those outside any span."""
    return {
        "roots": [root.to_json(None) for root in roots],
        "span_count": sum(1 for _ in walk(roots)),
        "marks": [_mark(*mark) for mark in marks],
    }


def json_of(roots: Sequence[Row], marks: Iterable[tuple[str, Any, str]] = ()) -> str:
    """The same as text."""
    return json.dumps(dict_of(roots, marks), allow_nan=False)


def frame_of(roots: Sequence[Row]) -> Any:
    """A pandas data frame, one row a span. Raises TracemlError without pandas."""
    try:
        import pandas
    except ImportError:
        raise TracemlError(
            "a data frame of spans needs pandas: pip install 'traceml-agent[pandas]'"
        ) from None
    rows = [
        (row.id, parent, row.name, row.index, row.wall_us, row.cpu_ns, row.gpu_ns, None,
         len(row.marks), depth)
        for depth, parent, row in walk(roots)
    ]  # fmt: skip
    return pandas.DataFrame(rows, columns=list(COLUMNS))


def duration(nanoseconds: int) -> str:
    """`142us`, `7.7ms`, `1.23s`."""
    if round(nanoseconds / _US) < 1_000:
        return f"{nanoseconds / _US:.0f}us"
    if round(nanoseconds / _MS, 1) < 1_000:
        return f"{nanoseconds / _MS:.1f}ms"
    return f"{nanoseconds / _S:.2f}s"


def label(row: Row) -> str:
    """A span in words: `name[index] - 7.7ms {k=v}`."""
    took = "open" if row.end_ns is None else duration(row.end_ns - row.start_ns)
    latest = {name: value for name, value, _ in row.marks}
    marks = ", ".join(f"{name}={_shown(value)}" for name, value in latest.items())
    return _printable(f"{title(row.name, row.index)} - {took}{f' {{{marks}}}' if marks else ''}")


def title(name: str, index: Any) -> str:
    """`name[index]`; without an index the name."""
    return name if index is None else f"{name}[{index}]"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return TOO_LARGE if isinstance(value, int) and not _fits(value) else str(value)


def _fits(value: Any) -> bool:
    """Whether this is a whole number that Python writes: beyond 4,300 digits it raises."""
    return isinstance(value, int) and value.bit_length() < MOST_BITS


def _printable(line: str) -> str:
    """Without what would move the cursor: names may hold anything."""
    return line if line.isprintable() else "".join(c if c.isprintable() else " " for c in line)


def _mark(name: str, value: Any, kind: str) -> dict[str, Any]:
    return {"name": name, "value": None, "kind": kind} | json_value(value)


def json_value(value: Any) -> dict[str, Any]:
    """`value` as JSON holds it, and `value_nonfinite` where that is null for want of a number."""
    if isinstance(value, float) and not math.isfinite(value):
        word = "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
        return {"value": None, "value_nonfinite": word}
    if isinstance(value, int) and not _fits(value):
        return {"value": None, "value_nonfinite": TOO_LARGE}
    return {"value": value}


def _plain(value: Any) -> Any:
    """An attribute as JSON takes it."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, (bool, float, str, type(None))) or _fits(value):
        return value
    try:
        return str(value)
    except ValueError:  # a number of more than 4,300 digits is in it
        return TOO_LARGE
