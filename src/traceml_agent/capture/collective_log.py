"""CollectiveLog: the calls of collectives until the sampler thread takes them.

The training thread appends one tuple a call and nothing else.
"""

from collections import deque
from typing import Any
from weakref import ref

ROWS_LIMIT = 16_384
"""Calls kept between two flushes, in 3 MB. Chosen: 32,000 calls a second for flushes of 0.5 s."""
PENDING_LIMIT = 4096
"""Async calls whose handle was not waited for."""
FIRST_NOTE_NS = 10_000
"""What making a row takes, before it is known. Chosen: as measured on a busy machine."""
SHELL_RATIO = 1.65
"""Cost of a watched call over the cost of noting it: what remains is the call of the wrapper, which
cannot time itself. Source: tests/overhead/collectives.py."""

CALL, ASYNC_CALL, WAIT = range(3)
"""Parts of a call: one that blocks as torch defines it, the start of an async one, and the wait for
its handle."""

Key = tuple[str, str, int, str, int]
"""Operation, group, its size, its backend, and whether the host waits in the call (1) or not."""
Row = tuple[int, int, int, int, int, int | None, int, int]
"""Key, step, number in the group, start, duration, bytes, open phase (-1: none), part."""


class CollectiveLog:
    """Written by the training thread, emptied by the sampler thread."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Starts anew, in a child process after fork."""
        self.busy = False  # inside a collective: those that it calls belong to it
        self.rows: deque[Row] = deque(maxlen=ROWS_LIMIT)
        self.keys: dict[Key, int] = {}
        self.pending: dict[int, tuple[ref[Any], int, int]] = {}  # by id of a handle
        self.noted = 0
        self.note_ns = 0  # in which rows were made
        self._typical_ns = FIRST_NOTE_NS
        self._taken = 0
        self.lost = 0

    @property
    def cost_ns(self) -> int:
        """What watching cost the training thread."""
        return round(SHELL_RATIO * self.note_ns)

    def charge(self, elapsed_ns: int) -> None:
        """A row was made in this time. After a collective another process often has the processor:
        more than twice the median is not the agent's."""
        typical = self._typical_ns
        # Rises and falls by the same part of it, so that half of the rows take longer.
        self._typical_ns += (typical >> 5) + 1 if elapsed_ns > typical else -(typical >> 5) - 1
        self.note_ns += min(elapsed_ns, 2 * typical)

    def number(self, key: Key) -> int:
        """The number of a key, for the rows."""
        return self.keys.setdefault(key, len(self.keys))

    def expect(self, handle: Any, key: int, seq: int) -> None:
        """A call returned a handle: its wait belongs to the call."""
        if len(self.pending) >= PENDING_LIMIT:
            self.pending.clear()
        self.pending[id(handle)] = (ref(handle), key, seq)

    def expected(self, handle: Any) -> tuple[int, int] | None:
        """Key and number of the call that returned this handle, once.

        A handle that nobody waited for may have left its id to another one.
        """
        found = self.pending.pop(id(handle), None)
        return found[1:] if found is not None and found[0]() is handle else None

    def take(self) -> list[Row]:
        """The rows since the last time; in the sampler thread."""
        noted = self.noted
        rows = [self.rows.popleft() for _ in range(len(self.rows))]
        self._taken += len(rows)
        # A row that came while these were taken was not counted before: it is no loss.
        self.lost = max(self.lost, noted - self._taken)
        return rows
