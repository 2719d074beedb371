"""Does memory grow from step to step, and is it near its end?"""

from dataclasses import asdict, dataclass, field, replace

from traceml_agent.report.diagnose.issue import Issue, Place, by_severity
from traceml_agent.report.diagnose.kept import advice_on, explaining, words_of
from traceml_agent.report.stats import mean, median, theil_sen
from traceml_agent.schema.retained import Retained

LEAST_STEPS = 50
PRESSURE_WARN = 0.92
PRESSURE_CRIT = 0.97
SKEW_WARN = 0.20
SKEW_CRIT = 0.30
"""Steps needed, peak of total, difference between ranks. Source: TraceML's step-memory policy."""
CREEP_LEAST_SAMPLES = 6
CREEP_LEAST_RATIO = 0.05
CREEP_LEAST_BYTES = 32 * 1024**2
"""Growth from the second to the last third of the run, by both measures. Chosen: page cache and
allocator noise of the examples stay below 10 MB, a leak of 1 MB a step passes it in 100 steps."""
CREEP_CONFIRMED_BYTES = 256 * 1024**2
CREEP_CONFIRMED_RATIO = 0.25
"""Chosen: a quarter more, or 256 MB, is beyond any cache that still fills late in a run."""
STEADY_SHARE = 0.5
"""Growth in the last third must be at least half of that in the second: a cache that fills slows
down, a leak does not."""
WORKERS = "workers_grown_bytes"
_WORKERS_ACTION = (
    "The Dataset, or what it calls, keeps something of each item in the worker: look for lists and "
    "caches that grow (self.cache, lru_cache without a size). Workers made anew each epoch "
    "(persistent_workers=False) give it back."
)
Points = list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class MemoryFigures:
    """Samples (step, bytes) and peaks of one rank."""

    rank: int
    rss: Points
    reserved: Points
    peak_allocated: int | None
    peak_reserved: int | None
    total: int | None
    host_limit: int | None = None  # of the cgroup or the machine
    step_s: float | None = None  # mean, for the time to the limit
    kept: tuple[Retained, ...] = ()  # with TRACEML_RETAINED
    workers: Points = field(default_factory=list)  # growth of loader workers together
    datasets: tuple[str, ...] = ()  # classes of what they load


def diagnose(ranks: list[MemoryFigures]) -> list[Issue]:
    """The issues of section step_memory, the worst first; never empty."""
    if not any(rank.rss or rank.reserved for rank in ranks):
        return [
            Issue(
                "NO_DATA",
                "info",
                "Memory was not sampled.",
                "Runs shorter than one sample interval have no samples.",
            )
        ]
    found = []
    for rank in ranks:
        found += _pressure(rank)
        creep = _creep(rank, rank.reserved, "peak_reserved_bytes", "device memory") or _creep(
            rank, rank.rss, "peak_rss_bytes", "resident memory"
        )
        found += [issue for issue in (creep, _workers_creep(rank)) if issue is not None]
    found += _imbalance(ranks)
    if found:
        return by_severity(found)
    if not any(rank.reserved for rank in ranks):
        return [
            Issue(
                "NO_GPU",
                "info",
                "No CUDA memory was used; resident memory does not grow.",
                "Nothing to do.",
                metric="peak_rss_bytes",
            )
        ]
    return [Issue("BALANCED", "info", "Memory does not grow.", "Nothing to do.")]


def _pressure(rank: MemoryFigures) -> list[Issue]:
    if rank.peak_reserved is None or not rank.total:
        return []
    share = rank.peak_reserved / rank.total
    if share < PRESSURE_WARN:
        return []
    return [
        Issue(
            "HIGH_PRESSURE",
            "crit" if share >= PRESSURE_CRIT else "warn",
            f"Peak reserved memory is {share:.0%} of the device.",
            "Reduce the batch or checkpoint activations: the next larger batch may not fit.",
            metric="peak_reserved_bytes",
            score=share,
            ranks=(rank.rank,),
            evidence={"pressure_frac": share, "share": share, "threshold": PRESSURE_WARN},
        )
    ]


def _workers_creep(rank: MemoryFigures) -> Issue | None:
    """What a Dataset keeps grows in its workers, where the training process does not see it."""
    whose = f" of {', '.join(rank.datasets)}" if rank.datasets else ""
    alone = replace(rank, kept=())
    issue = _creep(alone, rank.workers, WORKERS, f"resident memory of the loader workers{whose}")
    return None if issue is None else replace(issue, action=_WORKERS_ACTION)


def _creep(rank: MemoryFigures, points: Points, metric: str, what: str) -> Issue | None:
    """Growth in the second and in the last third of the run, and a positive median slope."""
    if len(points) < CREEP_LEAST_SAMPLES or points[-1][0] - points[0][0] < LEAST_STEPS:
        return None
    size = len(points) // 3
    thirds = [
        median([y for _, y in points[i : i + size]]) or 0.0 for i in (0, size, len(points) - size)
    ]
    middle, late = thirds[1] - thirds[0], thirds[2] - thirds[1]
    base = max(thirds[1], 1.0)
    if late < max(CREEP_LEAST_BYTES, CREEP_LEAST_RATIO * base, STEADY_SHARE * middle):
        return None
    slope = theil_sen([(float(x), float(y)) for x, y in points[size:]]) or 0.0
    if slope <= 0:
        return None
    left = _left(rank, metric, points[-1][1], slope)
    kept = explaining(rank.kept, slope)
    place = None
    if kept is not None:
        place = Place(kept.file, kept.line, "", kept.text)
    confirmed = late >= CREEP_CONFIRMED_BYTES or late >= CREEP_CONFIRMED_RATIO * base
    grown = points[-1][1] - points[0][1]
    return Issue(
        "CREEP_CONFIRMED" if confirmed else "CREEP_EARLY",
        "crit" if confirmed else "warn",
        f"{what[0].upper()}{what[1:]} grows by {slope / 1024**2:.2f} MiB a step "
        f"({grown / 1024**2:.0f} MiB over steps {points[0][0]}-{points[-1][0]}){_words(left)}."
        + words_of(rank.kept, kept),
        advice_on(kept),
        metric=metric,
        score=late / base,
        ranks=(rank.rank,),
        evidence={
            "overall_abs_delta_bytes": grown,
            "overall_worst_growth_pct": grown / max(points[0][1], 1),
            "slope_bytes_per_step": slope,
            "steps_to_limit": None if left is None else left[0],
            "seconds_to_limit": None if left is None else left[1],
            "growth_last_third_bytes": late,
            "growth_second_third_bytes": middle,
            "threshold_bytes": CREEP_LEAST_BYTES,
            "samples_used": len(points),
            "average_bytes": mean([float(y) for _, y in points]),
            "kept": [
                {"steps": look.steps, **asdict(tensors)}
                for look in rank.kept[-1:]
                for tensors in look.tensors
            ],
        },
        place=place,
    )


def _left(
    rank: MemoryFigures, metric: str, now: int, slope: float
) -> tuple[int, float | None] | None:
    """Steps, and seconds, until memory is full if it goes on like this; None: no limit is known."""
    limit = rank.host_limit if metric == "peak_rss_bytes" else rank.total
    if limit is None or limit <= now or metric == WORKERS:  # of these only the growth is known
        return None
    steps = int((limit - now) / slope)
    return steps, None if rank.step_s is None else steps * rank.step_s


def _words(left: tuple[int, float | None] | None) -> str:
    if left is None:
        return ""
    steps, seconds = left
    when = "" if seconds is None else f" ({seconds / 3600:.1f} h)"
    return f"; at this rate it is full in at most {steps:,} steps{when}"


def _imbalance(ranks: list[MemoryFigures]) -> list[Issue]:
    known = [(rank.peak_reserved, rank.rank) for rank in ranks if rank.peak_reserved]
    if len(known) < 2:
        return []
    (low, _), (high, worst) = min(known), max(known)
    skew = (high - low) / high
    if skew < SKEW_WARN:
        return []
    return [
        Issue(
            "IMBALANCE",
            "crit" if skew >= SKEW_CRIT else "warn",
            f"Peak reserved memory differs by {skew:.0%} between ranks (most on rank {worst}).",
            "Balance batch shapes or model parts over the ranks.",
            metric="peak_reserved_bytes",
            score=skew,
            skew_pct=skew,
            ranks=(worst,),
            evidence={"skew": skew, "threshold": SKEW_WARN},
        )
    ]
