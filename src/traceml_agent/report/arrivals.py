"""Who entered a collective last, and how long before it the others were there.

From torch's Flight Recorder, which also sees what C++ calls: the reductions of
DistributedDataParallel. Their moments are compared on one clock: of one machine exactly, of several
by the offsets of their clocks, whose error is told.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from traceml_agent.report.calls import step_at
from traceml_agent.report.membership import anchors_of, machine_of
from traceml_agent.report.view import RankView, RunView
from traceml_agent.schema.collectives import CollectiveKey

CLEAR_WAIT_NS = 1_000_000
"""A call counts in who arrives last if some rank waited 1 ms. Chosen: below, the scheduler of the
machine decides."""
_FULL_SYNC = ("all", "_all", "reduce_scatter", "_reduce_scatter", "barrier")
"""How the recorder begins the names of operations that no rank can leave before all have come."""


@dataclass(frozen=True, slots=True)
class LastArrivals:
    """Who came last in calls where another rank waited for it."""

    rank: int  # most often
    share: float
    chance: float
    calls: int
    wait_ms: float  # the longest wait, on average
    costly_rank: int  # that most waiting was for
    costly_share: float


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the recorders of all ranks tell together."""

    steps: int
    first_step: int
    last_step: int
    error_ms: float  # of the clocks of several machines
    last: LastArrivals | None
    ahead_ms: dict[int, float]  # rank: before the last one was there, mean


def last_arrivals(clear: list[tuple[int, float]], group_size: int) -> LastArrivals | None:
    """Of calls with their last rank and its cost, the longest wait for it in nanoseconds."""
    if not clear:
        return None
    times = Counter(rank for rank, _ in clear)
    rank, count = min(times.items(), key=lambda item: (-item[1], item[0]))
    waited: dict[int, float] = defaultdict(float)
    for last, wait_ns in clear:
        waited[last] += wait_ns
    costly, cost_ns = min(waited.items(), key=lambda item: (-item[1], item[0]))
    total_ns = sum(waited.values())
    return LastArrivals(
        rank=rank,
        share=count / len(clear),
        chance=1 / group_size,
        calls=len(clear),
        wait_ms=total_ns / len(clear) / 1e6,
        costly_rank=costly,
        costly_share=cost_ns / total_ns,
    )


def recorded(view: RunView, first: int, last: int) -> Recorded | None:
    """What is known of the steps from `first` to `last`; None where the recorders say nothing.

    Of each step that collective of the largest group counts whose ranks came furthest apart: they
    all may wait for the same late rank, and to add them up would count its delay several times.
    """
    size, steps = _widest_of_steps(view, first, last)
    if not steps:
        return None
    error_ns = max(clock.error_ns or 0 for clock in view.clocks)
    ahead: dict[int, list[int]] = defaultdict(list)
    clear: list[tuple[int, float]] = []
    for moments in steps.values():
        latest = max(moments, key=lambda rank: (moments[rank], -rank))
        wait_ns = _width(moments)
        if wait_ns >= max(CLEAR_WAIT_NS, 2 * error_ns):
            clear.append((latest, wait_ns))
        for rank, moment in moments.items():
            ahead[rank].append(moments[latest] - moment)
    return Recorded(
        steps=len(steps),
        first_step=min(steps),
        last_step=max(steps),
        error_ms=error_ns / 1e6,
        last=last_arrivals(clear, size),
        ahead_ms={rank: sum(of) / len(of) / 1e6 for rank, of in sorted(ahead.items())},
    )


def _widest_of_steps(view: RunView, first: int, last: int) -> tuple[int, dict[int, dict[int, int]]]:
    """Size of the largest group; step: rank: when it entered the one collective of that step.

    Nothing where the offset of a clock is not known.
    """
    if any(clock.offset_ns is None for clock in view.clocks):
        return 0, {}
    found: dict[tuple[int, CollectiveKey], dict[int, tuple[int, int]]] = defaultdict(dict)
    anchors = anchors_of(rank.spool for rank in view.ranks)
    offsets = {clock.machine: clock.offset_ns or 0 for clock in view.clocks}
    for rank in view.ranks:
        machine = machine_of(rank.spool.header)
        shift = anchors[machine] - offsets.get(machine, 0)
        for key, seq, step, moment in _moments(rank):
            if first <= step <= last and key.op.startswith(_FULL_SYNC) and key.group_size > 1:
                found[seq, key][rank.rank] = (step, moment + shift)
    size = max((key.group_size for _, key in found), default=0)
    steps: dict[int, dict[int, int]] = {}
    for (_, key), of_ranks in found.items():
        of_steps = {step for step, _ in of_ranks.values()}
        if len(of_ranks) == key.group_size == size and len(of_steps) == 1:
            step = of_steps.pop()
            moments = {rank: moment for rank, (_, moment) in of_ranks.items()}
            if step not in steps or _width(moments) > _width(steps[step]):
                steps[step] = moments
    return size, steps


def _width(moments: dict[int, int]) -> int:
    return max(moments.values()) - min(moments.values())


def _moments(rank: RankView) -> Iterator[tuple[CollectiveKey, int, int, int]]:
    """Key, number, step and moment of each collective that was entered in a step."""
    for batch in rank.spool.arrivals:
        for number, seq, entered_ns in zip(batch.key, batch.seq, batch.entered_ns, strict=True):
            step = step_at(rank.series, entered_ns, 0)
            if step is not None:
                yield batch.keys[number], seq, step, entered_ns
