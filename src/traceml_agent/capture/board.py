"""Board: shared memory in which the workers of a DataLoader write and the training process reads.

A slot a worker: counters, a ring of the last batches, and a text. No file: under fork the workers
inherit the mapping; under spawn and forkserver they find it among the descriptors of the process
that made it, and it is gone with that process, however it ends.
"""

import contextlib
import mmap
import os
import struct
from collections.abc import Iterator

MEMORY_NAME = "traceml-loader"
MAGIC = 0x7472_6163_656D_6C31
ROWS = 512
"""Batches of a worker that are kept until they are read. Chosen: half a second of batches of 1 ms;
older ones stay in the sums."""
TEXT_BYTES = 24 * 1024

_ROW = struct.Struct("<8q")
_HEAD_WORDS = 24
_WORDS = _HEAD_WORDS + ROWS * 8 + TEXT_BYTES // 8
_FRONT_WORDS = 8

Row = tuple[int, int, int, int, int, int]
"""Epoch, number in it, begin, duration, time in collate, CPU time; -1: not measured."""

(
    PID, BATCHES, FETCH, COLLATE, CPU, IDLE, FAILURES, DELAY, WATCHED, SEND, READ, FAULTS,
    TEXT_TURN, TEXT_SIZE, GROWN,
) = range(15)  # fmt: skip


class Slot:
    """The part of one worker: written by its thread alone, the text by its sampler."""

    __slots__ = ("_at", "_memory", "_words", "started_s")

    def __init__(self, memory: mmap.mmap, words: memoryview, number: int) -> None:
        self.started_s = words[2] / 1e9  # the process that made the board, on the wall clock
        self._memory = memory
        self._words = words
        self._at = _FRONT_WORDS + number * _WORDS

    def get(self, name: int) -> int:
        """A counter."""
        return int(self._words[self._at + name])

    def set(self, name: int, value: int) -> None:
        """Sets a counter."""
        self._words[self._at + name] = value

    def push(self, row: Row) -> None:
        """Appends a batch; its number follows it, so that a reader sees whole rows only."""
        number = self.get(BATCHES) + 1
        at = 8 * (self._at + _HEAD_WORDS + (number - 1) % ROWS * 8)
        _ROW.pack_into(self._memory, at, number, *row, number)
        self.set(BATCHES, number)

    def rows(self, after: int, last: int) -> list[Row]:
        """The batches beyond this number of them, up to that; overwritten ones are left out."""
        found = []
        for number in range(max(after, last - ROWS) + 1, last + 1):
            at = 8 * (self._at + _HEAD_WORDS + (number - 1) % ROWS * 8)
            first, *row, second = _ROW.unpack_from(self._memory, at)
            if first == second == number:
                found.append((row[0], row[1], row[2], row[3], row[4], row[5]))
        return found

    def write_text(self, text: bytes) -> None:
        """Replaces the text; too long a one is left out."""
        if len(text) > TEXT_BYTES:
            return
        turn = self.get(TEXT_TURN) | 1
        self.set(TEXT_TURN, turn)  # odd: in the making
        at = 8 * (self._at + _HEAD_WORDS + ROWS * 8)
        self._memory[at : at + len(text)] = text
        self.set(TEXT_SIZE, len(text))
        self.set(TEXT_TURN, turn + 1)

    def turn(self) -> int:
        """Changes with the text; 0 before the first one."""
        return self.get(TEXT_TURN)

    def read_text(self) -> bytes | None:
        """The text; None if it is being written, for whoever died in that moment for ever."""
        turn, size = self.get(TEXT_TURN), self.get(TEXT_SIZE)
        at = 8 * (self._at + _HEAD_WORDS + ROWS * 8)
        text = self._memory[at : at + min(size, TEXT_BYTES)]
        return text if turn % 2 == 0 and turn == self.get(TEXT_TURN) else None


class Board:
    """The slots of the workers of one iterator."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._words = memoryview(memory).cast("q")
        self.slots = [Slot(memory, self._words, n) for n in range(self._words[1])]

    def set_pids(self, pids: list[int | None]) -> None:
        """Tells each worker which slot is its own."""
        for slot, pid in zip(self.slots, pids, strict=False):
            slot.set(PID, pid or 0)


def new_board(workers: int, started_ns: int, *, inherited: bool) -> Board:
    """A board for workers that inherit it, or else for those that look for it. Raises OSError.

    The second kind is an open descriptor of this process for as long as the board lives.
    """
    size = 8 * (_FRONT_WORDS + workers * _WORDS)
    if inherited:
        memory = mmap.mmap(-1, size)
    else:
        if not hasattr(os, "memfd_create"):
            raise OSError("no memory without a file on this platform")
        descriptor = os.memfd_create(MEMORY_NAME, os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, size)
            memory = mmap.mmap(descriptor, size)  # which has a descriptor of its own
        finally:
            os.close(descriptor)
    words = memoryview(memory).cast("q")
    words[0], words[1], words[2] = MAGIC, workers, started_ns
    words.release()
    board = Board(memory)
    for slot in board.slots:
        for name in (DELAY, WATCHED, SEND, READ, FAULTS, GROWN):
            slot.set(name, -1)  # not measured, until it is
    return board


def find_slot(parent_pid: int) -> Slot | None:
    """The slot that another process made for this one; None if it has none, or not yet."""
    for path in _boards_of(parent_pid):
        with contextlib.suppress(OSError, ValueError):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                memory = mmap.mmap(descriptor, 0)
            finally:
                os.close(descriptor)
            words = memoryview(memory).cast("q")
            if len(words) < _FRONT_WORDS or words[0] != MAGIC:
                continue
            for slot in Board(memory).slots:
                if slot.get(PID) == os.getpid():
                    return slot
    return None


def _boards_of(pid: int) -> Iterator[str]:
    directory = f"/proc/{pid}/fd"
    try:
        names = os.listdir(directory)
    except OSError:
        return
    for name in names:
        path = f"{directory}/{name}"
        with contextlib.suppress(OSError):
            if os.readlink(path).startswith(f"/memfd:{MEMORY_NAME}"):
                yield path
