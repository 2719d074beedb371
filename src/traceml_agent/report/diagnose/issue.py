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
