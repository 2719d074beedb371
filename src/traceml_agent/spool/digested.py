"""Reads what a process left: its spool by its digest where there is one, its ring, its stack."""

import contextlib
import dataclasses
import os
import socket
import stat
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from traceml_agent.schema.digests import Covered
from traceml_agent.schema.records import DeviceSteps, Header, Steps, StepSums
from traceml_agent.spool.format import DIGEST_SUFFIX, BadRecord, decode
from traceml_agent.spool.plausible import check
from traceml_agent.spool.reader import (
    BadLine,
    Spool,
    add_ring,
    add_stack,
    header_in,
    keep_lines,
    sort_samples,
)
from traceml_agent.spool.rows import shared_out

TAIL_BYTES = 64
"""Of these a digest has the checksum. Chosen: within them lie digits of a clock or a duration."""
_COVERED = b'{"kind":"covered"'
_OF_STEPS = tuple(
    b'{"kind":"%s"' % record.kind.encode() for record in (Steps, StepSums, DeviceSteps)
)
_GZIP = 31  # for zlib: members of gzip


def read_spool(
    path: Path, *, whole: bool = False, spans: bool = False, only_steps: bool = False
) -> Spool:
    """Everything a process left: its spool, the steps still in its ring, its fatal stack.

    What its digest holds is read there, unless `whole`. Single scopes and marks are left out,
    unless `spans`; and all but steps with `only_steps`. Raises NotASpool, NewerSchema and OSError.
    Lines that are no records are skipped and named in `problems`; a last line without a newline is
    a torn write and is skipped too.
    """
    with path.open("rb") as file:
        first = file.readline()
        spool = Spool(path, header_in(path, first.removesuffix(b"\n")))
        spool.spans.wanted = spans
        covered = None if whole else _take_packed(spool, file)
        file.seek(len(first) if covered is None else covered.spool_bytes)
        rest = file.read()
        if only_steps:
            rest = _steps_in(rest)
        spool.size = spool.spool_size = file.tell()
    if spool.header.spool_path is not None:
        _take_elsewhere(spool, first + rest, whole=whole)
    else:
        _take_rest(spool, rest, covered or _after(first))
    if spool.bad_lines:
        number, what = spool.bad_lines[0]
        spool.problems.append(f"{path.name}: line {number} skipped ({what})")
    if len(spool.bad_lines) > 1:
        spool.problems.append(f"{path.name}: {len(spool.bad_lines)} lines skipped in all")
    sort_samples(spool)
    add_ring(spool)
    spool.sums = shared_out(spool.sums, spool.batches)
    add_stack(spool)
    return spool


def _steps_in(data: bytes) -> bytes:
    """The lines about steps alone, and a torn one at the end."""
    *lines, last = data.split(b"\n")
    return b"\n".join([*(line for line in lines if line.startswith(_OF_STEPS)), last])


def _after(first: bytes) -> Covered:
    """Nothing but the header is known."""
    return Covered(len(first), 1)


def _take_packed(spool: Spool, file: BinaryIO) -> Covered | None:
    """Takes the digest beside a spool, if it is of this spool; returns what it covers."""
    if spool.header.spool_path is not None:
        return None
    parts = list(packed_parts(_bytes_of(spool.path.with_suffix(DIGEST_SUFFIX))))
    covered = _covered_of(parts[-1]) if parts else None
    if covered is None:
        return None
    file.seek(max(0, covered.spool_bytes - TAIL_BYTES))
    if zlib.crc32(file.read(TAIL_BYTES)) != covered.spool_end:
        return None  # of another spool, or from before it was thinned
    if _take_digest(spool, parts, covered):
        fresh = Spool(spool.path, spool.header)  # damaged: everything is in the spool
        fresh.spans.wanted = spool.spans.wanted
        for field in dataclasses.fields(Spool):
            setattr(spool, field.name, getattr(fresh, field.name))
        return None
    return covered


def _take_digest(spool: Spool, parts: Sequence[bytes], covered: Covered) -> list[BadLine]:
    """Takes the parts of a digest; returns the lines of it that are no records."""
    bad: list[BadLine] = []
    for part in parts:
        bad += keep_lines(spool, part.split(b"\n"), 1)
    spool.summed_steps = covered.summed_steps
    spool.is_closed = covered.closed
    spool.bad_lines += sorted((int(n), w) for n, w in covered.bad_lines.items() if n.isdecimal())
    return bad


def _covered_of(part: bytes) -> Covered | None:
    """The record that closes a part."""
    return _covered_in(part[part.rstrip(b"\n").rfind(b"\n") + 1 :])


def _covered_in(line: bytes) -> Covered | None:
    with contextlib.suppress(BadRecord):
        record = decode(line)
        if isinstance(record, Covered):
            check(record)
            return record
    return None


def _take_rest(spool: Spool, data: bytes, covered: Covered) -> None:
    """Takes the lines of a spool beyond its digest, or its header."""
    *lines, last = data.split(b"\n")
    spool.bad_lines += keep_lines(spool, lines, covered.spool_lines + 1)
    if last and keep_lines(spool, [last], 0):
        spool.problems.append(f"{spool.path.name}: the last line is torn and was left out")


def _take_elsewhere(spool: Spool, data: bytes, *, whole: bool) -> None:
    """Takes a digest in place of a spool, and what that spool has beyond it if it lies here."""
    there = _spool_here(spool.header)
    if there is not None:
        spool.spool_size = len(there)
    known = None if whole and there is not None else _plain_part(data)
    if known is not None and there is not None:
        end = known[1].spool_bytes
        if zlib.crc32(there[max(0, end - TAIL_BYTES) : end]) != known[1].spool_end:
            known = None  # it was thinned since
    if known is not None:
        bad = _take_digest(spool, [known[0]], known[1])
        if bad:
            spool.problems.append(f"{spool.path.name}: {len(bad)} lines of the digest skipped")
    if there is None:
        spool.is_elsewhere = True
    else:
        covered = _after(there[: there.find(b"\n") + 1]) if known is None else known[1]
        _take_rest(spool, there[covered.spool_bytes :], covered)


def _spool_here(header: Header) -> bytes | None:
    """The spool that a digest stands for, if it lies on this machine."""
    path = header.spool_path or ""
    if header.hostname != socket.gethostname() or "\0" in path:
        return None
    data = _bytes_of(Path(path))
    wanted = dataclasses.replace(header, spool_path=None, run_dir=None)
    with contextlib.suppress(BadRecord):
        if data and decode(data[: data.find(b"\n")]) == wanted:
            return data
    return None


def _plain_part(data: bytes) -> tuple[bytes, Covered] | None:
    """The lines of a digest that is not packed, up to the last one that closes a part."""
    end = len(data)
    while (at := data.rfind(b"\n" + _COVERED, 0, end)) >= 0:
        stop = data.find(b"\n", at + 1)
        covered = _covered_in(data[at + 1 : stop]) if stop >= 0 else None
        if covered is not None:
            return data[: stop + 1], covered
        end = at
    return None


def packed_parts(data: bytes) -> Iterator[bytes]:
    """The members of a gzip file up to the first one that is torn or damaged."""
    while data:
        unpack = zlib.decompressobj(_GZIP)
        try:
            part = unpack.decompress(data)
        except zlib.error:
            return
        if not unpack.eof:
            return
        yield part
        data = unpack.unused_data


def _bytes_of(path: Path) -> bytes:
    """The content of a plain file; nothing of anything else, which could block or never end."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path, flags)
        with os.fdopen(fd, "rb") as file:
            return file.read() if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    except OSError:
        return b""
