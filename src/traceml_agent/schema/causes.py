"""The records of a spool on what takes time from the training thread: see records.py."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class GcTotals:
    """Garbage collections since recording began, exact. A later one wins.

    Lists have one value a generation.
    """

    kind: ClassVar[str] = "gc"
    monotonic_ns: int
    step: int  # last closed step
    count: list[int]  # in the training thread
    duration_ns: list[int]
    noted: int  # of them, those that are also events of their own
    noted_ns: int
    other_count: int  # in other threads, which hold the interpreter lock meanwhile
    other_ns: int


@dataclass(frozen=True, slots=True)
class Sched:
    """What the kernel says of the training thread, in intervals that follow each other.

    An interval in which the thread waited much for a core stands alone, others are joined.
    """

    kind: ClassVar[str] = "sched"
    start_ns: int
    source: str  # "schedstat"; "thread_time": only `run_ns` is known
    duration_ns: list[int]
    run_ns: list[int]  # on a core
    delay_ns: list[int] | None  # ready, waiting for a core; that of autograd's threads included
    throttled_ns: list[int] | None  # its group was held back by a quota; None: there is no quota
    others_run_ns: list[int]  # CPU time of other threads of Python
    probes: list[int]  # how often the agent's thread woke up,
    probe_wait_ns: list[int]  # and how long it then waited for the interpreter lock
    busiest: str | None = None  # name of the other thread of Python that ran most
