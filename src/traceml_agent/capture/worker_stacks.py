"""Where a worker stands while it makes batches: samples of its stack, as text in shared memory."""

import os
from dataclasses import replace
from types import FrameType

import orjson

from traceml_agent.capture.board import TEXT_BYTES, Slot
from traceml_agent.capture.frames import current_frames
from traceml_agent.capture.source_text import SourceText
from traceml_agent.capture.stack_tally import StackTally, Table
from traceml_agent.schema.stacks import CodeLine, StackRow

MOST_ROWS = 64
FIRST_WRITE = 20
"""Samples before the first writing; then whenever there are twice as many, and at the end. Chosen:
a worker that is killed loses less than half of what it saw."""


class Samples:
    """The stacks of one thread of this process."""

    def __init__(self, thread: int, started_s: float) -> None:
        """`started_s`: when the training process began, on the wall clock."""
        self._thread = thread
        self._tally = StackTally()
        self._source = SourceText(started_s, os.getcwd())
        self._taken = 0
        self._written = 0
        self._outer: tuple[CodeLine, ...] | None = None

    def take(self, phase: str, pause_s: float) -> None:
        """Adds a sample of where the thread stands now, which stands for so long."""
        frame = current_frames().get(self._thread)
        if frame is None:
            return
        around = None if self._outer is not None else _around(frame)
        self._tally.add(frame, phase, int(pause_s * 1e9))
        self._taken += 1
        del frame  # or what it holds would die in this thread
        if around is not None:
            table = around.take(self._source)
            lines = (number for row in table.rows for number in row.lines)
            self._outer = tuple(table.lines[number] for number in lines)

    def write(self, slot: Slot, *, at_end: bool) -> None:
        """Puts the table into the slot, if it is time for that."""
        is_due = self._taken >= max(FIRST_WRITE, 2 * self._written)
        if not is_due and not (at_end and self._taken > self._written):
            return
        most_rows = MOST_ROWS
        while most_rows:
            table = _without(self._tally.take(self._source, most_rows), self._outer or ())
            data = orjson.dumps(table._asdict())
            if len(data) <= TEXT_BYTES:
                slot.write_text(data)
                break
            most_rows //= 2
        self._written = self._taken


def _around(frame: FrameType | None) -> StackTally:
    """The lines of the program that led to the loop of the worker: under fork those of the trainer,
    which stand still there for ever."""
    while frame is not None and frame.f_code.co_name != "_worker_loop":
        frame = frame.f_back
    tally = StackTally()
    tally.add(frame, "", 0)
    return tally


def _without(table: Table, outer: tuple[CodeLine, ...]) -> Table:
    """The table with the lines in the worker alone."""
    return table._replace(rows=[_cut(row, table.lines, outer) for row in table.rows])


def _cut(row: StackRow, lines: list[CodeLine], outer: tuple[CodeLine, ...]) -> StackRow:
    stack = [lines[number] for number in row.lines]
    # A deep stack is cut off by the tally: then only the first lines around are in it.
    for count in range(min(len(outer), len(stack)), 0, -1):
        if tuple(stack[-count:]) == outer[:count]:
            return replace(row, lines=row.lines[:-count])
    return row
