"""What calls of one kind took of one rank, and how much of it was transfer."""

from collections import defaultdict
from dataclasses import dataclass, field

from traceml_agent.report.calls import WAIT, Aligned, RankCalls, can_be_aligned, least_transfers
from traceml_agent.schema.collectives import CollectiveKey
from traceml_agent.schema.phases import PHASES

ALIGNED_LEAST = 0.9
"""Part of the calls kept that must be found on all ranks, or waiting stays unknown. Chosen: the
few at both ends of a run are never complete; more mean that ranks did not call alike."""

_ENQUEUED = (
    "on this backend the time of the host in these calls says nothing about waiting or transfer"
)
_NO_WAIT = "the wait for the handles of these calls was not seen"
_NOT_ALL = "not every rank of the group was seen making these calls"
_NO_SYNC = "ranks may leave this operation before all have come: waiting cannot be told apart"


@dataclass(slots=True)
class Figures:
    """Sums over the window of one kind of call of one rank."""

    calls: float = 0.0
    kept: int = 0  # one by one, in the steps that are aligned
    waited: int = 0  # of these, with the wait for the handle
    host_ns: float = 0.0
    bytes: float | None = 0.0
    phases: dict[str, float] = field(default_factory=dict)  # shares of the host time


@dataclass(slots=True)
class Told:
    """Sums over the aligned calls of one kind of one rank."""

    calls: int = 0
    host_ns: float = 0.0
    low_ns: float = 0.0  # of it transfer, at least
    high_ns: float = 0.0  # and at most


@dataclass(frozen=True, slots=True)
class Split:
    """Of the host time of one kind of call: fractions that were transfer, at least and at most."""

    low: float | None
    high: float | None
    reason: str | None = None


def figures_of(rank: RankCalls, first: int, last: int, stride: int) -> dict[CollectiveKey, Figures]:
    """The sums of each kind of call of a rank, over the steps from `first` to `last`."""
    found: dict[CollectiveKey, Figures] = defaultdict(Figures)
    for call in rank.calls:
        sums = found[call.key]
        sums.host_ns += call.host_ns
        if call.seq and call.step % stride == 0:
            sums.kept += 1
            sums.waited += call.waited
        sums.calls += 1
        sums.bytes = _plus(sums.bytes, call.bytes)
    for key, wait_ns in rank.stray_ns.items():
        found[key].host_ns += wait_ns
    for key, sums in found.items():
        sums.phases = _phases({p: ns for (k, p), ns in rank.phase_ns.items() if k == key})
    for key, part in rank.sums:
        # Sums of a few hundred steps may reach over the end of the window: the part that lies in.
        inside = min(last, part.last_step) - max(first, part.first_step) + 1
        portion = inside / (part.last_step - part.first_step + 1)
        sums = found[key]
        sums.host_ns += portion * part.duration_ns
        if part.part != WAIT:  # it is no call of its own
            sums.calls += portion * part.calls
            sums.bytes = _plus(sums.bytes, None if part.bytes is None else portion * part.bytes)
    return dict(found)


def _phases(weighted_ns: dict[int | None, int]) -> dict[str, float]:
    total = sum(weighted_ns.values())
    return {
        "none" if phase is None else PHASES[phase]: ns / total
        for phase, ns in weighted_ns.items()
        if total
    }


def _plus(total: float | None, value: float | None) -> float | None:
    return None if total is None or value is None else total + value


def told_by(aligned: list[Aligned]) -> dict[CollectiveKey, dict[int, Told]]:
    """What the aligned calls of each kind tell of each rank, as weighted sums."""
    least = least_transfers(aligned)
    found: dict[CollectiveKey, dict[int, Told]] = defaultdict(lambda: defaultdict(Told))
    for call in aligned:
        least_ns, of_kind = least[call.key, call.bytes], found[call.key]
        for rank, host_ns in call.host_ns.items():
            told = of_kind[rank]
            low, high = call.transfer_of(rank, least_ns)
            told.calls += 1
            told.host_ns += call.weight * host_ns
            told.low_ns += call.weight * low
            told.high_ns += call.weight * high
    return found


def split_of(key: CollectiveKey, sums: Figures, told: Told | None) -> Split:
    """How much of the time of one kind of call was transfer, by what aligned calls told."""
    if not key.blocking:
        return Split(None, None, _ENQUEUED)
    if key.group_size < 2:
        return Split(1.0, 1.0)
    if not can_be_aligned(key):
        return Split(0.0, 1.0, _NO_SYNC)
    if sums.waited < ALIGNED_LEAST * sums.kept:
        return Split(0.0, 1.0, _NO_WAIT)
    if told is None or told.calls < ALIGNED_LEAST * sums.kept or not told.host_ns:
        return Split(0.0, 1.0, _NOT_ALL)
    return Split(told.low_ns / told.host_ns, told.high_ns / told.host_ns)
