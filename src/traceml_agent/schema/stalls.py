"""The records of a stall: where each thread stands, and how far each process group got.

Rules and units are those of `records.py`.
"""

from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class ThreadStack:
    """Where a thread of the process stands: places only, no values."""

    name: str
    training: bool  # the thread that trains
    stack: str  # lines `  File "F", line N, in FUNCTION`, the innermost last
    state: str | None = None  # of the kernel: R, S, D (in a system call that cannot end), ...
    waits_in: str | None = None  # the kernel function it sleeps in


@dataclass(frozen=True, slots=True)
class Stall:
    """No step was closed for `limit_ns`. Written once a stall, and once more if what looked busy
    at first came to rest; whether it is a hang is for the reader of all ranks to say."""

    kind: ClassVar[str] = "stall"
    monotonic_ns: int
    step: int  # last closed step
    since_ns: int  # when it was seen closed; later by as long as the process was stopped
    limit_ns: int
    quiet_ns: int  # since the last call that a patch saw; less than the limit: it is busy
    phase: str | None  # the open one
    input_from: str | None  # "stdin", "debugger", "prompt": it waits for a person
    threads: list[ThreadStack]
    threads_left_out: int = 0


@dataclass(frozen=True, slots=True)
class Operation:
    """One collective, from torch's Flight Recorder."""

    sequence: int
    name: str
    sizes: str  # of its inputs: "3x4, 5"
    done: bool


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """How far this rank got in the collectives of a process group."""

    name: str
    description: str
    backend: str
    ranks: list[int]
    entered: int | None  # sequence number of the last collective that this rank entered
    operations: list[Operation] = field(default_factory=list)  # the last ones


@dataclass(frozen=True, slots=True)
class ProcessGroups:
    """The process groups at a stall; written after the `stall` it belongs to."""

    kind: ClassVar[str] = "process_groups"
    monotonic_ns: int
    step: int
    groups: list[ProcessGroup]
