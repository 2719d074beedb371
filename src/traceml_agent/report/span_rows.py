"""The rows of a tree from what a spool holds of scopes and marks."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from traceml_agent.report.spans import Row
from traceml_agent.schema.spans import Marks, Spans
from traceml_agent.spool.spans import SpanRecords

MOST_POINTS = 1_024
"""Point marks of a span, as in memory. Source: the promise of docs/api.md."""

Found = tuple[int, str, Any, str]
"""When, name, value, kind."""


def rows_in(found: SpanRecords, most: int) -> tuple[list[Row], list[tuple[str, Any, str]]]:
    """The newest closed spans and all open ones; and the marks outside any span."""
    rows: dict[int, Row] = {}
    for record in found.spans:
        for row in _rows(record):
            rows.pop(row.id, None)  # so that the order is that of the ends
            rows[row.id] = row
    closed = [row for row in rows.values() if row.end_ns is not None]
    for row in closed[: max(0, len(closed) - most)]:
        del rows[row.id]
    points: dict[int, deque[Found]] = {}
    summaries: dict[int, list[Found]] = {}
    for marks in found.marks:
        kept_by_summary = frozenset(marks.summary)
        for number, mark in enumerate(_marks(marks, kept_by_summary)):
            span = marks.span[number]
            if span and span not in rows:
                continue
            if number in kept_by_summary:
                summaries.setdefault(span, []).append(mark)
            else:
                points.setdefault(span, deque(maxlen=MOST_POINTS)).append(mark)

    def of(span: int) -> list[tuple[str, Any, str]]:
        both = [*summaries.get(span, ()), *points.get(span, ())]
        return [mark[1:] for mark in sorted(both, key=lambda mark: mark[0])]

    for row in rows.values():
        row.marks = of(row.id)
    return [rows[number] for number in sorted(rows)], of(0)


def _rows(record: Spans) -> Iterator[Row]:
    for row, number in enumerate(record.id):
        start = record.start_ns + record.begun_ns[row]
        duration = record.duration_ns[row]
        yield Row(
            id=number,
            # A scope is opened after the one around it: a damaged spool may go round.
            parent_id=parent if 0 < (parent := record.parent[row]) < number else None,
            name=record.names[record.name[row]],
            index=_scalar(record.indexes[row]),
            start_ns=start,
            end_ns=None if duration is None else start + duration,
            cpu_ns=record.cpu_ns[row],
            attrs=record.attrs.get(str(row), {}),
            marks=[],
            phase=record.phase[row],
        )


def _marks(record: Marks, summary: frozenset[int]) -> Sequence[Found]:
    return [
        (
            record.at_ns[row],
            record.names[name],
            value_of(record.values[row], record.special.get(str(row))),
            "summary" if row in summary else "point",
        )
        for row, name in enumerate(record.name)
    ]


def _scalar(index: Any) -> Any:
    return index if index is None or type(index) is int else str(index)


def value_of(value: Any, special: str | None) -> Any:
    """What was marked: JSON has no infinity and no integer of any length."""
    if special is None:
        return value if isinstance(value, (bool, int, float, str)) else None
    if special in ("nan", "inf", "-inf"):
        return float(special)
    return int(special) if special.lstrip("-").isdecimal() and len(special) < 1_300 else None
