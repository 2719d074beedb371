"""A memory-mapped ring of the last closed steps: what is in it survives a SIGKILL.

The training thread writes 136 bytes a step; the writer thread drains them into the spool. Each
record carries its step number at both ends, so a record torn by a kill is recognised. The ring
lies on a local path: on a network file system every page would travel.
"""

import errno
import mmap
import os
import stat
import struct
from pathlib import Path

from traceml_agent.errors import TracemlError
from traceml_agent.spool.layout import HEADER_SIZE, RECORD, RECORD_SIZE
from traceml_agent.spool.plausible import is_plausible_row

MAGIC = b"TMRING02"
_HEADER = struct.Struct("<8sqqq")  # magic, capacity, pid, drained
_DRAINED_OFFSET = 24
_ENDING = struct.Struct("<qq")  # how the process left: 1 + index in ENDINGS, exit code (-1: None)
_ENDING_OFFSET = 32
ENDINGS = ("finished", "failed", "interrupted")
DEFAULT_CAPACITY = 4096
CAPACITY_LIMIT = 1 << 20
"""Records read of a ring: a reader does not take a file of any size into memory."""

Row = tuple[int, ...]
"""One closed step, its values in the order of RECORD."""


class Ring:
    """The ring of a living process. Slots belong to the training thread until drained."""

    __slots__ = ("_fd", "buffer", "capacity", "drained", "path")

    def __init__(self, path: Path, capacity: int = DEFAULT_CAPACITY) -> None:
        """Creates the file (0600, no symbolic link followed). Raises OSError."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o600)
        size = HEADER_SIZE + capacity * RECORD_SIZE
        try:
            _reserve(self._fd, size)
            self.buffer = mmap.mmap(self._fd, size)
        except OSError:
            os.close(self._fd)
            path.unlink(missing_ok=True)
            raise
        self.path = path
        self.capacity = capacity
        self.drained = 0
        _HEADER.pack_into(self.buffer, 0, MAGIC, capacity, os.getpid(), 0)

    def rows(self, last_step: int) -> list[Row]:
        """The raw records after the drained ones up to `last_step`, oldest first."""
        return self.newest(last_step - self.drained, last_step)

    def newest(self, count: int, last_step: int) -> list[Row]:
        """Up to `count` raw records up to this step, drained or not, oldest first."""
        first = max(1, last_step - min(count, self.capacity) + 1)
        rows = (
            RECORD.unpack_from(self.buffer, slot_offset(step, self.capacity))
            for step in range(first, last_step + 1)
        )
        # While the disk hangs the training overwrites the oldest: then a slot holds a later step.
        return [row for step, row in enumerate(rows, start=first) if row[0] == step]

    def mark_drained(self, step: int) -> None:
        """Tells a later reader that the spool holds all steps up to this one."""
        self.drained = step
        struct.pack_into("<q", self.buffer, _DRAINED_OFFSET, step)

    def mark_ended(self, status: str, exit_code: int | None) -> None:
        """Tells a later reader how the process left where the spool could not take that."""
        code = -1 if exit_code is None else exit_code
        _ENDING.pack_into(self.buffer, _ENDING_OFFSET, 1 + ENDINGS.index(status), code)

    def close(self, remove: bool) -> None:
        """Unmaps the file, and removes it when the spool holds everything."""
        self.buffer.close()
        os.close(self._fd)
        if remove:
            self.path.unlink(missing_ok=True)


def slot_offset(step: int, capacity: int) -> int:
    """Where the record of a step lies in the file."""
    return HEADER_SIZE + ((step - 1) % capacity) * RECORD_SIZE


def _reserve(fd: int, size: int) -> None:
    """Gives the file its blocks: a sparse map on a full disk would end in SIGBUS."""
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise
        if os.pwrite(fd, bytes(size), 0) != size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None


def read_ring(path: Path) -> list[Row]:
    """The whole records of a ring file in order of their steps, torn ones left out.

    Raises OSError and TracemlError (no ring of this format).
    """
    head, data = _read(path, CAPACITY_LIMIT)
    if not head:
        raise TracemlError(f"{path} is no ring of this format; remove it to go on without it")
    usable = len(data) // RECORD_SIZE * RECORD_SIZE
    rows = RECORD.iter_unpack(data[:usable])
    # By step: in a damaged file, two records may claim to be the same one.
    whole = {row[0]: row for row in rows if is_plausible_row(row)}
    return [whole[step] for step in sorted(whole)]


def _read(path: Path, most_records: int) -> tuple[bytes, bytes]:
    """The head of a ring and its records; nothing of a file that is no ring. Raises OSError.

    The path may come from a damaged header: so nothing is waited for (a pipe), and not more is
    read than a ring holds.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        head = os.read(fd, HEADER_SIZE) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
        if len(head) < HEADER_SIZE or head[:8] != MAGIC:
            return b"", b""
        with os.fdopen(os.dup(fd), "rb") as file:
            return head, file.read(most_records * RECORD_SIZE)
    finally:
        os.close(fd)


def read_ending(path: Path) -> tuple[str, int | None] | None:
    """Status and exit code of a process that could not tell its spool. Raises OSError."""
    head, _ = _read(path, 0)
    if not head:
        return None
    number, code = _ENDING.unpack_from(head, _ENDING_OFFSET)
    if not 1 <= number <= len(ENDINGS):
        return None
    return ENDINGS[number - 1], None if code < 0 else code
