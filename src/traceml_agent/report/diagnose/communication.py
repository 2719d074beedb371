"""Whether transfers of collectives bind the step. Waiting for a late rank is not judged here."""

from dataclasses import dataclass
from typing import Any

from traceml_agent.report.diagnose.causes import is_of_logging
from traceml_agent.report.diagnose.issue import LEAST_STEPS, Issue, band
from traceml_agent.report.stats import median

TRANSFER_WARN = 0.10
TRANSFER_CRIT = 0.20
"""Of the step. Source: the shares of the step-time policy in the summary contract."""
_SHARDED = ("all_gather", "reduce_scatter")


@dataclass(frozen=True, slots=True)
class Transfers:
    """The median over the ranks: a step, and the least and the most of it that transfers took."""

    step_ms: float
    low_ms: float
    high_ms: float
    operation: str  # that took most
    ranks: tuple[int, ...]
    steps: int


def _action(operation: str) -> str:
    if operation.lstrip("_").startswith(_SHARDED):
        return (
            "Gather less often: reshard_after_forward=False where memory allows, shard larger "
            "parts, accumulate gradients without synchronising them; reduce in bf16."
        )
    return (
        "Send less or less often: accumulate gradients (no_sync), reduce in bf16, one "
        "large call in place of many small ones; or let it overlap with compute, by "
        "async_op=True or DistributedDataParallel in place of calls after backward."
    )


def diagnose(found: Transfers | None) -> list[Issue]:
    """A finding where even the least that the transfers can have taken is too much."""
    if found is None or found.step_ms <= 0 or found.steps < LEAST_STEPS:
        return []
    low, high = found.low_ms / found.step_ms, found.high_ms / found.step_ms
    severity = band(low, TRANSFER_WARN, TRANSFER_CRIT, found.steps)
    if severity is None:
        return []
    share = f"{low:.0%}" if round(low, 2) == round(high, 2) else f"{low:.0%} to {high:.0%}"
    return [
        Issue(
            kind="COMMUNICATION_BOUND",
            severity=severity,
            summary=f"Transfers of collectives, without the waiting for late ranks, take {share} "
            f"of the step, most of it {found.operation}.",
            action=_action(found.operation),
            metric="communication",
            phase="communication",
            score=low,
            share_pct=low,
            ranks=found.ranks,
            evidence={
                "transfer_low_ms": found.low_ms,
                "transfer_high_ms": found.high_ms,
                "step_time_ms": found.step_ms,
                "threshold_warn": TRANSFER_WARN,
                "threshold_crit": TRANSFER_CRIT,
                "steps_used": found.steps,
            },
        )
    ]


EXPLAINED = 0.5
"""Chosen: of what no phase claims, the larger half."""
_CALM = ("COMPUTE_BOUND", "NO_CLEAR_PERFORMANCE_BOTTLENECK")


def explained(
    primary: dict[str, Any], section: dict[str, Any], average: dict[str, Any]
) -> dict[str, Any]:
    """The verdict, where what it calls unclaimed, or compute, was measured to be collectives.

    `average` are the times of the step over the window.
    """
    found = next(iter(section["issues"]), None)
    if primary["kind"] in _CALM:
        return _with_talk(primary, section, average) if found is None else _promoted(primary, found)
    is_residual = primary["kind"] == "RESIDUAL_HEAVY" and not is_of_logging(primary)
    if not is_residual or not average["residual_ms"] or not section["ranks"]:
        return primary
    unclaimed = [
        sum(o["phases"].get("none", 0.0) for o in row["operations"] if o["enqueue_ms"] is None)
        for row in section["ranks"].values()
    ]
    known_ms = sum(unclaimed) / len(unclaimed)
    if known_ms < EXPLAINED * average["residual_ms"]:
        return primary
    if found is not None:
        return _promoted(primary, found)
    cause = "" if section["dominant"] != "waiting" else ", mostly waiting for another rank"
    return {
        **primary,
        "summary": f"{primary['summary']} Of it {known_ms:.1f} ms are collectives, called "
        f"outside forward and backward{cause}.",
        "action": "See which rank the others wait for, and which calls take the time: "
        "`communication` in final_summary.json.",
        "evidence": {**primary["evidence"], "collectives_ms": known_ms},
    }


def _promoted(primary: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    return {
        **primary,
        **{name: found[name] for name in ("kind", "status", "severity", "summary", "action")},
        "section": "communication",
        "evidence": {"type": "communication", **found["evidence"]},
    }


def _with_talk(
    primary: dict[str, Any], section: dict[str, Any], average: dict[str, Any]
) -> dict[str, Any]:
    """Compute in which ranks talked and waited for each other is not called compute alone."""
    step_ms = average["step_time_ms"]
    called = [row["host_ms"] for row in section["ranks"].values() if row["host_ms"] is not None]
    reduced = [row["exposed_ms"] for row in section["ddp"]["rows"] if row["exposed_ms"] is not None]
    talk_ms = (median(called) or 0.0) + (median(reduced) or 0.0)
    if primary["kind"] != "COMPUTE_BOUND" or not step_ms or talk_ms < TRANSFER_WARN * step_ms:
        return primary
    return {
        **primary,
        "summary": f"{primary['summary']} Of each {step_ms:.1f} ms step {talk_ms:.1f} ms are "
        "communication inside them: waiting for other ranks, and transfer.",
        "action": f"{primary['action']} `communication` in final_summary.json has its parts.",
        "evidence": {**primary["evidence"], "collectives_ms": talk_ms},
    }
