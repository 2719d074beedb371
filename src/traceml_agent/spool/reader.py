"""Reads a spool back, whatever happened to its writer: torn tails, empty and foreign files."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

from traceml_agent.errors import NewerSchema, TracemlError
from traceml_agent.schema.causes import GcTotals, Sched
from traceml_agent.schema.collectives import Arrivals, Collectives, DdpTimes
from traceml_agent.schema.digests import Samples, Sketch
from traceml_agent.schema.loaders import Loader, WorkerBatches, WorkerStacks
from traceml_agent.schema.records import (
    SPOOL_SCHEMA,
    DeviceSteps,
    End,
    Event,
    Fault,
    GpuSample,
    Header,
    HostSample,
    Outside,
    Overhead,
    Patches,
    ProcessSample,
    Record,
    Steps,
    StepSums,
)
from traceml_agent.schema.retained import Retained
from traceml_agent.schema.snapshots import MOST_KEPT, Snapshot
from traceml_agent.schema.spans import Marks, Passes, Scopes, Spans
from traceml_agent.schema.stacks import Stacks
from traceml_agent.schema.stalls import ProcessGroups, Stall
from traceml_agent.spool.format import (
    RING_SUFFIX,
    STACK_SUFFIX,
    BadRecord,
    decode,
    samples_of,
)
from traceml_agent.spool.plausible import StepNumbers, check
from traceml_agent.spool.ring import read_ending, read_ring
from traceml_agent.spool.rows import batches_of
from traceml_agent.spool.sketch import added
from traceml_agent.spool.spans import SpanRecords

STACK_LIMIT_BYTES = 64 * 1024
BadLine = tuple[int, str]
"""The number of a line that is no record, and what is wrong with it."""


class NotASpool(TracemlError):
    """The first line of a file is no header of a spool."""


@dataclass(slots=True)
class Spool:
    """All records of one process, by kind and in the order written."""

    path: Path
    header: Header
    size: int = 0  # bytes, a torn end included
    statuses: dict[str, str] = field(default_factory=dict)
    batches: list[Steps] = field(default_factory=list)
    sums: list[StepSums] = field(default_factory=list)
    device_batches: list[DeviceSteps] = field(default_factory=list)
    outside_ns: dict[str, int] = field(default_factory=dict)
    process_samples: list[ProcessSample] = field(default_factory=list)
    host_samples: list[HostSample] = field(default_factory=list)
    gpu_samples: list[GpuSample] = field(default_factory=list)
    collectives: list[Collectives] = field(default_factory=list)
    arrivals: list[Arrivals] = field(default_factory=list)
    ddp: dict[int, DdpTimes] = field(default_factory=dict)  # by model
    gc: GcTotals | None = None
    sched: list[Sched] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    stalls: list[Stall] = field(default_factory=list)
    process_groups: list[ProcessGroups] = field(default_factory=list)
    loaders: dict[int, Loader] = field(default_factory=dict)  # by number
    worker_batches: list[WorkerBatches] = field(default_factory=list)
    worker_stacks: dict[int, WorkerStacks] = field(default_factory=dict)  # by loader
    stacks: Stacks | None = None
    retained: list[Retained] = field(default_factory=list)
    spans: SpanRecords = field(default_factory=SpanRecords)
    snapshots: list[Snapshot] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    overhead: Overhead | None = None
    end: End | None = None
    noted_ending: tuple[str, int | None] | None = None  # in the ring, for want of an `end`
    fatal_stack: str | None = None  # written by faulthandler at SIGTERM or a crash
    last_monotonic_ns: int = 0
    problems: list[str] = field(default_factory=list)
    sketch: Sketch | None = None  # of the steps in `sums`, where a digest summed them up
    summed_steps: int = 0  # those of them of which the spool has more
    is_elsewhere: bool = False  # the spool lies on another machine: this is its digest
    is_closed: bool = False  # the digest holds all that a process left that is gone
    spool_size: int = 0  # bytes of the spool itself, where it is not at `path`
    bad_lines: list[BadLine] = field(default_factory=list)
    numbers: StepNumbers = field(default_factory=StepNumbers)


def keep_lines(spool: Spool, lines: Sequence[bytes], first_number: int) -> list[BadLine]:
    """Takes the records of these lines; returns those that are none, by number."""
    bad: list[BadLine] = []
    for number, line in enumerate(lines, start=first_number):
        if not line:
            continue
        try:
            record = decode(line)
            if record is not None:
                check(record)
                _keep(spool, record, spool.numbers)
        except BadRecord as error:
            bad.append((number, str(error)))
    return bad


def header_of(path: Path) -> Header:
    """The first record of a spool. Raises NotASpool, NewerSchema and OSError."""
    with path.open("rb") as file:
        return header_in(path, file.readline().removesuffix(b"\n"))


def header_in(path: Path, line: bytes) -> Header:
    try:
        record = decode(line)
    except BadRecord as error:
        raise NotASpool(f"{path} is no spool: its first line is {error}") from None
    if not isinstance(record, Header):
        raise NotASpool(f"{path} is no spool: its first line is no header")
    try:
        check(record)
    except BadRecord as error:
        raise NotASpool(f"{path} is no spool: its first line says {error}") from None
    version = version_of(record.schema, SPOOL_SCHEMA)
    if version is None:
        raise NotASpool(f"{path} is no spool: its schema is {record.schema[:80]!r}")
    if version > int(SPOOL_SCHEMA.partition("/")[2]):
        raise NewerSchema(
            f"{path} was written with schema {record.schema}; this version reads up to "
            f"{SPOOL_SCHEMA}: update traceml-agent to read it"
        )
    return record


def version_of(schema: str, known: str) -> int | None:
    """The number in `name/number`; None if the name is not that of `known`, or without a number."""
    name, _, number = schema.partition("/")
    # Unicode has more digits than `int` takes, and `int` takes no more than 4,300 of them.
    is_number = number.isascii() and number.isdigit() and len(number) < 19
    return int(number) if is_number and name == known.partition("/")[0] else None


def _keep(spool: Spool, record: Record, numbers: StepNumbers) -> None:
    monotonic_ns = getattr(record, "monotonic_ns", 0)
    if isinstance(record, Steps):
        _only_once(record, numbers)
        spool.batches.append(record)
        _drop_end_before(spool, record.start_ns)
        monotonic_ns = record.start_ns + sum(record.duration_ns)
    elif isinstance(record, StepSums):
        _only_once(record, numbers)
        spool.sums.append(record)
    elif isinstance(record, DeviceSteps):
        spool.device_batches.append(record)
    elif isinstance(record, Patches):
        spool.statuses.update(record.statuses)
    elif isinstance(record, Outside):
        spool.outside_ns = record.phase_ns
    elif isinstance(record, Samples):
        monotonic_ns = _keep_samples(spool, record)
    elif isinstance(record, Sketch):
        _keep_sketch(spool, record)
    elif isinstance(record, ProcessSample):
        spool.process_samples.append(record)
    elif isinstance(record, HostSample):
        spool.host_samples.append(record)
    elif isinstance(record, GpuSample):
        spool.gpu_samples.append(record)
    elif isinstance(record, Collectives):
        spool.collectives.append(record)
    elif isinstance(record, Arrivals):
        spool.arrivals.append(record)
    elif isinstance(record, DdpTimes):
        spool.ddp[record.model] = record
    elif isinstance(record, GcTotals):
        spool.gc = record
    elif isinstance(record, Sched):
        spool.sched.append(record)
    elif isinstance(record, Event):
        spool.events.append(record)
    elif isinstance(record, Stall):
        spool.stalls.append(record)
    elif isinstance(record, ProcessGroups):
        spool.process_groups.append(record)
    elif isinstance(record, Loader):
        spool.loaders[record.loader] = record
    elif isinstance(record, WorkerBatches):
        spool.worker_batches.append(record)
    elif isinstance(record, WorkerStacks):
        spool.worker_stacks[record.loader] = record
    elif isinstance(record, Stacks):
        spool.stacks = record
    elif isinstance(record, Retained):
        spool.retained.append(record)
    elif isinstance(record, (Spans, Marks, Passes, Scopes)):
        spool.spans.keep(record)
    elif isinstance(record, Snapshot):
        spool.snapshots.append(record)
        del spool.snapshots[:-MOST_KEPT]
    elif isinstance(record, Fault):
        spool.faults.append(record)
    elif isinstance(record, Overhead):
        spool.overhead = record
    elif isinstance(record, End):
        spool.end = record
    spool.last_monotonic_ns = max(spool.last_monotonic_ns, monotonic_ns)


def _keep_samples(spool: Spool, record: Samples) -> int:
    """Returns when the last one was taken."""
    found = samples_of(record)
    if record.of == ProcessSample.kind:
        spool.process_samples += found
    elif record.of == HostSample.kind:
        spool.host_samples += found
    else:
        spool.gpu_samples += found
    return max((sample.monotonic_ns for sample in found), default=0)


def _keep_sketch(spool: Spool, record: Sketch) -> None:
    known = spool.sketch or Sketch(0, {})
    spool.sketch = Sketch(known.steps + record.steps, added(known.buckets, record.buckets))


def _only_once(steps: Steps | StepSums, numbers: StepNumbers) -> None:
    if not numbers.add(steps.first_step, steps.count):
        raise BadRecord(f"{steps.kind}: step {steps.first_step} and on are known already")


def sort_samples(spool: Spool) -> None:
    """By time, which is the order they were written in unless lines were moved."""
    samples: list[list[Any]] = [spool.process_samples, spool.host_samples, spool.gpu_samples]
    for column in samples:
        column.sort(key=attrgetter("monotonic_ns"))


def add_ring(spool: Spool) -> None:
    """Adds the steps that were closed but not yet in the spool when the process died."""
    path = ring_path_of(spool.path, spool.header)
    try:
        rows, ending = read_ring(path), read_ending(path)
    except FileNotFoundError:
        return
    except (OSError, TracemlError) as error:
        spool.problems.append(f"{spool.path.name}: ring not read: {error}")
        return
    known = last_step(spool)
    fresh = [row for row in rows if row[0] > known]
    if fresh:
        for record in batches_of(fresh):
            if isinstance(record, StepSums):
                spool.sums.append(record)
            else:
                spool.batches.append(record)
        _, start_ns, duration_ns, *_ = fresh[-1]
        _drop_end_before(spool, start_ns)
        spool.last_monotonic_ns = max(spool.last_monotonic_ns, start_ns + duration_ns)
    if ending is not None and spool.end is None:
        spool.noted_ending = ending
        spool.problems.append(
            f"{spool.path.name}: the disk did not take the last records; the steps and the end of "
            "the process are known from the ring"
        )


def _drop_end_before(spool: Spool, start_ns: int) -> None:
    """A step that begins after an `end`: the process did not become another program after all."""
    if spool.end is not None and spool.end.monotonic_ns <= start_ns:
        spool.end = None


def ring_path_of(spool_path: Path, header: Header) -> Path:
    """The ring of a spool: beside it, or where the header says."""
    beside = spool_path.with_suffix(RING_SUFFIX)
    if header.ring_path is None or "\0" in header.ring_path or beside.exists():
        return beside
    return Path(header.ring_path)


def last_step(spool: Spool) -> int:
    """The highest step number that the spool knows; 0 if none."""
    in_batches = max((b.first_step + b.count - 1 for b in spool.batches), default=0)
    return max(in_batches, max((s.first_step + s.count - 1 for s in spool.sums), default=0))


def add_stack(spool: Spool) -> None:
    path = spool.path.with_suffix(STACK_SUFFIX)
    with contextlib.suppress(OSError), path.open("rb") as file:
        text = file.read(STACK_LIMIT_BYTES).decode("utf-8", "replace").strip()
        spool.fatal_stack = text or None
