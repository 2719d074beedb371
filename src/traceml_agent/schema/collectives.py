"""The records of a spool on collectives: see records.py."""

from dataclasses import dataclass
from typing import ClassVar

DENSE_STEPS = 256
SPARSE = 16
"""Of the steps after the first 256, one of sixteen of those is kept that would be kept else: such a
call stands for sixteen. Chosen: each rank of a job leaves some thousand calls, whatever it does."""


@dataclass(frozen=True, slots=True)
class CollectiveKey:
    """What calls of a collective have in common."""

    op: str  # name of the function in torch.distributed
    group: str  # the same on all its ranks
    group_size: int
    backend: str  # gloo, nccl, ...
    blocking: int  # 1: the host waits in the call until it is done; 0: it only enqueues


@dataclass(frozen=True, slots=True)
class CollectiveSums:
    """Exact sums of calls that are not kept one by one."""

    key: int
    part: int
    first_step: int
    last_step: int
    calls: int
    duration_ns: int
    bytes: int | None


@dataclass(frozen=True, slots=True)
class Collectives:
    """A columnar batch of calls of torch.distributed from Python, in the order of their ends."""

    kind: ClassVar[str] = "collectives"
    keys: list[CollectiveKey]
    key: list[int]  # index into keys
    step: list[int]  # last closed step + 1, when it was called
    seq: list[int]  # number of the call in its group, from 1; 0: between two ranks, not numbered
    start_ns: list[int]
    duration_ns: list[int]  # host time in the call
    bytes: list[int | None]
    phase: list[int | None]  # open phase, as an index into PHASES
    part: list[int]  # 0 a call, 1 an async call, 2 the wait for the handle of one
    sums: list[CollectiveSums]
    lost: int  # calls so far that were not kept: more than the log holds came between two writes
    cost_ns: int  # what noting the calls cost the training thread so far


@dataclass(frozen=True, slots=True)
class Arrivals:
    """When collectives were entered, whoever called them: from torch's Flight Recorder."""

    kind: ClassVar[str] = "arrivals"
    monotonic_ns: int
    keys: list[CollectiveKey]  # as the recorder names operations; `blocking` means nothing here
    key: list[int]  # index into keys
    seq: list[int]  # number of the collective in its group
    entered_ns: list[int]


@dataclass(frozen=True, slots=True)
class DdpTimes:
    """What DistributedDataParallel measured itself: means of an iteration. A later one wins."""

    kind: ClassVar[str] = "ddp"
    monotonic_ns: int
    model: int  # in the order they were made
    step: int
    iterations: int
    backend: str
    bytes: int | None  # of all parameters
    buckets: int | None
    forward_ns: int | None
    backward_ns: int | None
    communication_ns: int  # from the first bucket to the end of the last one
    overlap_ns: int | None  # of it, while backward computed
