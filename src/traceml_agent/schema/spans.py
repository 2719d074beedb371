"""The records of scopes and marks: what a program opened, what it noted, and sums of both.

Rules and units are those of `records.py`.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Spans:
    """Scopes, one column a quantity: those that were closed, and those found open.

    A scope that was open comes again when it is closed: the later row of an `id` wins.
    """

    kind: ClassVar[str] = "spans"
    start_ns: int  # `begun_ns` counts from here
    names: list[str]
    id: list[int]  # from 1, in the order in which they were opened
    parent: list[int]  # 0: none
    name: list[int]  # number into `names`
    indexes: list[Any]
    begun_ns: list[int]
    duration_ns: list[int | None]  # None: still open
    cpu_ns: list[int | None]
    phase: list[int | None]  # open then: 0 none, else 1 + its place in PHASES; None: other thread
    attrs: dict[str, dict[str, Any]] = field(default_factory=dict)  # by row


@dataclass(frozen=True, slots=True)
class Marks:
    """Values that a program noted, one column a quantity, in the order of their scopes."""

    kind: ClassVar[str] = "marks"
    names: list[str]
    span: list[int]  # id of the scope; 0: outside any
    name: list[int]  # number into `names`
    at_ns: list[int]
    values: list[Any]  # None: see `special`, or none
    special: dict[str, str] = field(default_factory=dict)  # by row: nan, inf, -inf, or an integer
    summary: list[int] = field(default_factory=list)  # rows of the kind `summary`
    attrs: dict[str, dict[str, Any]] = field(default_factory=dict)  # by row


@dataclass(frozen=True, slots=True)
class Passes:
    """How often a DataLoader was gone through, a row each. A later row of the same pass wins."""

    kind: ClassVar[str] = "passes"
    loader: list[int]
    number: list[int]  # of the pass of this loader, from 0
    start_ns: list[int]
    end_ns: list[int | None]  # None: not at its end yet, or left before
    last_ns: list[int]  # when the last batch so far came
    batches: list[int]


@dataclass(frozen=True, slots=True)
class ScopeSums:
    """All closed scopes of one name so far."""

    name: str
    count: int
    total_ns: int
    longest_ns: int


@dataclass(frozen=True, slots=True)
class MarkSums:
    """All marks of the kind `summary` of one name in scopes of one name so far."""

    name: str
    count: int
    scope: str | None = None  # None: outside any
    last: Any = None
    special: str | None = None  # as in `Marks`


@dataclass(frozen=True, slots=True)
class Scopes:
    """Exact sums over scopes and summary marks; only those that changed since the last record."""

    kind: ClassVar[str] = "scopes"
    monotonic_ns: int
    rows: list[ScopeSums]
    marks: list[MarkSums] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)  # so far, by reason
