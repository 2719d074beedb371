"""The record of sampled stacks: which lines of the program the training thread was seen in.

Rules and units are those of `records.py`.
"""

from dataclasses import dataclass, field
from typing import ClassVar

RESIDUAL, OUTSIDE, UNKNOWN = "residual", "outside", "unknown"
"""In place of a phase: in a step but in no phase of it; in no step at all; a phase that had ended
when the sample could be taken."""
FREE_CALLS = frozenset(
    (
        "time", "time_ns", "perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns",
        "process_time", "process_time_ns", "thread_time", "clock", "append",
    )
)  # fmt: skip
"""Functions whose call takes no time: a sample that comes there missed what ran before."""


@dataclass(frozen=True, slots=True)
class CodeLine:
    """A line of the program, and what of it was at work. Text only where it was read."""

    file: str
    line: int
    function: str
    call: str | None = None  # the expression that was evaluated, from Python 3.11 on
    text: str | None = None  # the whole line
    loop: bool = False  # a `for` that asks for its next item


@dataclass(frozen=True, slots=True)
class StackRow:
    """How often the thread was seen in one place. `late` of the samples came 1 ms or more late:
    code that holds the interpreter lock ran until just before. `yielded` of these did not wait for
    the whole switch interval: the thread let go of the lock here by itself, so that this line or
    what ran just before it was at work."""

    phase: str
    lines: list[int]  # of `CodeLine`s, the innermost first; empty: no code of the program
    samples: int
    weight_ns: int  # the time that they stand for
    late: int = 0
    before: bool = False  # not here, but in what ran just before: the phase began since
    callee: str | None = None  # function of a library that the innermost line had called
    leaf: str | None = None  # where that was most often: the innermost function of a library
    yielded: int = 0
    yielded_ns: int = 0  # the time that these stand for
    prior: int | None = None  # of late samples: the only `CodeLine` that can have taken the time


@dataclass(frozen=True, slots=True)
class Stacks:
    """All samples so far. A later one wins."""

    kind: ClassVar[str] = "stacks"
    monotonic_ns: int
    since_ns: int  # when sampling began
    step: int  # last closed step
    interval_ns: int  # mean time between two samples, now
    samples: int
    weight_ns: int
    lines: list[CodeLine]
    rows: list[StackRow]
    other: dict[str, int] = field(default_factory=dict)  # phase: time in stacks left out
    other_samples: dict[str, int] = field(default_factory=dict)
