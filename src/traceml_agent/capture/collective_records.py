"""CallKeeper: which calls of collectives are written one by one, and which as sums.

Decided by the calls of the step before, when the log is emptied: every rank of a job that makes the
same calls decides alike, so that the calls that are kept can be aligned over ranks.
"""

from collections.abc import Callable, Iterable
from time import perf_counter_ns as clock

from traceml_agent.capture.audit import LEAST_COST_NS
from traceml_agent.capture.collective_log import CollectiveLog, Row
from traceml_agent.schema.collectives import (
    DENSE_STEPS,
    SPARSE,
    CollectiveKey,
    Collectives,
    CollectiveSums,
)

KEPT_A_STEP = 4
"""Calls a step that are kept one by one, on average: whole steps, one of so many that this holds.
Chosen: 130 bytes a step, and a sixteenth of it in the long run."""
LARGE_JOB = 128
"""Ranks from which on each rank keeps fewer steps, as many as its job has more of them. Chosen: so
that a job of any size leaves about as many calls to align."""
SPREAD = 2_654_435_761
"""A prime near 2 to the power of 32 over the golden ratio: multiples of it fall evenly over that
range, so that no habit of a loop, such as a log every 16 steps, is always kept or never. Source:
Knuth, The Art of Computer Programming, volume 3, section 6.4."""
MOST_OF_A_STEP = 1024
"""Calls of one step that are kept one by one: a step may hold an hour of evaluation."""
STRIKES = 3
"""Flushes in a row over the budget. Chosen: in one, a neighbour may have had the processor."""


def is_chosen(step: int, stride: int) -> bool:
    """Whether a step is among those kept, one of `stride`; those of a longer one are among them."""
    return step * SPREAD % (1 << 32) < (1 << 32) // stride


class _Choice:
    """Chooses whole steps by how many calls the step before had."""

    def __init__(self, world_size: int) -> None:
        self._least = max(1, world_size // LARGE_JOB)
        self._step = 0
        self._calls = 0
        self._keeps = True

    def keeps(self, step: int) -> bool:
        """Whether a call of this step is kept."""
        if step != self._step:
            stride = self._least
            while stride * KEPT_A_STEP < self._calls:
                stride *= 2
            if step > DENSE_STEPS:
                stride *= SPARSE
            self._keeps = is_chosen(step, stride)
            self._step, self._calls = step, 0
        self._calls += 1
        return self._keeps and self._calls <= MOST_OF_A_STEP


class CallKeeper:
    """Turns the rows of the log into records; in the sampler thread."""

    def __init__(self, log: CollectiveLog, world_size: int) -> None:
        self._log = log
        # Apart: of calls between two ranks one rank makes more than another.
        self._of_groups, self._of_pairs = _Choice(world_size), _Choice(world_size)
        self._strikes = 0
        self._judged = (clock(), log.cost_ns, 0)

    def records(self) -> list[Collectives]:
        """What was noted since the last time, as one record or none."""
        rows = self._log.take()
        if not rows:
            return []
        kept: list[Row] = []
        sums: dict[tuple[int, int], CollectiveSums] = {}
        for row in rows:
            choice = self._of_groups if row[2] else self._of_pairs
            if choice.keeps(row[1]):
                kept.append(row)
            else:
                place = (row[0], row[7])
                sums[place] = _added(sums.get(place), row)
        return [_record(self._log, kept, sums.values())]

    def judge(self, step: int, limit_percent: float, shut: Callable[[str], None]) -> None:
        """Shuts the patch where noting calls cost more than its budget several times in a row."""
        now = clock()
        since, cost, from_step = self._judged
        self._judged = (now, self._log.cost_ns, step)
        spent, steps = self._log.cost_ns - cost, max(1, step - from_step)
        percent = 100 * spent / max(1, now - since)
        if not limit_percent or percent <= limit_percent or spent / steps < LEAST_COST_NS:
            self._strikes = 0
            return
        self._strikes += 1
        if self._strikes >= STRIKES:
            shut(
                f"switched off at step {step}: it cost {spent / steps / 1e3:.0f} us a step, "
                f"{percent:.1f} % of it (limit {limit_percent:g} %, TRACEML_MAX_OVERHEAD)"
            )


def _added(sums: CollectiveSums | None, row: Row) -> CollectiveSums:
    key, step, _, _, duration_ns, size, _, part = row
    if sums is None:
        return CollectiveSums(key, part, step, step, 1, duration_ns, size)
    return CollectiveSums(
        key,
        part,
        min(sums.first_step, step),
        max(sums.last_step, step),
        sums.calls + 1,
        sums.duration_ns + duration_ns,
        None if sums.bytes is None or size is None else sums.bytes + size,
    )


def _record(log: CollectiveLog, rows: list[Row], sums: Iterable[CollectiveSums]) -> Collectives:
    """Only the keys that are used, numbered anew."""
    sums = list(sums)
    keys = list(log.keys)
    numbers = sorted({row[0] for row in rows} | {part.key for part in sums})
    place = {number: index for index, number in enumerate(numbers)}
    return Collectives(
        keys=[CollectiveKey(*keys[number]) for number in numbers],
        key=[place[row[0]] for row in rows],
        step=[row[1] for row in rows],
        seq=[row[2] for row in rows],
        start_ns=[row[3] for row in rows],
        duration_ns=[row[4] for row in rows],
        bytes=[row[5] for row in rows],
        phase=[None if row[6] < 0 else row[6] for row in rows],
        part=[row[7] for row in rows],
        sums=[
            CollectiveSums(
                place[s.key], s.part, s.first_step, s.last_step, s.calls, s.duration_ns, s.bytes
            )
            for s in sums
        ],
        lost=log.lost,
        cost_ns=log.cost_ns,
    )
