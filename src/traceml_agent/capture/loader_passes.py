"""PassLog: when a loader was gone through, from first to last batch. In the agent's thread."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from traceml_agent.schema.spans import Passes

PASSES_KEPT = 4_096
"""Between two drains: a program may make an iterator a step."""


class Pass:
    """One time through a loader."""

    __slots__ = ("batches", "end_ns", "is_told", "last_ns", "number", "start_ns")

    def __init__(self, number: int, start_ns: int) -> None:
        self.number = number
        self.start_ns = start_ns
        self.end_ns: int | None = None
        self.last_ns = start_ns
        self.batches = 0
        self.is_told = False  # written with all that is known of it


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

    def records(self, *, is_last: bool) -> "list[Passes]":
        """Those that began or ended since the last time, as one record or none."""
        rows = [p for p in self._fresh.values() if is_last or p.end_ns is not None or not p.is_told]
        self._fresh.clear()
        if not rows:
            return []
        for row in rows:
            row.is_told = True
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
