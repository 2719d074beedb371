"""A memory-mapped ring of the last closed steps: what is in it survives a SIGKILL.

The training thread writes 128 bytes a step; the writer thread drains them into the spool. Each
record carries its step number at both ends, so a record torn by a kill is recognised. The ring
lies on a local path: on a network file system every page would travel.
"""

import mmap
import os
import struct
from pathlib import Path

from traceml_agent.errors import TracemlError
from traceml_agent.schema.phases import PHASES

MAGIC = b"TMRING01"
_HEADER = struct.Struct("<8sqqq")  # magic, capacity, pid, drained
_DRAINED_OFFSET = 24
HEADER_SIZE = 64
# step, start, duration, the phases, d2h, micro_batches, samples (-1: not seen), updates, step
RECORD = struct.Struct(f"<{3 + len(PHASES) + 5}q")
RECORD_SIZE = RECORD.size
pack_step = RECORD.pack_into
DEFAULT_CAPACITY = 4096

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
            # Reserve the blocks: a sparse map on a full disk would end in SIGBUS.
            os.posix_fallocate(self._fd, 0, size)
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
        first = max(self.drained + 1, last_step - self.capacity + 1)
        return [
            RECORD.unpack_from(self.buffer, slot_offset(step, self.capacity))
            for step in range(first, last_step + 1)
        ]

    def mark_drained(self, step: int) -> None:
        """Tells a later reader that the spool holds all steps up to this one."""
        self.drained = step
        struct.pack_into("<q", self.buffer, _DRAINED_OFFSET, step)

    def close(self, remove: bool) -> None:
        """Unmaps the file, and removes it when the spool holds everything."""
        self.buffer.close()
        os.close(self._fd)
        if remove:
            self.path.unlink(missing_ok=True)


def slot_offset(step: int, capacity: int) -> int:
    """Where the record of a step lies in the file."""
    return HEADER_SIZE + ((step - 1) % capacity) * RECORD_SIZE


def read_ring(path: Path) -> list[Row]:
    """The whole records of a ring file in order of their steps, torn ones left out.

    Raises OSError and TracemlError (no ring of this format).
    """
    data = path.read_bytes()
    if len(data) < HEADER_SIZE or data[:8] != MAGIC:
        raise TracemlError(f"{path} is no ring of this format; remove it to go on without it")
    usable = (len(data) - HEADER_SIZE) // RECORD_SIZE * RECORD_SIZE
    rows = RECORD.iter_unpack(data[HEADER_SIZE : HEADER_SIZE + usable])
    return sorted(row for row in rows if row[0] > 0 and row[0] == row[-1])
