"""Calls of collectives as the ranks made them, and the same call aligned over its ranks.

In a collective that needs something of every rank, the rank that arrives last waits for nobody:
from its call to the end there is the transfer and what the library does around it. What another
rank takes longer is waiting for the last one. No clock of two machines is compared.

Of an async call the host feels only what is left when it waits for the handle. Of that the transfer
is at most what lies after the host's own work in between; with less work it would have felt more.
"""

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass, replace

from traceml_agent.report.series import RankSeries
from traceml_agent.report.stats import quantile
from traceml_agent.report.view import RankView
from traceml_agent.schema.collectives import DENSE_STEPS, SPARSE, CollectiveKey, CollectiveSums

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
    """One call of one rank."""

    key: CollectiveKey
    step: int
    seq: int
    start_ns: int
    host_ns: int  # in the call, and in the wait for its handle
    span_ns: int  # from its begin to the end of that wait
    bytes: int | None
    weight: int  # how many calls it stands for
    waited: bool  # it blocked, or the wait for its handle was seen


@dataclass(frozen=True, slots=True)
class RankCalls:
    """What one rank called within some steps."""

    rank: int
    calls: list[Call]
    phase_ns: dict[tuple[CollectiveKey, int | None], int]  # weighted, by the open phase
    stray_ns: dict[CollectiveKey, int]  # in waits whose call was in a step that was not kept
    sums: list[tuple[CollectiveKey, CollectiveSums]]
    lost: int


@dataclass(frozen=True, slots=True)
class Aligned:
    """One call on all ranks of its group."""

    key: CollectiveKey
    step: int
    bytes: int | None
    weight: int
    last_rank: int  # that came last: the one with the shortest span
    transfer_ns: tuple[int, int]  # of that rank: its host time, and its span
    host_ns: dict[int, int]  # by rank
    span_ns: dict[int, int]

    def transfer_of(self, rank: int, least_ns: float) -> tuple[float, float]:
        """What of the host time of a rank was transfer, at least and at most.

        `least_ns` is what a transfer like this one takes at least.
        """
        host_ns = self.host_ns[rank]
        own_work_ns = self.span_ns[rank] - host_ns
        most = min(host_ns, max(0, self.transfer_ns[1] - own_work_ns))
        return min(most, max(0.0, least_ns - own_work_ns)), most

    @property
    def wait_ns(self) -> int:
        """The longest wait for the last rank."""
        return max(host - round(self.transfer_of(r, 0.0)[1]) for r, host in self.host_ns.items())


def calls_of(
    rank: RankView, first: int, last: int, known: dict[CollectiveKey, CollectiveKey]
) -> RankCalls:
    """The calls of a rank within the steps from `first` to `last`.

    Not those outside any step, such as before the first one. `known` keeps one key of its like for
    all ranks: to compare the same object takes no time.
    """
    found = RankCalls(rank.rank, [], defaultdict(int), defaultdict(int), [], 0)
    waits: dict[tuple[CollectiveKey, int], int] = {}  # where the call is
    lost = 0
    for batch in rank.spool.collectives:
        lost = max(lost, batch.lost)
        keys = [known.setdefault(key, key) for key in batch.keys]
        found.sums.extend(
            (keys[part.key], part)
            for part in batch.sums
            if part.last_step >= first and part.first_step <= last
        )
        rows = zip(
            batch.key, batch.step, batch.seq, batch.start_ns, batch.duration_ns, batch.bytes,
            batch.phase, batch.part, strict=True
        )  # fmt: skip
        for number, noted, seq, start_ns, duration_ns, size, phase, part in rows:
            step = step_at(rank.series, start_ns, noted)
            if step is None or not first <= step <= last:
                continue
            key = keys[number]
            weight = SPARSE if noted > DENSE_STEPS else 1
            found.phase_ns[key, phase] += weight * duration_ns
            if part == WAIT:
                place = waits.get((key, seq))
                if place is None:
                    found.stray_ns[key] += duration_ns
                else:
                    found.calls[place] = _with_wait(found.calls[place], start_ns, duration_ns)
                continue
            if part == ASYNC_CALL and seq:
                waits[key, seq] = len(found.calls)
            waited = part != ASYNC_CALL
            found.calls.append(
                Call(key, step, seq, start_ns, duration_ns, duration_ns, size, weight, waited)
            )
    return replace(found, lost=lost)


def _with_wait(call: Call, start_ns: int, duration_ns: int) -> Call:
    return replace(
        call,
        host_ns=call.host_ns + duration_ns,
        span_ns=max(call.host_ns + duration_ns, start_ns + duration_ns - call.start_ns),
        waited=True,
    )


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


def stride_of(ranks: list[RankCalls]) -> int:
    """One of how many steps is aligned."""
    return -(-sum(len(rank.calls) for rank in ranks) // ALIGNED_ROWS) or 1


def align(ranks: list[RankCalls], stride: int = 1) -> list[Aligned]:
    """The calls that every rank of their group made, as the same operation in the same step.

    Only of steps in which the ranks of a group made the same calls: where one of them made a call
    more somewhere, numbers that are equal from then on mean different calls.
    """
    steps: dict[tuple[str, int], dict[int, list[Call]]] = defaultdict(lambda: defaultdict(list))
    for rank in ranks:
        for call in rank.calls:
            if call.seq and call.step % stride == 0 and call.key.group_size > 1:
                steps[call.key.group, call.step][rank.rank].append(call)
    aligned = []
    for of_ranks in steps.values():
        lists = list(of_ranks.values())
        if len(lists) == lists[0][0].key.group_size and len({len(calls) for calls in lists}) == 1:
            rows = list(zip(*lists, strict=True))
            if all(_is_one_call(row) for row in rows):
                ids = list(of_ranks)
                aligned += [_aligned(ids, row) for row in rows if can_be_aligned(row[0].key)]
    return aligned


def _is_one_call(row: tuple[Call, ...]) -> bool:
    """`is`: see calls_of."""
    first = row[0]
    return all(call.seq == first.seq and call.key is first.key for call in row)


def _aligned(ranks: list[int], row: tuple[Call, ...]) -> Aligned:
    place = min(range(len(row)), key=lambda i: (row[i].span_ns, ranks[i]))
    last = row[place]
    return Aligned(
        key=last.key,
        step=last.step,
        bytes=last.bytes,
        weight=last.weight,
        last_rank=ranks[place],
        transfer_ns=(last.host_ns, last.span_ns),
        host_ns=dict(zip(ranks, (call.host_ns for call in row), strict=True)),
        span_ns=dict(zip(ranks, (call.span_ns for call in row), strict=True)),
    )


def least_transfers(aligned: list[Aligned]) -> dict[tuple[CollectiveKey, int | None], float]:
    """For each kind and size of call, what its transfer takes at least."""
    times: dict[tuple[CollectiveKey, int | None], list[int]] = defaultdict(list)
    for call in aligned:
        times[call.key, call.bytes].append(call.transfer_ns[0])
    return {like: quantile(sorted(values), FASTEST) or 0.0 for like, values in times.items()}
