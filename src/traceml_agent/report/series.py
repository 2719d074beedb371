"""RankSeries: the steps of one rank as columns, warm-up told apart from the steady state."""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain

from traceml_agent.report.stats import (
    MAD_TO_SIGMA,
    median_abs_deviation,
    middle,
    running_sum,
    total,
)
from traceml_agent.schema.phases import PATCH_OF_PHASE, PHASES
from traceml_agent.schema.records import Steps, StepSums
from traceml_agent.spool.reader import Spool
from traceml_agent.spool.writer import sums_of

WARMUP_SIGMAS = 5.0
WARMUP_RATIO = 1.5
"""A leading step is warm-up if it lies 5 robust standard deviations and 50 % above the median.
Source of the first: the outlier rule of signals.md; the second: chosen, so that a step that is
merely a little slower is never cut."""
WARMUP_MOST_STEPS = 50
WARMUP_MOST_SHARE = 0.2
WARMUP_LEAST_STEPS = 5
"""With fewer steps nothing is cut: there is no steady state to compare with."""


@dataclass(frozen=True, slots=True)
class RankSeries:
    """One integer a step in each column, in nanoseconds; `steps` holds the step numbers."""

    steps: Sequence[int]
    start_ns: Sequence[int]
    duration_ns: Sequence[int]
    phase_ns: dict[str, Sequence[int] | None]  # None: not measured
    d2h_ns: Sequence[int]
    micro_batches: Sequence[int]
    samples: Sequence[int] | None  # None: the batch size was never seen
    device_duration_ns: Sequence[int] | None  # None: not measured for every step
    device_phase_ns: dict[str, Sequence[int]]
    sums: list[StepSums] = field(default_factory=list)  # steps thinned out
    warmup: int = 0  # leading steps that are cut from averages and percentiles

    @property
    def first_steady(self) -> int:
        """Index of the first step after the warm-up."""
        return self.warmup


def is_measured(spool: Spool, phase: str) -> bool:
    """Whether the patch of a phase was in. Nothing imported that compiles, or logs: 0 of it."""
    patch = PATCH_OF_PHASE[phase]
    if patch in ("compile", "logging") and patch not in spool.statuses:
        return True
    return spool.statuses.get(patch) == "active"


def series_of(spool: Spool) -> RankSeries:
    """The columns of one spool. They may be those of its batches: nobody changes a column."""
    batches: list[Steps] = []
    for batch in sorted(spool.batches, key=lambda b: b.first_step):
        if not batches or batch.first_step >= batches[-1].first_step + batches[-1].count:
            batches.append(batch)  # else the ring repeats what the spool holds
    steps = _join([range(b.first_step, b.first_step + b.count) for b in batches])
    duration_ns = _join([batch.duration_ns for batch in batches])
    zeros = _repeated(0, len(steps))
    samples = [batch.samples for batch in batches]
    device_duration, device_phases = _device_columns(spool, steps)
    return RankSeries(
        steps=steps,
        start_ns=_starts(batches),
        duration_ns=duration_ns,
        phase_ns={
            name: _column(batches, [batch.phase_ns.get(name) for batch in batches], zeros)
            if is_measured(spool, name)
            else None
            for name in PHASES
        },
        d2h_ns=_column(batches, [batch.d2h_ns for batch in batches], zeros),
        micro_batches=_join([_spread(b.micro_batches, b.count) for b in batches]),
        samples=None
        if not samples or None in samples
        else _join([_spread(b.samples or 0, b.count) for b in batches]),
        device_duration_ns=device_duration,
        device_phase_ns=device_phases,
        sums=spool.sums,
        warmup=warmup_steps(duration_ns),
    )


def _join(parts: Sequence[Sequence[int]]) -> Sequence[int]:
    return parts[0] if len(parts) == 1 else array("q", chain.from_iterable(parts))


def _column(
    batches: list[Steps], parts: Sequence[Sequence[int] | None], zeros: Sequence[int]
) -> Sequence[int]:
    """The parts of the batches one after another; `zeros` where there was nothing in any."""
    if not any(parts):
        return zeros
    return _join([part or [0] * b.count for part, b in zip(parts, batches, strict=True)])


def _starts(batches: list[Steps]) -> Sequence[int]:
    """When each step began: where the one before ended, but for the first of a batch."""
    found = array("q")
    for batch in batches:
        found.extend(running_sum(batch.duration_ns[:-1], batch.start_ns))
    return found


def steps_within(series: RankSeries, first: int, last: int) -> range:
    """Where the steps with these numbers, both included, stand in the columns of a rank."""
    return range(bisect_left(series.steps, first), bisect_right(series.steps, last))


def warmup_steps(duration_ns: Sequence[int]) -> int:
    """How many leading steps differ so much from the rest that they are no part of it."""
    if len(duration_ns) < WARMUP_LEAST_STEPS:
        return 0
    most = min(WARMUP_MOST_STEPS, int(len(duration_ns) * WARMUP_MOST_SHARE))
    rest = duration_ns[most:]
    center = middle(rest) or 0.0
    spread = MAD_TO_SIGMA * median_abs_deviation(rest, center)
    limit = max(center + WARMUP_SIGMAS * spread, center * WARMUP_RATIO)
    count = 0
    while count < most and duration_ns[count] > limit:
        count += 1
    return count


def totals(spool: Spool) -> StepSums | None:
    """Exact sums over all steps of a spool, thinned ones included; None without steps."""
    parts = [*(sums_of(batch, total) for batch in spool.batches), *spool.sums]
    if not parts:
        return None
    known = [part.samples for part in parts if part.samples is not None]
    return StepSums(
        first_step=min(part.first_step for part in parts),
        count=sum(part.count for part in parts),
        start_ns=min(part.start_ns for part in parts),
        duration_ns=sum(part.duration_ns for part in parts),
        phase_ns={name: sum(part.phase_ns.get(name, 0) for part in parts) for name in PHASES},
        micro_batches=sum(part.micro_batches for part in parts),
        samples=sum(known) if len(known) == len(parts) else None,
        updates=sum(part.updates for part in parts),
        d2h_ns=sum(part.d2h_ns for part in parts),
    )


def _spread(column: int | list[int], count: int) -> Sequence[int]:
    return _repeated(column, count) if isinstance(column, int) else column


@lru_cache(maxsize=4)
def _repeated(value: int, count: int) -> Sequence[int]:
    """One column for all ranks that have the same."""
    return array("q", (value,)) * count


def _device_columns(
    spool: Spool, steps: Sequence[int]
) -> tuple[Sequence[int] | None, dict[str, Sequence[int]]]:
    """Device times in the order of `steps`, if every step but the first has them.

    The first step began before the device was seen in use; it is warm-up in any case.
    """
    if not spool.device_batches or not steps:
        return None, {}
    row_of = {step: row for row, step in enumerate(steps)}
    zeros = array("q", bytes(8 * len(steps)))
    durations, is_known = zeros[:], bytearray(len(steps))
    phases = {
        name: zeros[:] if any(name in batch.phase_ns for batch in spool.device_batches) else zeros
        for name in PHASES
    }
    for batch in spool.device_batches:
        columns = [
            (column, batch.phase_ns.get(name))
            for name, column in phases.items()
            if column is not zeros
        ]
        for offset, duration in enumerate(batch.duration_ns):
            row = row_of.get(batch.first_step + offset)
            if row is None or duration is None:
                continue
            is_known[row] = True
            durations[row] = duration
            for column, values in columns:
                column[row] = (values[offset] or 0) if values else 0
    missing = [row for row, known in enumerate(is_known) if not known]
    if len(missing) == len(steps) or len(missing) > 2:
        return None, {}
    if any(steps[row] > steps[0] + 1 for row in missing):
        return None, {}
    return durations, {**phases}
