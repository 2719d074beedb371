"""RankSeries: the steps of one rank as columns, warm-up told apart from the steady state."""

from dataclasses import dataclass, field

from traceml_agent.report.stats import MAD_TO_SIGMA, median, median_abs_deviation, thinned
from traceml_agent.schema.phases import PATCH_OF_PHASE, PHASES
from traceml_agent.schema.records import StepSums
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

    steps: list[int]
    start_ns: list[int]
    duration_ns: list[int]
    phase_ns: dict[str, list[int] | None]  # None: not measured
    d2h_ns: list[int]
    micro_batches: list[int]
    samples: list[int] | None  # None: the batch size was never seen
    device_duration_ns: list[int] | None  # None: not measured for every step
    device_phase_ns: dict[str, list[int]]
    sums: list[StepSums] = field(default_factory=list)  # steps thinned out
    warmup: int = 0  # leading steps that are cut from averages and percentiles

    @property
    def first_steady(self) -> int:
        """Index of the first step after the warm-up."""
        return self.warmup


def is_measured(spool: Spool, phase: str) -> bool:
    """Whether the patch of a phase was in. torch.compile never imported: 0 compilations."""
    patch = PATCH_OF_PHASE[phase]
    if patch == "compile" and patch not in spool.statuses:
        return True
    return spool.statuses.get(patch) == "active"


def series_of(spool: Spool) -> RankSeries:
    """The columns of one spool."""
    steps: list[int] = []
    start_ns: list[int] = []
    duration_ns: list[int] = []
    columns: dict[str, list[int]] = {name: [] for name in PHASES}
    d2h_ns: list[int] = []
    micro_batches: list[int] = []
    samples: list[int] = []
    samples_seen = True
    for batch in sorted(spool.batches, key=lambda b: b.first_step):
        if steps and batch.first_step <= steps[-1]:
            continue  # the ring repeats what the spool holds
        steps.extend(range(batch.first_step, batch.first_step + batch.count))
        start = batch.start_ns
        for duration in batch.duration_ns:
            start_ns.append(start)
            start += duration
        duration_ns.extend(batch.duration_ns)
        for name, column in columns.items():
            column.extend(batch.phase_ns.get(name) or [0] * batch.count)
        d2h_ns.extend(batch.d2h_ns or [0] * batch.count)
        micro_batches.extend(_spread(batch.micro_batches, batch.count))
        if batch.samples is None:
            samples_seen = False
        else:
            samples.extend(_spread(batch.samples, batch.count))
    device_duration, device_phases = _device_columns(spool, steps)
    return RankSeries(
        steps=steps,
        start_ns=start_ns,
        duration_ns=duration_ns,
        phase_ns={n: c if is_measured(spool, n) else None for n, c in columns.items()},
        d2h_ns=d2h_ns,
        micro_batches=micro_batches,
        samples=samples if samples and samples_seen else None,
        device_duration_ns=device_duration,
        device_phase_ns=device_phases,
        sums=spool.sums,
        warmup=warmup_steps(duration_ns),
    )


def warmup_steps(duration_ns: list[int]) -> int:
    """How many leading steps differ so much from the rest that they are no part of it."""
    if len(duration_ns) < WARMUP_LEAST_STEPS:
        return 0
    most = min(WARMUP_MOST_STEPS, int(len(duration_ns) * WARMUP_MOST_SHARE))
    rest = thinned(duration_ns[most:])
    center = median(rest) or 0.0
    spread = MAD_TO_SIGMA * median_abs_deviation(rest, center)
    limit = max(center + WARMUP_SIGMAS * spread, center * WARMUP_RATIO)
    count = 0
    while count < most and duration_ns[count] > limit:
        count += 1
    return count


def totals(spool: Spool) -> StepSums | None:
    """Exact sums over all steps of a spool, thinned ones included; None without steps."""
    parts = [*(sums_of(batch) for batch in spool.batches), *spool.sums]
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


def _spread(column: int | list[int], count: int) -> list[int]:
    return [column] * count if isinstance(column, int) else column


def _device_columns(
    spool: Spool, steps: list[int]
) -> tuple[list[int] | None, dict[str, list[int]]]:
    """Device times in the order of `steps`, if every step but the first has them.

    The first step began before the device was seen in use; it is warm-up in any case.
    """
    durations: dict[int, int] = {}
    phases: dict[str, dict[int, int]] = {name: {} for name in PHASES}
    for batch in spool.device_batches:
        for offset, duration in enumerate(batch.duration_ns):
            if duration is None:
                continue
            step = batch.first_step + offset
            durations[step] = duration
            for name in PHASES:
                phases[name][step] = (batch.phase_ns.get(name) or [0] * batch.count)[offset] or 0
    missing = [step for step in steps if step not in durations]
    if not durations or len(missing) > 2 or any(step > steps[0] + 1 for step in missing):
        return None, {}
    return (
        [durations.get(step, 0) for step in steps],
        {name: [column.get(step, 0) for step in steps] for name, column in phases.items()},
    )
