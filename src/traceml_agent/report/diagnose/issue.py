"""Issue: one finding of a section, in the shape of the summary."""

from dataclasses import asdict, dataclass, field
from typing import Any

SEVERITIES = ("info", "warn", "crit")
LEAST_STEPS = 2
CONFIDENT_STEPS = 20
"""Under 2 steps nothing is said, under 20 nothing is critical. Source: summary contract."""

_LABELS = {
    "CREEP_EARLY": "MEMORY RISING",
    "CREEP_CONFIRMED": "MEMORY CREEP",
    "VERY_HIGH_GPU_MEMORY": "VERY HIGH GPU MEM",
    "HIGH_GPU_MEMORY": "HIGH GPU MEM",
    "HIGH_GPU_TEMPERATURE": "HIGH GPU TEMP",
    "HIGH_GPU_POWER": "HIGH GPU PWR",
    "HIGH_HOST_MEMORY": "HIGH RAM",
    "LOW_GPU_UTILIZATION": "LOW GPU UTIL",
    "MODERATE_GPU_UTILIZATION": "MODERATE GPU UTIL",
    "GPU_MEMORY_RESERVED_OVERHANG": "HIGH CUDA ALLOCATOR RESERVED/ALLOCATED RATIO",
    "LOW_GPU_UTILIZATION_UNEXPLAINED": "LOW GPU UTILIZATION",
    "INSUFFICIENT_STEP_TIME_DATA": "INSUFFICIENT STEP-TIME DATA",
}
"""Labels that the kind does not spell. Source: the rules of traceml-ai 0.5.0, whose `compare` ranks
a diagnosis by its label."""


@dataclass(frozen=True, slots=True)
class Place:
    """A line of the user's program."""

    file: str  # as Python names it
    line: int
    function: str
    code: str | None = None  # the text of the call or the line; None where it was not read


@dataclass(frozen=True, slots=True)
class Cost:
    """What a cause takes of the steps of the analysis window, and of the run."""

    ms_per_step: float  # mean over the steps of the window
    share: float  # of the time of these steps, 0 to 1
    run_s: float | None  # in the whole run; None where only a part of it is known


@dataclass(frozen=True, slots=True)
class Saving:
    """The run without a cause: an interval, since causes overlap and measurements vary."""

    step_ms: float  # mean step now
    step_low_ms: float  # the step without the cause: least and most
    step_high_ms: float
    run_s: float | None  # the run now, from its first to its last step
    run_low_s: float | None
    run_high_s: float | None
    method: str  # how it was computed, in a sentence
    money_low: float | None = None  # what the run would cost less, of all ranks; None: no price
    money_high: float | None = None
    kwh_low: float | None = None  # what the GPUs would use less; None: power not measured
    kwh_high: float | None = None
    without: str = "it"  # what is gone, for a sentence: "without the wait for input"


@dataclass(frozen=True, slots=True)
class Issue:
    """A finding; a neutral state (NORMAL, BALANCED, NO_DATA) has the same shape."""

    kind: str
    severity: str
    summary: str
    action: str
    metric: str | None = None
    phase: str | None = None
    score: float | None = None
    share_pct: float | None = None
    skew_pct: float | None = None
    ranks: tuple[int, ...] = ()
    evidence: dict[str, Any] = field(default_factory=dict)
    confidence: str = "high"  # high: measured; medium: from samples or a model; low: a hint
    place: Place | None = None
    cost: Cost | None = None
    saving: Saving | None = None

    def to_json(self) -> dict[str, Any]:
        """The issue with its label for people."""
        data = asdict(self)
        data["ranks"] = list(self.ranks)
        return {"kind": self.kind, "status": label(self.kind), **data}


def label(kind: str) -> str:
    """A kind for people: `INPUT_BOUND` is shown as INPUT-BOUND, `NO_DATA` as NO DATA."""
    joined = kind.endswith(("_BOUND", "_HEAVY"))
    return _LABELS.get(kind) or kind.replace("_", "-" if joined else " ")


def by_severity(issues: list[Issue]) -> list[Issue]:
    """The worst first; within a severity the highest score first."""
    return sorted(issues, key=lambda i: (-SEVERITIES.index(i.severity), -(i.score or 0.0)))


def band(value: float, warn: float, crit: float, steps: int) -> str | None:
    """ "crit", "warn" or None; never critical with fewer than CONFIDENT_STEPS steps."""
    if value >= crit and steps >= CONFIDENT_STEPS:
        return "crit"
    return "warn" if value >= warn else None
