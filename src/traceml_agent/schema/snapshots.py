"""The record of figures of the weights and gradients of a model.

Rules and units are those of `records.py`.
"""

from dataclasses import dataclass, field
from typing import ClassVar

BINS = 16
"""Of a histogram. Source: the issue; the width of a bin is a sixteenth of max - min."""
MOST_KEPT = 64
"""Snapshots of a process that a reader keeps, the newest. Chosen: 256 tensors of 64 ranks for 64
epochs are a million figures."""
EPOCH, STEPS, EXIT = "epoch", "steps", "exit"
"""Why a snapshot was taken: an epoch ends, many steps were made since the last one, the end."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Of the finite elements of a tensor; None where there is none."""

    mean: float | None
    std: float | None  # of all elements, divided by their number
    min: float | None
    max: float | None
    l2: float | None  # the root of the sum of squares
    histogram: list[int]  # BINS counts from min to max; all in the first one if these are equal
    nan: int
    inf: int


@dataclass(frozen=True, slots=True)
class TensorFigures:
    """A parameter and its gradient, both as they were right after the update of one step."""

    name: str
    shape: list[int]
    dtype: str
    elements: int
    looked: int  # elements that the figures are about: blocks of a larger tensor, evenly spread
    step: int
    weight: Figures
    gradient: Figures | None
    no_gradient: str | None = None  # why: "none", "sparse", "scaled", "not at an update", ...
    shard: bool = False  # the part of this rank alone


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Figures of the parameters of a model around one moment."""

    kind: ClassVar[str] = "snapshot"
    monotonic_ns: int
    cause: str  # EPOCH, STEPS or EXIT
    epoch: int | None  # from 1: the one that ends here or is under way; None without a loader
    first_step: int
    last_step: int
    tensors: list[TensorFigures]  # in the order of the model
    stall_ns: int  # taken from the training thread: all together, and at once
    longest_stall_ns: int
    reduced_ns: int  # CPU time of the thread that computed the figures
    left_out: dict[str, int] = field(default_factory=dict)  # parameters, by reason
