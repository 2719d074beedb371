"""Single steps that take longer, and steps that become longer over the run."""

from traceml_agent.report.diagnose.issue import Cost, Issue, band
from traceml_agent.report.diagnose.seen import (
    CAUSES,
    CRIT,
    DOMINANT,
    Regular,
    Seen,
    in_ms,
    in_percent,
    name_of,
    place_of,
)
from traceml_agent.report.spikes import UNEXPLAINED
from traceml_agent.report.trend import CHANGE_WARN

SPIKES_WARN = 0.1
"""Excess of all spikes but the largest one over the time in steps. Chosen: as for the parts of a
step; on shared machines some 5 % are the machine's own. A single pause is no pattern."""
PERIODIC_WARN = 0.02
"""The same of spikes that come back regularly, as of any other cause that can be named."""


_ACTIONS = {
    UNEXPLAINED: "Look for what the loop does at that distance: logging, metrics, writing files.",
    "input": "If that is the length of an epoch, keep the workers (persistent_workers=True); if it "
    "is num_workers, they work in step and are too few.",
    "gc": "Collect less often: gc.freeze() after the set-up, or gc.collect() where it suits.",
    "contention": "Look for what runs on the machine at that distance.",
    "throttled": "Use fewer threads, or a larger quota.",
}


def periodic_issue(regular: Regular, seen: Seen) -> Issue:
    found = regular.periodic
    excess_ms = found.mean_excess_ns / 1e6
    per_step = excess_ms / found.every
    share = per_step / seen.step_ms if seen.step_ms else 0.0
    place = None if regular.at is None else place_of(regular.at[0], "")
    call = None if regular.at is None else regular.at[1]
    what = CAUSES.get(regular.cause, regular.cause)
    if place is not None:
        what = f"{call or what} at {name_of(place)}"
    is_one_of_many = len({spike.rank for spike in seen.spikes}) > 1
    who = f" on rank {found.rank}" if regular.follows or is_one_of_many else ""
    return Issue(
        "PERIODIC_SPIKES",
        band(share, PERIODIC_WARN, CRIT, seen.steps) or "info",
        f"Every {found.every} steps one takes {in_ms(excess_ms)} longer: {what}{who} "
        f"({len(found.steps)} times from step {found.steps[0]} to {found.steps[-1]}).",
        _ACTIONS.get(regular.cause, "Do it less often, or beside the training."),
        metric=regular.cause,
        score=share,
        share_pct=share,
        ranks=(found.rank,),
        confidence="high" if regular.cause != UNEXPLAINED else "medium",
        place=place,
        cost=Cost(per_step, share, len(found.steps) * excess_ms / 1e3),
        evidence={**regular.to_json(), "threshold_warn": PERIODIC_WARN},
    )


def spikes_issue(seen: Seen) -> Issue | None:
    """Single steps that take longer, without a rule of their own to name them."""
    count = len(seen.spikes)
    if not count or band(seen.spike_share, SPIKES_WARN, CRIT, seen.steps) is None:
        return None
    rest = seen.spike_share - seen.largest_share
    severity = band(rest, SPIKES_WARN, CRIT, seen.steps) or "info"
    times: dict[str, int] = {}
    for spike in seen.spikes:
        for cause, ns in spike.parts.items():
            name = cause.rpartition(": ")[2]
            times[name] = times.get(name, 0) + ns
    whole = sum(times.values()) or 1
    order = sorted(times, key=lambda name: -times[name])
    parts = ", ".join(f"{CAUSES.get(n, n)} {times[n] / whole:.0%}" for n in order[:3])
    return Issue(
        "SPIKES",
        # What is named is judged by the rule of its cause.
        severity if times.get(UNEXPLAINED, 0) >= DOMINANT * whole else "info",
        f"{count} steps take much longer than their neighbours: "
        f"{in_percent(seen.spike_share)} of the time in steps. Of their excess: {parts}.",
        "Look at the steps in `causes.spikes` of the summary, and at what the loop does in them.",
        metric="step_time",
        score=seen.spike_share,
        share_pct=seen.spike_share,
        ranks=tuple(sorted({spike.rank for spike in seen.spikes}))[:64],
        confidence="medium",
        cost=Cost(seen.spike_share * seen.step_ms, seen.spike_share, None),
        evidence={
            "count": count,
            "largest_share": seen.largest_share,
            "parts": {n: times[n] / whole for n in order},
            "threshold_warn": SPIKES_WARN,
        },
    )


def drift_issue(seen: Seen) -> Issue | None:
    trend = seen.trend
    if trend is None or trend.ratio < CHANGE_WARN:
        return None
    change = trend.after_ms - trend.before_ms
    why = ""
    if seen.trend_by is not None and seen.trend_by[1] >= DOMINANT * change:
        why = f" Most of it is {CAUSES.get(seen.trend_by[0], seen.trend_by[0])}."
    if trend.kind == "step":
        words = f"From step {trend.at_step:,} on steps take {trend.ratio:.0%} longer"
    else:
        words = f"The steps become longer little by little, {trend.ratio:.0%} over the run"
    return Issue(
        "STEP_DRIFT",
        "warn",
        f"{words} ({in_ms(trend.before_ms)} before, {in_ms(trend.after_ms)} after).{why}",
        "Look for what grows from step to step (lists, logs, longer samples, memory), or for what "
        "began on the machine at that time.",
        metric="step_time",
        score=trend.ratio,
        confidence="medium",
        evidence={
            "kind": trend.kind,
            "at_step": trend.at_step,
            "before_ms": trend.before_ms,
            "after_ms": trend.after_ms,
            "slope_ms_per_1000_steps": trend.slope_ms_per_1000,
            "noise_ms": trend.noise_ms,
            "cause": None if seen.trend_by is None else seen.trend_by[0],
            "threshold_warn": CHANGE_WARN,
        },
    )
