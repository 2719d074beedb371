"""Single batches of a loader: which are kept one by one, and their record."""

from typing import TYPE_CHECKING, NamedTuple

from traceml_agent.capture.board import Row

if TYPE_CHECKING:
    from traceml_agent.schema.loaders import WorkerBatches

FIRST = 2_000
BLOCK = 200
"""Batches that are written one by one: the first 2,000, then a block of 200 of each 2,000, from
20,000 on of each 20,000, and so on. Chosen: enough for quantiles and for a replay, 6,000 of a
million. Sums hold all of them."""
AT_ONCE = 256
"""Rows of a record, unless it waited AGAIN_NS. Chosen: a row costs 30 bytes, a record 200."""
AGAIN_NS = 5_000_000_000


class Single(NamedTuple):
    """A batch that was asked for; by which worker it was made, where that is known."""

    made: tuple[int, Row] | None
    asked_ns: int
    wait_ns: int


def is_kept(number: int) -> bool:
    """Whether the batch with this number, from 0, is written by itself."""
    every = FIRST
    while number >= 10 * every:
        every *= 10
    return number < FIRST or number % every < BLOCK


class Singles:
    """Batches that wait to be written."""

    def __init__(self, loader: int) -> None:
        self._loader = loader
        self._count = 0
        self._kept: list[Single] = []
        self._written_ns = 0

    def add(self, single: Single) -> None:
        """Keeps a batch, if its turn has come."""
        if single.made is not None and is_kept(self._count):
            self._kept.append(single)
        self._count += 1

    def records(self, now: int, *, is_last: bool) -> "list[WorkerBatches]":
        """One record, if there is enough for it."""
        self._written_ns = self._written_ns or now
        waited = now - self._written_ns > AGAIN_NS
        if not self._kept or not (len(self._kept) >= AT_ONCE or waited or is_last):
            return []
        kept, self._kept = self._kept, []
        self._written_ns = now
        return [_record(self._loader, kept)]


def _record(loader: int, kept: list[Single]) -> "WorkerBatches":
    from traceml_agent.schema.loaders import WorkerBatches

    rows = [(single.made or (0, (0, 0, 0, 0, -1, -1)), single) for single in kept]
    start_ns = min(min(row[2], single.asked_ns) for (_, row), single in rows)
    return WorkerBatches(
        loader=loader,
        start_ns=start_ns,
        epoch=[row[0] for (_, row), _ in rows],
        batch=[row[1] for (_, row), _ in rows],
        worker=[worker for (worker, _), _ in rows],
        begun_ns=[row[2] - start_ns for (_, row), _ in rows],
        fetch_ns=[row[3] for (_, row), _ in rows],
        collate_ns=[None if row[4] < 0 else row[4] for (_, row), _ in rows],
        cpu_ns=[None if row[5] < 0 else row[5] for (_, row), _ in rows],
        asked_ns=[single.asked_ns - start_ns for _, single in rows],
        wait_ns=[single.wait_ns for _, single in rows],
    )
