"""What a spool says of scopes: kept where it is wanted, and made fewer for a digest."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from traceml_agent.schema.spans import Marks, MarkSums, Passes, Scopes, ScopeSums, Spans

DIGEST_ROWS = 20_000
"""Rows of scopes, of marks and of passes that a digest keeps, the newest ones. Chosen: as steps."""


@dataclass(slots=True)
class SpanRecords:
    """Single scopes and marks are many, and only a tree needs them: `wanted` says whether."""

    wanted: bool = True
    spans: list[Spans] = field(default_factory=list)
    marks: list[Marks] = field(default_factory=list)
    passes: list[Passes] = field(default_factory=list)
    sums: dict[str, ScopeSums] = field(default_factory=dict)  # by name
    mark_sums: dict[tuple[str | None, str], MarkSums] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    sums_ns: int = 0  # when these sums were written

    def keep(self, record: Spans | Marks | Passes | Scopes) -> None:
        """Takes a record of the spool."""
        if isinstance(record, Scopes):
            self.sums.update({row.name: row for row in record.rows})
            self.mark_sums.update({(row.scope, row.name): row for row in record.marks})
            self.dropped.update(record.dropped)
            self.sums_ns = max(self.sums_ns, record.monotonic_ns)
        elif not self.wanted:
            return
        elif isinstance(record, Spans):
            self.spans.append(record)
        elif isinstance(record, Marks):
            self.marks.append(record)
        else:
            self.passes.append(record)

    def all_sums(self) -> list[Scopes]:
        """One record with all sums so far; none where there is nothing."""
        if not (self.sums or self.mark_sums or self.dropped):
            return []
        found = (list(self.sums.values()), list(self.mark_sums.values()), self.dropped)
        return [Scopes(self.sums_ns, *found)]

    def newest(self) -> "list[Spans | Marks | Passes | Scopes]":
        """The newest records of each kind, up to DIGEST_ROWS rows; and the sums."""
        return [
            *_newest(self.spans),
            *_newest(self.marks),
            *_newest(self.passes),
            *self.all_sums(),
        ]

    @property
    def rows(self) -> int:
        """Rows of scopes and marks."""
        return sum(len(r.id) for r in self.spans) + sum(len(r.span) for r in self.marks)


def _newest(records: "list[Spans] | list[Marks] | list[Passes]") -> "Iterator[Spans|Marks|Passes]":
    room = DIGEST_ROWS
    first = len(records)
    while first and room > 0:
        first -= 1
        room -= rows_in(records[first])
    yield from records[first:]


def rows_in(record: "Spans | Marks | Passes") -> int:
    """How many scopes, marks or passes."""
    if isinstance(record, Spans):
        return len(record.id)
    return len(record.span) if isinstance(record, Marks) else len(record.loader)


def joined_sums(records: Iterable[Scopes]) -> list[Scopes]:
    """One record that says the same as several that follow each other."""
    found = SpanRecords()
    for record in records:
        found.keep(record)
    return found.all_sums()
