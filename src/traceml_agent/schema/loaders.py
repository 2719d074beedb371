"""The records of DataLoaders: what each is, what its workers did, and who waited for what.

Rules and units are those of `records.py`.
"""

from dataclasses import dataclass
from typing import ClassVar

from traceml_agent.schema.stacks import CodeLine, StackRow


@dataclass(frozen=True, slots=True)
class WorkerSums:
    """What the workers with one number did so far, those of all epochs together.

    Without workers the number is 0 and the process is the training one.
    """

    worker: int
    batches: int
    fetch_ns: int  # making batches, from the task received to the batch handed on
    collate_ns: int | None = None  # part of it: in `collate_fn`
    cpu_ns: int | None = None  # part of it: CPU time of the worker's thread
    idle_ns: int | None = None  # waiting for a task
    delay_ns: int | None = None  # waiting for a core, in some of the batches,
    watched_ns: int | None = None  # and how long these took
    send_ns: int | None = None  # CPU time of the thread that pickles and sends
    read_bytes: int | None = None  # from storage, not from the page cache
    major_faults: int | None = None
    failures: int = 0  # batches that raised


@dataclass(frozen=True, slots=True)
class Loader:
    """A DataLoader: facts, and exact sums over all its epochs so far. A later one wins.

    A batch is ready if it was made before it was asked for. The wait for a batch is split: until
    it was made, of that the time after a later batch was made already, and the rest: sending,
    unpickling, pinning.
    """

    kind: ClassVar[str] = "loader"
    monotonic_ns: int
    loader: int  # its number in this process
    dataset: str  # class
    iterable: bool
    workers: int
    status: str  # "active", or why nothing is known of the workers
    role: str | None = None  # "train", "eval"; None: not known yet
    batch_size: int | None = None
    prefetch: int | None = None
    persistent: bool = False
    pinned: bool = False
    in_order: bool = True
    context: str | None = None  # fork, spawn, forkserver
    epochs: int = 0
    start_ns: int = 0  # making iterators and their workers, or resuming them
    first_wait_ns: int = 0  # for the first batch of each epoch
    restart_ns: int = 0  # of both: what came after the first epoch
    batches: int = 0  # asked for by the training thread, first ones of an epoch aside
    wait_ns: int = 0  # for these
    known: int = 0  # batches of which the worker's part is known as well
    ready: int = 0  # of the known: made before they were asked for
    ready_ahead: int = 0  # sum over the known: batches that were ready then
    ready_wait_ns: int = 0  # wait for those that were ready
    made_wait_ns: int = 0  # until the batch was made
    behind_ns: int = 0  # part of it: a later batch was made already (head of line)
    transfer_ns: int = 0  # after it was made
    sums: list[WorkerSums] | None = None
    tokens: int = 0  # in batches of token sequences, of one batch of sixteen,
    token_batches: int = 0  # and how many these were


@dataclass(frozen=True, slots=True)
class WorkerBatches:
    """Single batches of one loader, in the order in which they were made; one a row."""

    kind: ClassVar[str] = "worker_batches"
    loader: int
    start_ns: int  # the columns of times count from here
    epoch: list[int]
    batch: list[int]  # number in its epoch, from 0
    worker: list[int]
    begun_ns: list[int]
    fetch_ns: list[int]
    collate_ns: list[int | None]
    cpu_ns: list[int | None]
    asked_ns: list[int | None]  # None: not asked for yet, or by another thread
    wait_ns: list[int | None]


@dataclass(frozen=True, slots=True)
class WorkerStacks:
    """Where the workers of a loader stood while they made batches: phase `fetch` or `collate`.
    A later one wins."""

    kind: ClassVar[str] = "worker_stacks"
    monotonic_ns: int
    loader: int
    samples: int  # those of rows that were left out too
    lines: list[CodeLine]
    rows: list[StackRow]
