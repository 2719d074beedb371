"""StackSums: the sampled stacks of all workers of a loader, over all its epochs."""

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from traceml_agent.capture.board import Slot

if TYPE_CHECKING:
    from traceml_agent.capture.stack_tally import Table
    from traceml_agent.schema.records import Record

MOST_ROWS = 64
"""Of a record. Chosen: beyond, a row has no share that anything would be said of."""
MOST_KNOWN = 2_000
"""Stacks in memory of workers that ended; those beyond count as others."""

_Key = tuple[Any, ...]


class _Open(NamedTuple):
    """The last table of one worker that lives, as it wrote it."""

    turn: int
    text: bytes


class StackSums:
    """Tables of workers are cumulative: of each that lives the last one counts, and what those
    that ended left is added up."""

    def __init__(self, loader: int) -> None:
        self._loader = loader
        self._open: dict[tuple[int, int], _Open] = {}
        self._ended: dict[_Key, list[int]] = {}
        self._samples = 0
        self._written = 0
        self._changed = False

    def take(self, worker: tuple[int, int], slot: Slot, *, is_last: bool) -> None:
        """Takes the table of a worker, if it is a new one."""
        turn = slot.turn()
        known = self._open.get(worker)
        if turn and (known is None or known.turn != turn):
            text = slot.read_text()
            if text is not None:
                self._open[worker] = _Open(turn, text)
                self._changed = True
        if is_last:
            found = self._open.pop(worker, None)
            if found is not None:
                self._samples += _add(self._ended, [found.text])

    def records(self, now: int, *, is_last: bool) -> "list[Record]":
        """One record, if there are twice as many samples as in the last one."""
        if not self._changed:
            return []
        self._changed = False
        sums = {key: list(pair) for key, pair in self._ended.items()}
        samples = self._samples + _add(sums, [found.text for found in self._open.values()])
        if samples < 2 * self._written and not is_last:
            self._changed = True
            return []
        self._written = samples
        from traceml_agent.schema.loaders import WorkerStacks
        from traceml_agent.schema.stacks import StackRow

        lines: dict[Any, int] = {}
        largest = sorted(sums.items(), key=lambda item: -item[1][1])[:MOST_ROWS]
        rows = [
            StackRow(
                phase=phase,
                lines=[lines.setdefault(line, len(lines)) for line in stack],
                samples=count,
                weight_ns=weight_ns,
                callee=callee,
                leaf=leaf,
            )
            for (phase, callee, leaf, stack), (count, weight_ns) in largest
        ]
        return [WorkerStacks(now, self._loader, samples, list(lines), rows)]


def _add(sums: dict[_Key, list[int]], texts: Iterable[bytes]) -> int:
    """Adds tables to sums; returns how many samples they hold."""
    samples = 0
    for text in texts:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            samples += _add_table(sums, _table(text))
    return samples


def _table(text: bytes) -> "Table":
    from traceml_agent.capture.stack_tally import table_of

    return table_of(text)


def _add_table(sums: dict[_Key, list[int]], table: "Table") -> int:
    for row in table.rows:
        stack = tuple(table.lines[number] for number in row.lines)
        key = (row.phase, row.callee, row.leaf, stack)
        if key not in sums and len(sums) >= MOST_KNOWN:
            continue
        pair = sums.setdefault(key, [0, 0])
        pair[0] += row.samples
        pair[1] += row.weight_ns
    return table.samples
