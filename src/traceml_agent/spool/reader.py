"""Reads a spool back, whatever happened to its writer: torn tails, empty and foreign files."""

import contextlib
from dataclasses import dataclass, field
from operator import add, eq
from pathlib import Path

from traceml_agent.errors import NewerSchema, TracemlError
from traceml_agent.schema.phases import PHASES
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
from traceml_agent.spool.format import RING_SUFFIX, STACK_SUFFIX, BadRecord, decode
from traceml_agent.spool.ring import Row, read_ring

STACK_LIMIT_BYTES = 64 * 1024


class NotASpool(TracemlError):
    """The first line of a file is no header of a spool."""


@dataclass(slots=True)
class Spool:
    """All records of one process, by kind and in the order written."""

    path: Path
    header: Header
    statuses: dict[str, str] = field(default_factory=dict)
    batches: list[Steps] = field(default_factory=list)
    sums: list[StepSums] = field(default_factory=list)
    device_batches: list[DeviceSteps] = field(default_factory=list)
    outside_ns: dict[str, int] = field(default_factory=dict)
    process_samples: list[ProcessSample] = field(default_factory=list)
    host_samples: list[HostSample] = field(default_factory=list)
    gpu_samples: list[GpuSample] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    overhead: Overhead | None = None
    end: End | None = None
    fatal_stack: str | None = None  # written by faulthandler at SIGTERM or a crash
    last_monotonic_ns: int = 0
    problems: list[str] = field(default_factory=list)


def read_spool(path: Path) -> Spool:
    """Everything a process left: its spool, the steps still in its ring, its fatal stack.

    Raises NotASpool, NewerSchema and OSError. Lines that are no records are skipped and named in
    `problems`; a last line without a newline is a torn write and is skipped too.
    """
    lines = path.read_bytes().split(b"\n")
    spool = Spool(path, _header(path, lines[0] if lines else b""))
    bad = 0
    last = len(lines) - 1
    for number, line in enumerate(lines[1:], start=1):
        if not line:
            continue
        try:
            record = decode(line)
        except BadRecord as error:
            if number == last:
                spool.problems.append(f"{path.name}: the last line is torn and was left out")
            else:
                bad += 1
                if bad == 1:
                    spool.problems.append(f"{path.name}: line {number + 1} skipped ({error})")
            continue
        if record is not None:
            _keep(spool, record)
    if bad > 1:
        spool.problems.append(f"{path.name}: {bad} lines skipped in all")
    _add_ring(spool)
    _add_stack(spool)
    return spool


def _header(path: Path, line: bytes) -> Header:
    try:
        record = decode(line)
    except BadRecord as error:
        raise NotASpool(f"{path} is no spool: its first line is {error}") from None
    if not isinstance(record, Header):
        raise NotASpool(f"{path} is no spool: its first line is no header")
    name, _, version = record.schema.partition("/")
    known_name, _, known_version = SPOOL_SCHEMA.partition("/")
    if name != known_name or not version.isdigit():
        raise NotASpool(f"{path} is no spool: its schema is {record.schema!r}")
    if int(version) > int(known_version):
        raise NewerSchema(
            f"{path} was written with schema {record.schema}; this version reads up to "
            f"{SPOOL_SCHEMA}: update traceml-agent to read it"
        )
    return record


def _keep(spool: Spool, record: Record) -> None:
    monotonic_ns = getattr(record, "monotonic_ns", 0)
    if isinstance(record, Steps):
        problem = _misshapen(record)
        if problem:
            spool.problems.append(f"{spool.path.name}: steps {record.first_step}.. {problem}")
            return
        spool.batches.append(record)
        monotonic_ns = record.start_ns + sum(record.duration_ns)
    elif isinstance(record, StepSums):
        spool.sums.append(record)
    elif isinstance(record, DeviceSteps):
        if all(len(c) == record.count for c in (record.duration_ns, *record.phase_ns.values())):
            spool.device_batches.append(record)
    elif isinstance(record, Patches):
        spool.statuses.update(record.statuses)
    elif isinstance(record, Outside):
        spool.outside_ns = record.phase_ns
    elif isinstance(record, ProcessSample):
        spool.process_samples.append(record)
    elif isinstance(record, HostSample):
        spool.host_samples.append(record)
    elif isinstance(record, GpuSample):
        spool.gpu_samples.append(record)
    elif isinstance(record, Event):
        spool.events.append(record)
    elif isinstance(record, Fault):
        spool.faults.append(record)
    elif isinstance(record, Overhead):
        spool.overhead = record
    elif isinstance(record, End):
        spool.end = record
    spool.last_monotonic_ns = max(spool.last_monotonic_ns, monotonic_ns)


def _misshapen(batch: Steps) -> str | None:
    if batch.count < 1 or batch.first_step < 1:
        return "skipped: a batch without steps"
    for column in (batch.duration_ns, *batch.phase_ns.values()):
        if len(column) != batch.count or min(column) < 0:
            return "skipped: a column of another length, or a negative time"
    for column_or_one in (batch.micro_batches, batch.samples, batch.updates, batch.d2h_ns):
        if isinstance(column_or_one, list) and len(column_or_one) != batch.count:
            return "skipped: a column of another length"
    return None


def _add_ring(spool: Spool) -> None:
    """Adds the steps that were closed but not yet in the spool when the process died."""
    path = ring_path_of(spool.path, spool.header)
    try:
        rows = read_ring(path)
    except FileNotFoundError:
        return
    except (OSError, TracemlError) as error:
        spool.problems.append(f"{spool.path.name}: ring not read: {error}")
        return
    known = last_step(spool)
    fresh = [row for row in rows if row[0] > known]
    if fresh:
        spool.batches.extend(batches_of(fresh))
        _, start_ns, duration_ns, *_ = fresh[-1]
        spool.last_monotonic_ns = max(spool.last_monotonic_ns, start_ns + duration_ns)


def ring_path_of(spool_path: Path, header: Header) -> Path:
    """The ring of a spool: beside it, or where the header says."""
    beside = spool_path.with_suffix(RING_SUFFIX)
    if header.ring_path is None or beside.exists():
        return beside
    return Path(header.ring_path)


def last_step(spool: Spool) -> int:
    """The highest step number that the spool knows; 0 if none."""
    in_batches = max((b.first_step + b.count - 1 for b in spool.batches), default=0)
    return max(in_batches, max((s.first_step + s.count - 1 for s in spool.sums), default=0))


def batches_of(rows: list[Row]) -> list[Steps]:
    """Columnar batches of rows in order; a gap in time or number starts a new batch."""
    if not rows:
        return []
    steps, starts, durations, *_ = zip(*rows, strict=True)
    # As a whole first, by C code: almost always there is no gap.
    in_time = all(map(eq, starts[1:], map(add, starts, durations)))
    if in_time and steps[-1] - steps[0] == len(steps) - 1:
        return [_batch(rows)]
    batches: list[Steps] = []
    begin = 0
    for index in range(1, len(rows) + 1):
        if index < len(rows):
            (step, start_ns, duration_ns, *_), after = rows[index - 1], rows[index]
            if after[0] == step + 1 and after[1] == start_ns + duration_ns:
                continue
        batches.append(_batch(rows[begin:index]))
        begin = index
    return batches


def _batch(rows: list[Row]) -> Steps:
    steps, starts, durations, *rest = map(list, zip(*rows, strict=True))
    d2h_ns, micro_batches, samples, updates, _ = rest[len(PHASES) :]
    # Clocks of one process do not run backwards; a negative sum would be our own error, and a
    # reader refuses the batch for it.
    phases = [c if min(c) >= 0 else [max(0, ns) for ns in c] for c in rest[: len(PHASES)]]
    return Steps(
        first_step=steps[0],
        count=len(rows),
        start_ns=starts[0],
        duration_ns=durations,
        phase_ns={name: c for name, c in zip(PHASES, phases, strict=True) if any(c)},
        micro_batches=_squeeze(micro_batches),
        samples=None if min(samples) < 0 else _squeeze(samples),
        updates=_squeeze(updates),
        d2h_ns=d2h_ns if any(d2h_ns) else None,
    )


def _squeeze(column: list[int]) -> int | list[int]:
    first = column[0]
    return first if column.count(first) == len(column) else column


def _add_stack(spool: Spool) -> None:
    path = spool.path.with_suffix(STACK_SUFFIX)
    with contextlib.suppress(OSError), path.open("rb") as file:
        text = file.read(STACK_LIMIT_BYTES).decode("utf-8", "replace").strip()
        spool.fatal_stack = text or None
