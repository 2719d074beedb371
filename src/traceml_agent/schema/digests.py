"""The records that only a digest has: what a spool says, in fewer and longer lines.

Rules and units are those of `records.py`.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples of one kind, one list a field, in the order in which they were taken.

    A field that is None in all of them is left out.
    """

    kind: ClassVar[str] = "samples"
    of: str  # "process", "host" or "gpu": the kind of their own records
    count: int
    columns: dict[str, list[Any]]


@dataclass(frozen=True, slots=True)
class Sketch:
    """How the durations of the steps are spread whose single values the digest has no longer.

    `buckets[i]` counts durations in (r^(i-1), r^i] nanoseconds with r = 1.02, so that a quantile
    is known to 1 %. Several sketches add up.
    """

    kind: ClassVar[str] = "sketch"
    steps: int
    buckets: dict[str, int]


@dataclass(frozen=True, slots=True)
class Covered:
    """Closes each part of a digest: how much of the spool it holds so far."""

    kind: ClassVar[str] = "covered"
    spool_bytes: int
    spool_lines: int
    summed_steps: int = 0  # steps of which the digest has sums only, and the spool more
    bad_lines: dict[str, str] = field(default_factory=dict)  # number of the line: what is wrong
    closed: bool = False  # the process is gone, and this is all that it left
