"""PassLog: when a loader was gone through, from first to last batch. In the agent's thread."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from traceml_agent.schema.spans import Passes

PASSES_KEPT = 4_096
"""Between two drains: a program may make an iterator a step."""
AGAIN_PART = 0.1
AGAIN_NS = 5_000_000_000
"""A pass without an end is written again when it is longer by a tenth, and by so much. It may be
left, and then lasted until its last batch. One of a month is written some hundred times."""


class Pass:
    """One time through a loader."""

    __slots__ = ("batches", "end_ns", "last_ns", "number", "start_ns", "told_ns")

    def __init__(self, number: int, start_ns: int) -> None:
        self.number = number
        self.start_ns = start_ns
        self.end_ns: int | None = None
        self.last_ns = start_ns
        self.batches = 0
        self.told_ns: int | None = None  # its last batch when it was written

    @property
    def is_due(self) -> bool:
        """Whether it is to be written."""
        if self.told_ns is None or self.end_ns is not None:
            return True
        return self.last_ns - self.told_ns > max(
            AGAIN_NS, AGAIN_PART * (self.told_ns - self.start_ns)
        )


class PassLog:
    """The passes of one loader."""

    def __init__(self, loader: int) -> None:
        self._loader = loader
        self._count = 0
        self._fresh: dict[int, Pass] = {}
        self._start_ns = 0  # what making the iterator of the next pass took

    def started(self, elapsed_ns: int) -> None:
        """An iterator was made, or begins anew."""
        self._start_ns = elapsed_ns

    def asked(self, known: dict[int, Pass], epoch: int, asked_ns: int, came_ns: int) -> None:
        """A batch came; `known` are the passes of its iterator, by epoch."""
        found = known.get(epoch)
        if found is None:
            known.clear()  # an iterator does not go back
            found = known[epoch] = Pass(self._count, asked_ns - self._start_ns)
            self._count += 1
            self._start_ns = 0
        found.last_ns = came_ns
        found.batches += 1
        self._touch(found)

    def ended(self, known: dict[int, Pass], epoch: int, end_ns: int) -> None:
        """No batch is left."""
        found = known.get(epoch)
        if found is not None:
            found.end_ns = end_ns
            self._touch(found)

    def _touch(self, found: Pass) -> None:
        self._fresh[found.number] = found
        if len(self._fresh) > PASSES_KEPT:
            del self._fresh[next(iter(self._fresh))]

    @property
    def began(self) -> bool:
        """Whether a pass is new: others may have been left for it."""
        return any(found.told_ns is None for found in self._fresh.values())

    def records(self, *, everything: bool) -> "list[Passes]":
        """Those that began or ended since the last time, as one record or none; `everything`: those
        that went on too."""
        rows = [found for found in self._fresh.values() if everything or found.is_due]
        for row in rows:
            row.told_ns = row.last_ns
            del self._fresh[row.number]
        if not rows:
            return []
        from traceml_agent.schema.spans import Passes

        return [
            Passes(
                loader=[self._loader] * len(rows),
                number=[row.number for row in rows],
                start_ns=[row.start_ns for row in rows],
                end_ns=[row.end_ns for row in rows],
                last_ns=[row.last_ns for row in rows],
                batches=[row.batches for row in rows],
            )
        ]
