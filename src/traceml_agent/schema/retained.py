"""The record of tensors that steps made and that outlived them.

Rules and units are those of `records.py`.
"""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class RetainedTensors:
    """Tensors of one shape that were made in one line, and are still alive."""

    file: str
    line: int
    text: str | None  # the line, where it was read
    shape: list[int]
    dtype: str
    count: int
    bytes: int  # of all of them; a view counts like what it is a view of
    with_graph: int  # how many hold on to the autograd graph that made them


@dataclass(frozen=True, slots=True)
class Retained:
    """What some steps made that was still alive many steps later."""

    kind: ClassVar[str] = "retained"
    monotonic_ns: int
    step: int  # the last of these steps
    steps: int
    later_steps: int
    tensors: list[RetainedTensors]  # most bytes first
    left_out: int  # further groups
    looked_ns: int  # how long the look at all live tensors took
