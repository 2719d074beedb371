"""Spikes: single steps that took much longer than their neighbours, and what of that is explained.

A step is a spike if it lies five robust standard deviations and 10 % above the running median. Its
excess over that median is given to the causes whose losses in this step exceed their own median, in
order; what is left is unexplained. Engine M2.
"""

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from traceml_agent.report.losses import Loss
from traceml_agent.report.series import RankSeries
from traceml_agent.report.stats import (
    MAD_TO_SIGMA,
    Column,
    median,
    middle,
    numpy_for,
)

SIGMAS = 5.0
LEAST_RATIO = 0.1
"""Source: the outlier rule of signals.md, median + max(5 MAD-sigma, 10 %)."""
BLOCK = 50
"""Steps that have one running median. Chosen: of up to 24 spikes among them it knows nothing, and a
slow change of the step does not look like spikes."""
LEAST_STEPS = 10
"""With fewer steps there are no neighbours to compare with."""
UNEXPLAINED = "unexplained"
PERIODIC_LEAST = 4
PERIODIC_SHARE = 0.8
"""Spikes at least, and the share of their distances that must be equal. Chosen: of 3 distances in a
run of 1,000 steps, chance makes three equal ones in fewer than 1 of 100,000 runs."""
SHORTEST_PERIOD = 2
_HALF = 0.5


@dataclass(frozen=True, slots=True)
class Baseline:
    """The running median of a column in blocks, and how far values scatter around it."""

    first: int  # index of the first value
    levels: tuple[float, ...]
    sigma: float

    def at(self, index: int) -> float:
        """The median around a value."""
        return self.levels[self.block_of(index)]

    def limits(self) -> list[float]:
        """Of each block the value above which is a spike; where the level changes, the highest
        level nearby counts."""
        highest = [max(self.levels[max(0, i - 1) : i + 2]) for i in range(len(self.levels))]
        return [y + max(SIGMAS * self.sigma, LEAST_RATIO * y) for y in highest]

    def column(self, count: int) -> Column:
        """The median around each of so many values."""
        found = array("q", (0,)) * self.first
        for level in self.levels[:-1]:
            found.extend(array("q", (round(level),)) * BLOCK)
        found.extend(array("q", (round(self.levels[-1]),)) * (count - len(found)))
        return found

    def block_of(self, index: int) -> int:
        """The block in which a value lies."""
        return min(max(0, index - self.first) // BLOCK, len(self.levels) - 1)


@dataclass(frozen=True, slots=True)
class Spike:
    """One step that took longer, and to what its excess is given."""

    rank: int
    step: int
    index: int  # in the columns of its rank
    duration_ns: int
    excess_ns: int
    parts: dict[str, int]  # cause: nanoseconds; with UNEXPLAINED they sum to the excess

    @property
    def cause(self) -> str:
        """The cause with the largest part."""
        return max(self.parts, key=lambda name: self.parts[name])


@dataclass(frozen=True, slots=True)
class Periodic:
    """Spikes of one cause that come back after the same number of steps."""

    cause: str
    rank: int
    every: int
    steps: tuple[int, ...]
    mean_excess_ns: float


def baseline_of(column: Column, first: int) -> Baseline:
    """The running median from an index on."""
    parts = _blocks(column, first)
    numpy = numpy_for(len(column) - first)
    if numpy is None:
        levels = tuple(median(part) or 0.0 for part in parts)
        pairs = zip(parts, levels, strict=True)
        apart = median([abs(y - level) for part, level in pairs for y in part]) or 0.0
    else:
        values = numpy.asarray(column[first:], dtype=numpy.int64)
        whole = (len(parts) - 1) * BLOCK
        middles = numpy.median(values[:whole].reshape(-1, BLOCK), axis=1)
        levels = (*middles.tolist(), float(numpy.median(values[whole:])))
        distances = numpy.abs(values - numpy.repeat(levels, list(map(len, parts))))
        apart = float(numpy.median(distances))
    return Baseline(first, levels, MAD_TO_SIGMA * apart)


def above(column: Column, baseline: Baseline) -> list[int]:
    """Indices of the values beyond the limit of their block."""
    first, limits = baseline.first, baseline.limits()
    parts = _blocks(column, first)
    numpy = numpy_for(len(column) - first)
    if numpy is not None:
        beyond = numpy.asarray(column[first:]) > numpy.repeat(limits, list(map(len, parts)))
        return [first + int(at) for at in numpy.flatnonzero(beyond)]
    return [
        first + number * BLOCK + offset
        for number, (part, limit) in enumerate(zip(parts, limits, strict=True))
        for offset, ns in enumerate(part)
        if ns > limit
    ]


def _blocks(column: Column, first: int) -> list[Column]:
    """The values from an index on, in blocks; the last one takes the rest."""
    count = max(1, (len(column) - first) // BLOCK)
    begins = [first + i * BLOCK for i in range(count)]
    return [column[at:end] for at, end in zip(begins, [*begins[1:], len(column)], strict=True)]


def spikes_of(rank: int, series: RankSeries, losses: Sequence[Loss]) -> list[Spike]:
    """The spikes of a rank after its warm-up, in the order of the steps."""
    duration, first = series.duration_ns, series.first_steady
    if len(duration) - first < LEAST_STEPS:
        return []
    baseline = baseline_of(duration, first)
    found = above(duration, baseline)
    if not found:
        return []
    usual = {loss.cause: middle(loss.lost_ns[first:]) or 0.0 for loss in losses}
    spikes = []
    for index in found:
        excess = int(duration[index] - baseline.at(index))
        rest, parts = excess, {}
        for loss in losses:
            part = min(rest, max(0, int(loss.lost_ns[index] - usual[loss.cause])))
            if part:
                parts[loss.cause] = part
                rest -= part
        if rest or not parts:
            parts[UNEXPLAINED] = rest
        spikes.append(Spike(rank, series.steps[index], index, duration[index], excess, parts))
    return spikes


def periodic(spikes: Sequence[Spike]) -> list[Periodic]:
    """The causes of one rank whose spikes come back regularly, the costliest first."""
    by_cause: dict[str, list[Spike]] = {}
    for spike in spikes:
        by_cause.setdefault(spike.cause, []).append(spike)
    found = []
    for cause, own in by_cause.items():
        every = period([spike.step for spike in own])
        if every is not None:
            mean_ns = sum(spike.excess_ns for spike in own) / len(own)
            steps = tuple(spike.step for spike in own)
            found.append(Periodic(cause, own[0].rank, every, steps, mean_ns))
    return sorted(found, key=lambda p: -p.mean_excess_ns * len(p.steps))


def period(steps: Sequence[int]) -> int | None:
    """The distance at which nearly all of these steps follow each other; None: there is none."""
    if len(steps) < PERIODIC_LEAST:
        return None
    apart = Counter(after - before for before, after in pairwise(steps))
    every, count = apart.most_common(1)[0]
    is_regular = count >= PERIODIC_SHARE * (len(steps) - 1)
    return every if is_regular and every >= SHORTEST_PERIOD else None


def followed(spikes: Sequence[Spike]) -> list[Spike]:
    """Spikes of ranks that keep step: what one rank cannot explain is given to the cause of the
    rank that explains most of the same step. The others waited for it.

    What a rank does after its update (a checkpoint, an evaluation) is in its step, and the others
    wait in their next one.
    """
    best: dict[int, Spike] = {}
    own = {(spike.rank, spike.step) for spike in spikes}
    for spike in spikes:
        other = best.get(spike.step)
        if other is None or _known(spike) > _known(other):
            best[spike.step] = spike
    found = []
    for spike in spikes:
        culprit = best[spike.step]
        before = best.get(spike.step - 1)
        is_late = _known(culprit) < _HALF * spike.parts.get(UNEXPLAINED, 0)
        if is_late and before is not None and (spike.rank, spike.step - 1) not in own:
            culprit = before
        found.append(_following(spike, culprit))
    return found


def _known(spike: Spike) -> int:
    """What the rank itself explains."""
    return spike.excess_ns - spike.parts.get(UNEXPLAINED, 0)


def _following(spike: Spike, culprit: Spike) -> Spike:
    open_ns = spike.parts.get(UNEXPLAINED, 0)
    part = min(open_ns, _known(culprit))
    if culprit.rank == spike.rank or not part:
        return spike
    cause = max((c for c in culprit.parts if c != UNEXPLAINED), key=lambda c: culprit.parts[c])
    parts = {**spike.parts, f"rank {culprit.rank}: {cause}": part, UNEXPLAINED: open_ns - part}
    if not parts[UNEXPLAINED]:
        del parts[UNEXPLAINED]
    return replace(spike, parts=parts)
