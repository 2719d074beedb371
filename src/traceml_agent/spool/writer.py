"""Appends records to a spool. An error of the disk is counted, and never raised."""

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from traceml_agent.schema.collectives import Collectives
from traceml_agent.schema.loaders import Loader, WorkerBatches, WorkerStacks
from traceml_agent.schema.records import Event, GpuSample, HostSample, ProcessSample, Record, Steps
from traceml_agent.schema.records import StepSums as Sums
from traceml_agent.schema.spans import Marks, Scopes, Spans
from traceml_agent.spool.call_sums import without_calls
from traceml_agent.spool.format import BadRecord, decode, encode
from traceml_agent.spool.spans import joined_sums, rows_in

if TYPE_CHECKING:
    from traceml_agent.spool.digest import DigestWriter

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
THIN_WAIT_S = 1.0
"""How long the thinning waits for the digest, in which a disk may hang. Chosen: as exits wait."""
_OF_LOADERS = (Loader, WorkerBatches, WorkerStacks)
THINNED_PART = 0.75
"""Thinning touches the oldest three quarters of a spool: the newest steps stay whole."""


class SpoolWriter:
    """One open spool. Written by one thread at a time."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        """Creates the file (0600). Raises OSError."""
        self.path = path
        self.max_bytes = max_bytes
        self.size = 0  # of the file now
        self.written = 0  # in all, thinned away or not
        self.thinned_steps = 0
        self.error: str | None = None  # the first one
        self.lost: dict[str, int] = {}  # records that could not be written, by kind
        self.digest: DigestWriter | None = None  # what follows this spool
        self._fd = os.open(path, _FLAGS, 0o600)
        self._torn = False

    def write(self, records: Iterable[Record]) -> bool:
        """Appends the records in one write; False if the disk did not take them."""
        records = list(records)
        if not records:
            return True
        data = b"".join(map(encode, records))
        if self._torn:
            data = b"\n" + data
        if not self._append(data):
            for record in records:
                count = rows_in(record) if isinstance(record, (Spans, Marks)) else 1
                self.lost[record.kind] = self.lost.get(record.kind, 0) + count
            return False
        self._torn = False
        self.size += len(data)
        self.written += len(data)
        if self.size > self.max_bytes:
            self._thin()
        return True

    def _append(self, data: bytes) -> bool:
        try:
            if os.fstat(self._fd).st_nlink == 0:
                raise FileNotFoundError(2, "the spool was removed", str(self.path))
            taken = os.write(self._fd, data)
            if taken == len(data):
                return True
            self._torn = taken > 0
            raise OSError(28, "No space left on device", str(self.path))
        except OSError as error:
            self.error = self.error or str(error)
            return False

    def close(self) -> None:
        """Closes the file."""
        with contextlib.suppress(OSError):
            os.close(self._fd)
        self._fd = -1  # the number may soon be that of a file of the program

    def _thin(self) -> None:
        """Replaces every other old batch of steps by its exact sums, and drops every other sample.

        The file is written anew and renamed, so that a reader or a kill finds one or the other.
        """
        if self.digest is not None and not self.digest.update(THIN_WAIT_S):
            self.max_bytes = int(self.max_bytes * 1.1)  # it hangs in a write: thin later
            return
        try:
            lines = self.path.read_bytes().splitlines(keepends=True)
            kept = thin_lines(lines)
            data = b"".join(kept.lines)
            fd = write_new(self.path, data)
        except OSError as error:
            self.error = self.error or str(error)
            self.max_bytes *= 2  # do not try again at every write
            return
        os.close(self._fd)
        self._fd = fd
        self.thinned_steps += kept.thinned_steps
        for name, count in kept.thinned_rows.items():
            self.lost[name] = self.lost.get(name, 0) + count
        self.size = len(data)
        if self.digest is not None:
            self.digest.spool_was_rewritten(data)
        if self.size > self.max_bytes * 0.9:
            self.max_bytes = self.size * 2  # nothing left to thin: headers, faults, sums


def write_new(path: Path, data: bytes) -> int:
    """Puts a file (0600) in the place of another; its descriptor, for appending. Raises OSError.

    A reader, or a kill, finds the one or the other.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, _FLAGS, 0o600)
    try:
        if os.write(fd, data) != len(data):
            raise OSError(28, "No space left on device", str(temporary))
        os.rename(temporary, path)
    except OSError:
        os.close(fd)
        temporary.unlink(missing_ok=True)
        raise
    return fd


class Thinned:
    """The lines of a spool after thinning, and how many steps lost their single values."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.thinned_steps = 0
        self.thinned_rows: dict[str, int] = {}  # scopes and marks that are gone


def thin_lines(lines: list[bytes]) -> Thinned:
    """Every other batch of steps among the oldest lines as sums, every other sample left out."""
    result = Thinned()
    limit = int(len(lines) * THINNED_PART)
    seen: dict[str, int] = {}
    scopes: list[Scopes] = []
    for number, line in enumerate(lines):
        if number >= limit or not line.startswith(
            (
                b'{"kind":"st',
                b'{"kind":"device',
                b'{"kind":"p',
                b'{"kind":"h',
                b'{"kind":"g',
                b'{"kind":"ev',
                b'{"kind":"co',
                b'{"kind":"w',
                b'{"kind":"lo',
                b'{"kind":"spans"',
                b'{"kind":"marks"',
                b'{"kind":"scopes"',
            )
        ):
            result.lines.append(line)
            continue
        try:
            record = decode(line)
        except BadRecord:
            continue
        if not isinstance(
            record,
            (
                Steps,
                Sums,
                ProcessSample,
                HostSample,
                GpuSample,
                Event,
                Collectives,
                *_OF_LOADERS,
                Spans,
                Marks,
                Scopes,
            ),
        ):
            result.lines.append(line)
            continue
        seen[record.kind] = seen.get(record.kind, 0) + 1
        if isinstance(record, Sums):
            _join_sums(result, record, line)
        elif isinstance(record, Scopes):
            scopes.append(record)
        elif seen[record.kind] % 2:
            result.lines.append(line)
        elif isinstance(record, Steps):
            result.thinned_steps += record.count
            result.lines.append(encode(sums_of(record)))
        elif isinstance(record, Collectives):
            result.lines.append(encode(without_calls(record)))
        elif isinstance(record, (Spans, Marks)):
            name = f"thinned_{record.kind}"
            result.thinned_rows[name] = result.thinned_rows.get(name, 0) + rows_in(record)
    result.lines[1:1] = map(encode, joined_sums(scopes))  # behind the header
    return result


def _join_sums(result: Thinned, record: Sums, line: bytes) -> None:
    """Adjacent sums become one, or a long run would fill the cap with sums."""
    before = decode(result.lines[-1]) if result.lines else None
    if (
        isinstance(before, Sums)
        and before.first_step + before.count == record.first_step
        and before.start_ns + before.duration_ns == record.start_ns
    ):
        names = {**before.phase_ns, **record.phase_ns}
        samples = (
            None
            if before.samples is None or record.samples is None
            else before.samples + record.samples
        )
        result.lines[-1] = encode(
            Sums(
                first_step=before.first_step,
                count=before.count + record.count,
                start_ns=before.start_ns,
                duration_ns=before.duration_ns + record.duration_ns,
                phase_ns={n: before.phase_ns.get(n, 0) + record.phase_ns.get(n, 0) for n in names},
                micro_batches=before.micro_batches + record.micro_batches,
                samples=samples,
                updates=before.updates + record.updates,
                d2h_ns=before.d2h_ns + record.d2h_ns,
                shared_ns=None
                if before.shared_ns is None and record.shared_ns is None
                else (before.shared_ns or 0) + (record.shared_ns or 0),
            )
        )
    else:
        result.lines.append(line)


def sums_of(batch: Steps, add_up: Callable[[list[int]], int] = sum) -> Sums:
    """The exact sums of a batch."""

    def total(column: int | list[int]) -> int:
        return column * batch.count if isinstance(column, int) else add_up(column)

    return Sums(
        first_step=batch.first_step,
        count=batch.count,
        start_ns=batch.start_ns,
        duration_ns=total(batch.duration_ns),
        phase_ns={name: total(column) for name, column in batch.phase_ns.items()},
        micro_batches=total(batch.micro_batches),
        samples=None if batch.samples is None else total(batch.samples),
        updates=total(batch.updates),
        d2h_ns=total(batch.d2h_ns or 0),
    )
