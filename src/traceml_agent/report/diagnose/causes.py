"""What takes time of the steps beside their own work: one rule a cause, each with its threshold."""

from collections.abc import Iterable
from typing import Any

from traceml_agent.report.diagnose.host_causes import host_issues
from traceml_agent.report.diagnose.issue import Issue, Place, band, by_severity
from traceml_agent.report.diagnose.seen import (
    CRIT,
    DOMINANT,
    Lost,
    Seen,
    common_place,
    in_ms,
    in_percent,
    name_of,
    place_of,
)
from traceml_agent.report.diagnose.spikes import drift_issue, periodic_issue, spikes_issue
from traceml_agent.report.parts import one_line
from traceml_agent.schema.records import Event

GC_WARN = 0.01
LONG_PHASE_WARN = 0.02
LOGGING_WARN = 0.02
RECOMPILE_WARN = 0.01
STOPPED_WARN = 0.02
"""Shares of the time in steps. Source: "Ours" in the table of causes in signals.md."""
LEAST_COLLECTED = 3
"""Steps with a collection. Chosen: each process has one or two, of all that the imports made."""
SELDOM = 0.5
"""Of the steps: what is in more of them is a part of the training, and no evaluation. Chosen."""
_EVERY_N = {
    "Trainer.log": "logging_steps of the Trainer",
    "log_metrics": "log_every_n_steps of the Trainer",
}
"""Call of a framework, and its setting."""
RECOMPILES_LEAST = 2
"""Chosen: torch.compile compiles a function once more when it first sees another shape."""


def diagnose(seen: Seen) -> list[Issue]:
    """The issues of the section, the worst first; there may be none."""
    found = [
        _gc(seen),
        *host_issues(seen.losses, seen.facts, seen.steps, seen.step_ms),
        _long_phase(seen, "checkpoint"),
        _long_phase(seen, "eval"),
        _logging(seen),
        _recompiles(seen),
        _graph_breaks(seen),
        _stopped(seen),
        *(periodic_issue(regular, seen) for regular in seen.regular),
        spikes_issue(seen),
        drift_issue(seen),
    ]
    return by_severity([issue for issue in found if issue is not None])


def is_of_logging(residual: dict[str, Any]) -> bool:
    """Whether a RESIDUAL_HEAVY is about logging, and not about what no phase claims."""
    return "logging_share" in residual["evidence"]


def of_residual(
    residual: dict[str, Any], issues: Iterable[dict[str, Any]]
) -> dict[str, Any] | None:
    """The issue about the same time: that of logging, or what is most of what no phase claims:
    collections, and on the clock of a device logging too."""
    if is_of_logging(residual):
        return next((issue for issue in issues if issue["kind"] == "LOGGING_COST"), None)
    least_ms = DOMINANT * residual["evidence"]["residual_ms"]
    on_device = residual["evidence"].get("diagnosis_clock") == "gpu"
    for issue in issues:
        is_collection = issue["kind"] == "GC_PAUSES" and issue["phase"] is None
        is_logging = issue["kind"] == "LOGGING_COST" and on_device
        if (is_collection or is_logging) and issue["cost"]["ms_per_step"] >= least_ms:
            return issue
    return None


def explained(primary: dict[str, Any], issues: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The verdict on what the loop does beside its model, with the cause that was found for it."""
    cause = of_residual(primary, issues) if primary["kind"] == "RESIDUAL_HEAVY" else None
    if cause is None:
        return primary
    told = "" if is_of_logging(primary) else f"{primary['summary']} "
    return {
        **primary,
        "summary": f"{told}{cause['summary']}",
        "action": cause["action"],
        "evidence": {**primary["evidence"], "cause": cause["kind"]},
    }


def _issue(
    kind: str,
    severity: str,
    summary: str,
    action: str,
    lost: Lost,
    threshold: float,
    evidence: dict[str, Any],
    **more: Any,
) -> Issue:
    return Issue(
        kind=kind,
        severity=severity,
        summary=summary,
        action=action,
        metric=lost.cause,
        phase=lost.within,
        score=lost.share,
        share_pct=lost.share,
        ranks=(lost.rank,),
        cost=lost.cost,
        evidence={"ms_per_step": lost.ms_per_step, "threshold_warn": threshold, **evidence},
        **more,
    )


def _gc(seen: Seen) -> Issue | None:
    lost = seen.losses.get("gc")
    if lost is None:
        return None
    spikes = sum(spike.cause.rpartition(": ")[2] == "gc" for spike in seen.spikes)
    severity = band(lost.share, GC_WARN, CRIT, seen.steps) or ("info" if spikes else None)
    if severity is None:
        return None
    if lost.steps < LEAST_COLLECTED:
        severity = "info"
    longest = max((e.duration_ns or 0 for e in lost.events), default=0) / 1e6
    place = common_place(lost.events)
    called = sum(1 for event in lost.events if "at" in event.detail)
    by_call = "" if place is None else f", most of them called at {name_of(place)}"
    action = (
        "After the set-up, call gc.collect() and gc.freeze(), so that what lives for ever is no "
        "longer looked at; or gc.disable() and gc.collect() every few hundred steps, on all ranks "
        "in the same step."
    )
    if place is not None:
        action = f"Call gc.collect() at {name_of(place)} less often, or not at all."
    return _issue(
        "GC_PAUSES",
        severity,
        f"Garbage collection takes {in_percent(lost.share)} of the time in steps "
        f"({in_ms(lost.ms_per_step)} a step; longest pause {in_ms(longest)}{by_call}).",
        action,
        lost,
        GC_WARN,
        {"longest_ms": longest, "spikes": spikes, "pauses": len(lost.events), "called": called},
        place=place,
    )


def _long_phase(seen: Seen, name: str) -> Issue | None:
    lost = seen.losses.get(name)
    severity = None if lost is None else band(lost.share, LONG_PHASE_WARN, CRIT, seen.steps)
    if lost is None or severity is None:
        return None
    each = lost.ms_per_step * seen.steps / max(1, lost.steps)
    told = [event for event in lost.events if name == "checkpoint" or event.detail.get("call")]
    # Of calls of a model in the loop itself no framework tells.
    told_ms = sum(event.duration_ns or 0 for event in told) / 1e6
    if name == "eval" and told_ms < DOMINANT * lost.ms_per_step * seen.steps:
        told = []
    if name == "eval" and not told and lost.steps > SELDOM * seen.steps:
        return _frozen(seen, lost)
    place = common_place(told)
    where = "" if place is None else f" at {name_of(place)}"
    words, action = {
        "checkpoint": (
            f"Saving checkpoints{where}",
            "Save less often, save less, or in the background "
            "(torch.distributed.checkpoint.async_save); to a local disk first.",
        ),
        "eval": (
            f"Evaluation ({_called(told) or 'calls of the model without gradients'})",
            "Evaluate less often or on fewer batches; with several ranks let all of them take a "
            "part of it.",
        ),
    }[name]
    return _issue(
        "CHECKPOINT_COST" if name == "checkpoint" else "EVAL_COST",
        severity,
        f"{words} takes {in_percent(lost.share)} of the time in steps: {in_ms(each)} in each of "
        f"{lost.steps} of {seen.steps} steps.",
        action,
        lost,
        LONG_PHASE_WARN,
        {"mean_ms": each, "steps_with_it": lost.steps, "steps_used": seen.steps},
        place=place,
    )


def _frozen(seen: Seen, lost: Lost) -> Issue:
    """A teacher, a target network, a rollout: part of the training, and no evaluation."""
    return _issue(
        "EVAL_COST",
        "info",
        f"Calls of models without gradients take {in_percent(lost.share)} of the time in steps, in "
        f"{lost.steps} of {seen.steps} steps: a part of the training, such as a teacher or a "
        "rollout.",
        "None needed. If the result is the same each time, compute it once and keep it.",
        lost,
        LONG_PHASE_WARN,
        {"steps_with_it": lost.steps, "steps_used": seen.steps},
    )


def _is_at(event: Event, place: Place) -> bool:
    return event.detail.get("at") == f"{place.file}:{place.line}"


def _called(events: Iterable[Event]) -> str | None:
    """The call of a framework in which it happened, if there was one."""
    call = next((event.detail["call"] for event in events if event.detail.get("call")), None)
    return None if call is None else one_line(str(call))[:60]


def _logging(seen: Seen) -> Issue | None:
    lost = seen.losses.get("logging")
    severity = None if lost is None else band(lost.share, LOGGING_WARN, CRIT, seen.steps)
    if lost is None or severity is None:
        return None
    place = common_place(lost.events)
    there = [e for e in lost.events if place is not None and _is_at(e, place)]
    call = _called(there or lost.events)
    told = ([] if call is None else [call]) + ([] if place is None else [f"at {name_of(place)}"])
    within = f" ({' '.join(told)})" if told else ""
    setting = _EVERY_N.get(call or "")
    return _issue(
        "LOGGING_COST",
        severity,
        f"Logging{within} takes {in_percent(lost.share)} of the time in steps "
        f"({in_ms(lost.ms_per_step)} a step).",
        f"Log every N steps{'' if setting is None else f' ({setting})'}, to fewer trackers, or to "
        "one that does its work in a thread of its own.",
        lost,
        LOGGING_WARN,
        {"steps_with_it": lost.steps, "steps_used": seen.steps},
        place=place,
    )


def _recompiles(seen: Seen) -> Issue | None:
    lost = seen.losses.get("recompile")
    if lost is None:
        return None
    severity = band(lost.share, RECOMPILE_WARN, CRIT, seen.steps)
    if severity is None and len(lost.events) < RECOMPILES_LEAST:
        return None
    known = {str(event.detail.get("id")): event.detail for event in seen.compiled}
    told = [known[str(e.detail.get("id"))] for e in lost.events if str(e.detail.get("id")) in known]
    counts: dict[tuple[str, str], int] = {}
    for detail in told:
        key = (str(detail.get("function", "?")), str(detail.get("at", "")))
        counts[key] = counts.get(key, 0) + 1
    function, at = max(counts, key=lambda key: counts[key]) if counts else ("", "")
    place = place_of(at, function)
    reason = next((str(d["reason"]) for d in told if d.get("reason")), None)
    total_s = sum(event.duration_ns or 0 for event in lost.events) / 1e9
    what = f" of {function} ({name_of(place)})" if place is not None else ""
    return _issue(
        "RECOMPILES",
        severity or "info",
        f"torch.compile compiled again {len(lost.events)} times{what}, {total_s:.1f} s in all, "
        f"{in_percent(lost.share)} of the time in steps.",
        "Keep shapes, dtypes and Python values that the function reads the same from step to step, "
        "or mark what varies (torch._dynamo.mark_dynamic, dynamic=True); drop the last short "
        "batch (drop_last=True).",
        lost,
        RECOMPILE_WARN,
        {"count": len(lost.events), "total_s": total_s, "reason": reason},
        place=place,
    )


def _graph_breaks(seen: Seen) -> Issue | None:
    event = seen.facts.graph_breaks
    if event is None:
        return None
    count, reason = event.detail.get("count"), event.detail.get("reason")
    return Issue(
        "GRAPH_BREAKS",
        "info",
        f"torch.compile broke its graphs at {count} places; most often: {reason}.",
        "Each break costs a return to Python in each call. `fullgraph=True` makes the first one an "
        "error that says where it is.",
        metric="compile",
        evidence=dict(event.detail),
    )


def _stopped(seen: Seen) -> Issue | None:
    lost = seen.losses.get("stopped")
    severity = None if lost is None else band(lost.share, STOPPED_WARN, CRIT, seen.steps)
    if lost is None or severity is None:
        return None
    return _issue(
        "PROCESS_STOPPED",
        severity,
        f"For {in_percent(lost.share)} of the time in steps the whole process stood still.",
        "It was stopped (SIGSTOP, a frozen container, a suspended machine), or code in C held the "
        "interpreter lock for seconds.",
        lost,
        STOPPED_WARN,
        {"pauses": len(lost.events)},
    )
