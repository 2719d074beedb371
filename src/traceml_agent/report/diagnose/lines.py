"""Findings that name a line: the one a phase passes in, and those that have no place in a step."""

import os
from dataclasses import asdict
from typing import Any

from traceml_agent.report.diagnose.issue import SEVERITIES, Cost, Issue, band
from traceml_agent.report.diagnose.step_time import NOT_TRAINING, SHARE_CRIT, SHARE_WARN
from traceml_agent.report.hotspots import LATE_SHARE, Hotspot, Hotspots
from traceml_agent.report.line_kinds import ADVICE, PYTHON, SYNC, WAIT, WORDS
from traceml_agent.schema.stacks import RESIDUAL

LINE_WARN = 0.05
LINE_CRIT = 0.20
"""Shares of the step of a line inside forward, backward or the optimizer. Source: issue of the
feature; the second is that of every part of the step."""
LINE_INFO = 0.03
"""From here on a line is named, though nothing has to be done about it. Chosen: a fault of 5 % of
the step is found, and a run of a minute has 36 samples of it."""
SMALL_LINES = 3
"""Chosen: so many of these at most; all lines are in the hotspots."""
NAMED_SHARE = 0.20
"""Of a phase, by the lower end of the interval. Chosen: a line below is not what the phase is."""
NAMED_SAMPLES = 8
"""Chosen: with fewer the interval is wider than the share."""
CODE_SHOWN = 60

_PHASE_OF = {"INPUT_BOUND": "input_wait", "H2D_BOUND": "h2d"}
_SMALL_INPUT_ACTION = (
    "Make it cheaper, or do it once before the training; what a Dataset does, workers can do ahead "
    "of the loop (num_workers)."
)
_COMPUTE = ("forward", "backward", "optimizer")
_WORK = "works"
_WITHIN = {RESIDUAL: "between the calls of the model", "input_wait": "while the step waits for it"}
_INPUT_ACTION = (
    "Load in parallel and ahead: put it into a Dataset and let a torch DataLoader with "
    "num_workers > 0 call it, or prepare the next batch in a thread while the model computes."
)


def named_issues(
    issues: list[dict[str, Any]], found: Hotspots, window: dict[str, Any]
) -> list[dict[str, Any]]:
    """The issues of section step_time with their lines, and those of lines; the worst first."""
    steps = window["steps_analyzed"] or 0
    result: list[dict[str, Any]] = []
    for issue in issues:
        result += _named(issue, found, steps)
    on_device = window.get("diagnosis_clock") == "gpu"
    slow = [issue.to_json() for issue in _slow_lines(found, steps, on_device)]
    result += [issue for issue in slow if issue["severity"] != "info"]
    if any(issue["severity"] != "info" for issue in result):
        result = [issue for issue in result if issue["severity"] != "info"]
    result.sort(key=lambda i: (-SEVERITIES.index(i["severity"]), -(i["score"] or 0.0)))
    told = {issue["metric"] for issue in result if issue["severity"] != "info"}
    small = [i for i in slow if i["severity"] == "info" and i["metric"] not in told]
    return result + sorted(small, key=lambda issue: -issue["score"])[:SMALL_LINES]


def in_words(spot: Hotspot) -> str:
    """`train.py:31 `loss.item()``, or what ran before it."""
    place = spot.place
    code = place.code or (place.function if place.function != "<module>" else None)
    if code is not None and len(code) > CODE_SHOWN:
        code = code[: CODE_SHOWN - 1] + "…"
    where = f"{os.path.basename(place.file)}:{place.line}"
    text = where if code is None else f"{where} `{code}`"
    if spot.before:
        return f"Python code just before {text}"
    if spot.yielded_share >= LATE_SHARE:
        return f"{text} or Python code just before it (TRACEML_EXACT_LINES=1 tells which)"
    return text


def _named(issue: dict[str, Any], found: Hotspots, steps: int) -> list[dict[str, Any]]:
    """An issue with its line; the residual in two, where a part of it is input."""
    kind = issue["kind"]
    phase = issue["metric"] if kind == "RESIDUAL_HEAVY" else _PHASE_OF.get(kind)
    if phase is None:
        return [issue]
    spots = [spot for spot in found.spots if spot.phase == phase]
    if phase == RESIDUAL:
        inputs = [spot for spot in spots if spot.input is not None and not spot.before]
        made = _input_issue(issue, inputs, found, steps)
        if made is not None:
            rest = issue["score"] - (made.score or 0.0)
            if rest < SHARE_WARN:
                return [made.to_json()]
            others = [spot for spot in spots if spot not in inputs]
            return [made.to_json(), {**_with_line(issue, others), "score": rest}]
    return [_with_line(issue, spots)]


def _with_line(issue: dict[str, Any], spots: list[Hotspot]) -> dict[str, Any]:
    top = max(spots, key=lambda spot: spot.share, default=None)
    if top is None or top.low < NAMED_SHARE or top.samples < NAMED_SAMPLES:
        return issue
    if issue["kind"] == "INPUT_BOUND" and top.kind == WAIT:
        return issue  # the `for` that waits for the workers: what they do is not seen here
    words = f" {top.share:.0%} of it in {in_words(top)}"
    if top.kind in WORDS and not top.before:
        words += f", which {WORDS[top.kind]}"
    elif top.library is not None and not top.before:
        words += f", most often in {top.library}"
    action = issue["action"] if top.kind is None else ADVICE[top.kind]
    if issue["kind"] != "RESIDUAL_HEAVY" and top.kind is not None:
        action = f"{ADVICE[top.kind]} {issue['action']}"
    return {
        **issue,
        "summary": f"{issue['summary']}{words}.",
        "action": action,
        "place": asdict(top.place),
        "evidence": {**issue["evidence"], **_evidence(top)},
    }


def _evidence(spot: Hotspot) -> dict[str, Any]:
    return {
        "line_share": spot.share,
        "line_share_low": spot.low,
        "line_share_high": spot.high,
        "line_samples": spot.samples,
        "line_kind": spot.kind,
    }


def _input_issue(
    issue: dict[str, Any], inputs: list[Hotspot], found: Hotspots, steps: int
) -> Issue | None:
    part = sum(spot.share for spot in inputs)
    samples = sum(spot.samples for spot in inputs)
    share = part * issue["score"]
    severity = band(share, SHARE_WARN, SHARE_CRIT, steps)
    if severity is None or samples < NAMED_SAMPLES:
        return None
    top = max(inputs, key=lambda spot: spot.share)
    residual_ms = issue["evidence"]["residual_ms"]
    sure = "medium" if all(spot.input == "medium" for spot in inputs) else "low"
    guess = "" if sure == "medium" else ", by its place before the forward pass"
    name = "" if top.place.function == "<module>" else f"{top.place.function}, "
    return Issue(
        kind="INPUT_WITHOUT_LOADER",
        severity=severity,
        summary=f"Input without a DataLoader takes {share:.0%} of the step "
        f"({part * residual_ms:.1f} ms){guess}: {top.share / part:.0%} of it in {name}"
        f"{in_words(top)}.",
        action=_INPUT_ACTION,
        metric="residual",
        phase=RESIDUAL,
        score=share,
        share_pct=None if issue["share_pct"] is None else part * issue["share_pct"],
        ranks=tuple(issue["ranks"]),
        evidence={
            **issue["evidence"],
            **_evidence(top),
            "input_part_of_residual": part,
            "input_lines": [in_words(spot) for spot in inputs[:5]],
        },
        confidence=sure,
        place=top.place,
        cost=Cost(part * residual_ms, share, None),
    )


def _slow_lines(found: Hotspots, steps: int, on_device: bool) -> list[Issue]:
    """Lines inside forward, backward and the optimizer that do something else than compute; and
    small ones anywhere that take some of the step."""
    step_ms = found.host_ms.get("step", 0.0) - sum(found.host_ms.get(n, 0.0) for n in NOT_TRAINING)
    issues = []
    for spot in found.spots:
        if spot.before or spot.samples < NAMED_SAMPLES or not _is_work(spot):
            continue
        share = (spot.ms_per_step or 0.0) / step_ms if step_ms > 0 else 0.0
        severity = None
        if spot.phase in _COMPUTE:
            # Plain Python is what every model has a little of.
            warn = SHARE_WARN if spot.kind == PYTHON else LINE_WARN
            severity = band(share, warn, LINE_CRIT, steps)
        # On a device: what the host does meanwhile costs the step less, and often nothing.
        if severity is None and share >= LINE_INFO and spot.kind != WAIT and not on_device:
            severity = "info"
        if severity is not None:
            issues.append(_slow_line(spot, share, severity, steps, on_device))
    return issues


def _is_work(spot: Hotspot) -> bool:
    """Whether a line of a step does something else than compute; all that makes input does."""
    in_loop = spot.phase in (*_COMPUTE, RESIDUAL) and spot.kind is not None
    return in_loop or spot.phase == "input_wait"


def _slow_line(spot: Hotspot, share: float, severity: str, steps: int, on_device: bool) -> Issue:
    kind = spot.kind
    does = _WORK if kind is None else WORDS[kind]
    where = _WITHIN.get(spot.phase, f"within {spot.phase}")
    waits_for_device = kind == SYNC and on_device
    ms = spot.ms_per_step or 0.0
    return Issue(
        kind="HOST_SYNC" if waits_for_device else "SLOW_LINE",
        severity=severity,
        summary=f"{in_words(spot)} {does} {where}: {share:.0%} of the step ({ms:.1f} ms).",
        action=_SMALL_INPUT_ACTION if spot.phase == "input_wait" else ADVICE[kind or PYTHON],
        metric=spot.phase,
        phase=spot.phase,
        score=share,
        share_pct=share,
        ranks=spot.ranks,
        evidence={
            **_evidence(spot),
            "share": share,
            "threshold_info": LINE_INFO,
            "threshold_warn": SHARE_WARN if kind == PYTHON else LINE_WARN,
            "threshold_crit": LINE_CRIT,
            "steps_used": steps,
        },
        # What waits for a device costs only what the device could have been given meanwhile.
        confidence="low" if waits_for_device else "medium",
        place=spot.place,
        cost=Cost(ms, share, None),
    )
