"""The digest of a spool: all that it says in few and long lines, written beside it as it grows.

A fold of many ranks reads digests and the little that the spools have beyond them: a spool has a
line for each half second, and reading a line costs as much as reading a hundred steps.

A digest is made of parts. Each holds what came into the spool since the last one, its steps joined
and its samples as columns, and is closed by a `covered` record, so that a part that was cut off by
a kill is left out and read from the spool instead. Parts are packed by gzip, one member each.
"""

import contextlib
import fcntl
import os
import threading
import zlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from zlib import crc32

from traceml_agent.schema.digests import Covered, Samples, Sketch
from traceml_agent.schema.records import DeviceSteps, Header, Outside, Patches, Record, Steps
from traceml_agent.spool.account import causes_of
from traceml_agent.spool.call_sums import joined, newest_calls
from traceml_agent.spool.compact import compact
from traceml_agent.spool.digested import TAIL_BYTES, packed_parts, read_spool
from traceml_agent.spool.format import DIGEST_SUFFIX, RING_SUFFIX, columns_of, encode
from traceml_agent.spool.loader_batches import loader_records
from traceml_agent.spool.reader import Spool, keep_lines
from traceml_agent.spool.rundir import SPOOLS_ON_NODE, why_unsafe
from traceml_agent.spool.sketch import added, counted
from traceml_agent.spool.writer import sums_of, write_new

DIGEST_STEPS = 20_000
"""The newest steps of which a digest keeps single values. Chosen: 64 ranks of that length fold in
a few seconds, and it is 0.3 MB a rank."""
WINDOW_STEPS = 1_000
"""Steps that are summed up together beyond that, from a multiple of it on for all ranks."""
READ_AT_ONCE = 1 << 22
"""Bytes of the spool that become a part of the digest. Chosen: 0.1 s of work for the thread."""
_GZIP = 31  # for zlib: a header and a trailer of gzip
_LEVEL = 1


class DigestWriter:
    """Follows one spool of this process."""

    def __init__(self, path: Path, spool_path: Path, header: Header) -> None:
        """`path` with the suffix of digests is packed, any other one is a spool of plain lines."""
        self.path = path
        self.error: str | None = None  # of the last update; the next one begins anew
        self._spool_path = spool_path
        self._is_packed = path.suffix == DIGEST_SUFFIX
        self._lock = threading.Lock()
        self._exists = False  # made by us: nobody else's file is written over
        self._begin(header)

    def _begin(self, header: Header) -> None:
        self._spool = Spool(self._spool_path, header)  # what the next part is made of
        self._covered = Covered(0, 0)
        self._steps = 0  # of which the digest holds single values
        self._is_new = True

    def update(self, timeout_s: float = -1) -> bool:
        """Takes up what the spool has gained; False if another thread did not let it in time.

        Never raises OSError: `error` says what happened.
        """
        if not self._lock.acquire(timeout=timeout_s):
            return False
        try:
            if self.error is not None:
                self._begin(self._spool.header)
            while self._take_up():
                pass
            self.error = None
        except OSError as error:
            self.error = str(error)
        finally:
            self._lock.release()
        return True

    @property
    def is_whole(self) -> bool:
        """Whether the spool holds nothing that the digest has not."""
        return self.error is None and not self._covered.summed_steps

    def spool_was_rewritten(self, data: bytes) -> None:
        """The spool was thinned just after an update: this is all of it, and nothing is new."""
        if self.error is None:
            self._covered = replace(
                self._covered,
                spool_bytes=len(data),
                spool_lines=data.count(b"\n"),
                spool_end=crc32(data[-TAIL_BYTES:]),
            )
            try:
                self._append([self._covered])
            except OSError as error:
                self.error = str(error)

    def _take_up(self) -> bool:
        """Writes one part; False where the spool has nothing more."""
        with self._spool_path.open("rb") as file:
            file.seek(self._covered.spool_bytes)
            data = file.read(READ_AT_ONCE)
            while data and b"\n" not in data and (more := file.read(READ_AT_ONCE)):
                data += more  # a single line of such a length
            data = data[: data.rfind(b"\n") + 1]
            if not data:
                return False
            end = self._covered.spool_bytes + len(data)
            file.seek(max(0, end - TAIL_BYTES))
            tail = file.read(TAIL_BYTES)
        covered, part = self._covered, self._spool
        lines = data.split(b"\n")[:-1]
        bad = keep_lines(part, lines, covered.spool_lines + 1)
        summed = sum_up(part)
        self._covered = Covered(
            spool_bytes=end,
            spool_lines=covered.spool_lines + len(lines),
            spool_end=crc32(tail),
            summed_steps=covered.summed_steps + summed,
            bad_lines=covered.bad_lines | {str(number): text for number, text in bad},
        )
        self._steps += sum(batch.count for batch in part.batches) + part.spans.rows
        self._append([*records_of(part), self._covered])
        self._spool = Spool(self._spool_path, part.header, numbers=part.numbers)
        if self._steps > 2 * DIGEST_STEPS:
            self._sum_up_all()
        return True

    def _append(self, records: list[Record]) -> None:
        """One write; a short one is left out by the reader. Raises OSError."""
        data = self._packed([self._spool.header, *records] if self._is_new else records)
        if self._is_new and self._exists:  # in place of one that a failed write has damaged
            os.close(write_new(self.path, data))
            self._is_new = False
            return
        flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self.path, flags | (self._is_new and os.O_CREAT | os.O_EXCL), 0o600)
        self._exists = True
        try:
            if os.write(fd, data) != len(data):
                raise OSError(28, "No space left on device", str(self.path))
        finally:
            os.close(fd)  # on a network file system: now it is there for others
        self._is_new = False

    def _packed(self, records: list[Record]) -> bytes:
        data = b"".join(map(encode, records))
        return packed(data) if self._is_packed else data

    def _sum_up_all(self) -> None:
        """Writes the digest anew, with the newest steps and sums of those before."""
        header = self._spool.header
        whole = Spool(self._spool_path, header)
        for lines in _parts(self.path, self._is_packed):
            keep_lines(whole, lines, 1)
        summed = sum_up(whole)
        covered = self._covered
        self._covered = replace(covered, summed_steps=covered.summed_steps + summed)
        data = self._packed([header, *records_of(whole), self._covered])
        fd = write_new(self.path, data)
        os.close(fd)
        self._steps = sum(batch.count for batch in whole.batches)


def bring_home(path: Path) -> None:
    """Completes a digest from the spool on this node that it stands for. Its writer is gone.

    That spool and its ring are removed if the digest holds all of them. Not for a copy of a run,
    and nothing is touched but files of this user in a directory of this run. Raises OSError,
    NotASpool and NewerSchema.
    """
    header = read_spool(path).header
    there = Path(header.spool_path or "")
    if header.run_dir != str(path.parent.resolve()) or not _is_ours(there, header.run_id):
        return
    fd = os.open(there, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        # Two folds at once: one of them does it. A lock of the file, which the writer never takes.
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_nlink:
            _bring_home(path, there)
    except BlockingIOError:
        return
    finally:
        os.close(fd)


def _is_ours(there: Path, run_id: str) -> bool:
    """Whether a spool is a file of this user, in a directory of this run that is safe."""
    directory = there.parent
    with contextlib.suppress(OSError):
        return (
            directory.name == run_id
            and directory.parent.name == SPOOLS_ON_NODE
            and why_unsafe(directory) is None
            and why_unsafe(directory.parent) is None
            and there.is_file()
            and not there.is_symlink()
            and there.stat().st_uid == os.geteuid()
        )
    return False


def _bring_home(path: Path, there: Path) -> None:
    spool = read_spool(path, spans=True)
    if spool.is_elsewhere or spool.noted_ending is not None:
        return  # how it ended stands in the ring alone: both stay
    data = there.read_bytes()
    summed = spool.summed_steps + sum_up(spool)
    covered = Covered(
        spool_bytes=len(data),
        spool_lines=data.count(b"\n"),
        spool_end=crc32(data[-TAIL_BYTES:]),
        summed_steps=summed,
        bad_lines={str(number): what for number, what in spool.bad_lines},
        closed=True,
    )
    lines = [encode(record) for record in (spool.header, *records_of(spool), covered)]
    os.close(write_new(path, b"".join(lines)))
    if not summed:
        there.unlink()
        ring = Path(spool.header.ring_path or there.with_suffix(RING_SUFFIX))
        if ring.parent == there.parent:
            ring.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            there.parent.rmdir()


def packed(data: bytes) -> bytes:
    """One member of a gzip file, the same for the same bytes."""
    pack = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
    return pack.compress(data) + pack.flush()


def _parts(path: Path, is_packed: bool) -> Iterator[list[bytes]]:
    data = path.read_bytes()
    for part in packed_parts(data) if is_packed else [data]:
        yield part.split(b"\n")


def records_of(spool: Spool) -> list[Record]:
    """All that a spool says but its header, in as few records as can be."""
    compact(spool)
    now = spool.last_monotonic_ns
    found: list[Record] = []
    if spool.statuses:
        found.append(Patches(now, spool.statuses))
    found += [*spool.sums, *spool.batches, *spool.device_batches]
    if spool.sketch is not None:
        found.append(spool.sketch)
    if spool.outside_ns:
        found.append(Outside(now, spool.outside_ns))
    for samples in (spool.process_samples, spool.host_samples, spool.gpu_samples):
        if samples:
            found.append(Samples(samples[0].kind, len(samples), columns_of(samples)))
    found += [*joined(spool.collectives), *spool.arrivals, *spool.ddp.values()]
    found += [*causes_of(spool), *spool.stalls, *spool.process_groups, *spool.faults]
    found += [*loader_records(spool), *spool.retained, *spool.snapshots]
    found += spool.spans.newest()
    last = (spool.stacks, spool.overhead, spool.end)
    return found + [record for record in last if record is not None]


def sum_up(spool: Spool) -> int:
    """Turns all but the newest steps into sums by window and a sketch; returns how many steps.

    Their device times go: sums have none.
    """
    spool.collectives = newest_calls(spool.collectives)
    excess = sum(batch.count for batch in spool.batches) - DIGEST_STEPS
    if excess <= 0:
        return 0
    compact(spool)
    last = spool.batches[-1].first_step + spool.batches[-1].count - 1
    # From the first window that begins here: of the one before, the file holds the other steps.
    begin = -(-(spool.batches[0].first_step - 1) // WINDOW_STEPS) * WINDOW_STEPS + 1
    border = (last - DIGEST_STEPS) // WINDOW_STEPS * WINDOW_STEPS + 1
    old: list[Steps] = []
    new: list[Steps] = []
    for batch in spool.batches:
        for piece in (part for half in _cut(batch, begin) for part in _cut(half, border)):
            (old if begin <= piece.first_step < border else new).append(piece)
    if not old:
        return 0
    known = spool.sketch or Sketch(0, {})
    count = sum(piece.count for piece in old)
    buckets = counted(chain.from_iterable(piece.duration_ns for piece in old))
    spool.sketch = Sketch(known.steps + count, added(known.buckets, buckets))
    spool.sums += [sums_of(window) for piece in old for window in _windows(piece)]
    spool.batches = new
    spool.device_batches = [
        _from(batch, border)
        for batch in spool.device_batches
        if batch.first_step + batch.count > border
    ]
    return count


def _from(batch: DeviceSteps, border: int) -> DeviceSteps:
    """Its steps from a number on."""
    at = max(0, border - batch.first_step)
    if not at:
        return batch
    return DeviceSteps(
        first_step=border,
        count=batch.count - at,
        duration_ns=batch.duration_ns[at:],
        phase_ns={name: column[at:] for name, column in batch.phase_ns.items()},
    )


def _windows(batch: Steps) -> Iterator[Steps]:
    """The batch in pieces that do not reach over a multiple of WINDOW_STEPS."""
    while True:
        border = ((batch.first_step - 1) // WINDOW_STEPS + 1) * WINDOW_STEPS + 1
        first, *rest = _cut(batch, border)
        yield first
        if not rest:
            return
        batch = rest[0]


def _cut(batch: Steps, border: int) -> list[Steps]:
    """The steps before a number, and those from it on."""
    at = border - batch.first_step
    if at <= 0 or at >= batch.count:
        return [batch]
    return [_piece(batch, slice(0, at)), _piece(batch, slice(at, batch.count))]


def _piece(batch: Steps, part: slice) -> Steps:
    def of(column: int | list[int] | None) -> int | list[int] | None:
        return column if column is None or isinstance(column, int) else column[part]

    return Steps(
        first_step=batch.first_step + part.start,
        count=part.stop - part.start,
        start_ns=batch.start_ns + sum(batch.duration_ns[: part.start]),
        duration_ns=batch.duration_ns[part],
        phase_ns={n: c for n, column in batch.phase_ns.items() if any(c := column[part])},
        micro_batches=of(batch.micro_batches) or 0,
        samples=of(batch.samples),
        updates=of(batch.updates) or 0,
        d2h_ns=None if batch.d2h_ns is None else batch.d2h_ns[part],
    )
