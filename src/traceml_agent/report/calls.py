"""Calls of collectives as the ranks made them, and the same call aligned over its ranks.

In a collective that needs something of every rank, the rank that arrives last waits for nobody: its
time in the call is the transfer and what the library does around it. Any longer time of another
rank is waiting for the last one. No clock of two machines is compared.
"""

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass

from traceml_agent.report.series import RankSeries
from traceml_agent.report.stats import quantile
from traceml_agent.report.view import RankView
from traceml_agent.schema.collectives import CollectiveKey, CollectiveSums

FULL_SYNC = frozenset(
    (
        "all_reduce",
        "all_reduce_coalesced",
        "all_gather",
        "all_gather_single",
        "all_gather_into_tensor",
        "_all_gather_base",
        "all_gather_coalesced",
        "reduce_scatter",
        "reduce_scatter_single",
        "reduce_scatter_tensor",
        "_reduce_scatter_base",
        "all_to_all",
        "all_to_all_single",
        "barrier",
        "monitored_barrier",
        "all_gather_object",
    )
)
"""No rank can leave before every rank has come. Not so broadcast, gather and the like: their root,
or the others, may be done before a late rank arrives."""
ALIGNED_ROWS = 300_000
"""Calls over all ranks that are aligned. Chosen: 1 s; of more, some of the steps are looked at."""
FASTEST = 0.1
"""The transfer of an operation and size takes at least as long as its fastest tenth."""

CALL, ASYNC_CALL, WAIT = range(3)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of one rank; `host_ns` is the time in it and in the wait for its handle."""

    key: CollectiveKey
    step: int
    seq: int
    start_ns: int
    host_ns: int
    bytes: int | None
    phase: int | None


@dataclass(frozen=True, slots=True)
class RankCalls:
    """What one rank called within some steps."""

    rank: int
    calls: list[Call]
    sums: list[tuple[CollectiveKey, CollectiveSums]]
    lost: int
    cost_ns: int


@dataclass(frozen=True, slots=True)
class Aligned:
    """One call on all ranks of its group."""

    key: CollectiveKey
    seq: int
    step: int
    bytes: int | None
    host_ns: dict[int, int]  # rank: its time in the call

    @property
    def transfer_ns(self) -> int:
        """The most that the transfer can have taken: the time of the rank that came last."""
        return min(self.host_ns.values())

    @property
    def last_rank(self) -> int:
        """The rank that came last: the one that waited least."""
        return min(self.host_ns, key=lambda rank: (self.host_ns[rank], rank))

    @property
    def spread_ns(self) -> int:
        """The longest wait for the last rank."""
        return max(self.host_ns.values()) - self.transfer_ns


def calls_of(rank: RankView, first: int, last: int) -> RankCalls:
    """The calls of a rank within the steps from `first` to `last`.

    Not those outside any step, such as before the first one.
    """
    series = rank.series
    calls: list[Call] = []
    waits: dict[tuple[CollectiveKey, int], int] = {}  # where the call is
    sums: list[tuple[CollectiveKey, CollectiveSums]] = []
    lost = cost_ns = 0
    for batch in rank.spool.collectives:
        lost, cost_ns = max(lost, batch.lost), max(cost_ns, batch.cost_ns)
        sums += [
            (batch.keys[part.key], part)
            for part in batch.sums
            if part.last_step >= first and part.first_step <= last
        ]
        rows = zip(
            batch.key, batch.step, batch.seq, batch.start_ns, batch.duration_ns, batch.bytes,
            batch.phase, batch.part, strict=True
        )  # fmt: skip
        for number, step, seq, start_ns, duration_ns, size, phase, part in rows:
            within = step_at(series, start_ns, step)
            if within is None or not first <= within <= last:
                continue
            key = batch.keys[number]
            if part == WAIT and (place := waits.pop((key, seq), None)) is not None:
                before = calls[place]
                host_ns = before.host_ns + duration_ns
                calls[place] = Call(
                    key, before.step, seq, before.start_ns, host_ns, before.bytes, before.phase
                )
                continue
            if part == ASYNC_CALL and seq:
                waits[key, seq] = len(calls)
            # A wait whose call is not known here counts with its time and no number.
            calls.append(
                Call(key, within, 0 if part == WAIT else seq, start_ns, duration_ns, size, phase)
            )
    return RankCalls(rank.rank, calls, sums, lost, cost_ns)


def step_at(series: RankSeries, start_ns: int, noted: int) -> int | None:
    """The step in which a call began; None outside any.

    By time: the number noted at the call is the one before where no loader marks the end of a step,
    which shows only in the middle of the next. Where single steps were thinned out it has to do.
    """
    index = bisect_right(series.start_ns, start_ns) - 1
    if index >= 0 and start_ns < series.start_ns[index] + series.duration_ns[index]:
        return series.steps[index]
    if any(part.first_step <= noted < part.first_step + part.count for part in series.sums):
        return noted
    return None


def can_be_aligned(key: CollectiveKey) -> bool:
    """Whether waiting and transfer can be told apart for calls of this kind."""
    return bool(key.blocking) and key.op in FULL_SYNC and key.group_size > 1


def align(ranks: list[RankCalls]) -> list[Aligned]:
    """The calls that every rank of their group made, as the same operation in the same step."""
    total = sum(len(rank.calls) for rank in ranks)
    stride = -(-total // ALIGNED_ROWS) or 1
    found: dict[tuple[str, int], dict[int, Call]] = defaultdict(dict)
    for rank in ranks:
        for call in rank.calls:
            if call.seq and call.step % stride == 0 and can_be_aligned(call.key):
                found[call.key.group, call.seq][rank.rank] = call
    aligned = []
    for (_, seq), of_ranks in found.items():
        calls = list(of_ranks.values())
        first = calls[0]
        if len(calls) == first.key.group_size and all(
            call.key == first.key and call.step == first.step for call in calls
        ):
            host_ns = {rank: call.host_ns for rank, call in of_ranks.items()}
            aligned.append(Aligned(first.key, seq, first.step, first.bytes, host_ns))
    return aligned


def transfer_bounds(aligned: list[Aligned]) -> dict[CollectiveKey, tuple[float, float]]:
    """For each kind of call the least and the most time that the transfers took in all."""
    times: dict[tuple[CollectiveKey, int | None], list[int]] = defaultdict(list)
    for call in aligned:
        times[call.key, call.bytes].append(call.transfer_ns)
    bounds: dict[CollectiveKey, tuple[float, float]] = {}
    for (key, _), values in times.items():
        least = quantile(sorted(values), FASTEST) or 0.0
        low, high = bounds.get(key, (0.0, 0.0))
        bounds[key] = (low + sum(min(least, v) for v in values), high + sum(values))
    return bounds
