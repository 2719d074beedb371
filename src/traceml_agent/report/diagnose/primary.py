"""The one verdict: why was this training slow?"""

from typing import Any

from traceml_agent.report.diagnose.issue import label

_NO_STEP_TIME = ("NO_DATA", "WARMUP", "INCOMPLETE_DATA")
_LOW_UTIL = ("LOW_GPU_UTILIZATION", "MODERATE_GPU_UTILIZATION")
_SHARE_KINDS = ("INPUT_BOUND", "H2D_BOUND", "RESIDUAL_HEAVY", "COMPUTE_BOUND")
_STRAGGLERS = ("STRAGGLER", "INPUT_STRAGGLER", "COMPUTE_STRAGGLER", "H2D_STRAGGLER")
_SHOWN = (
    "input_wait_ms",
    "step_time_ms",
    "traced_step_time_ms",
    "dataloader_fetch_cpu_ms",
    "h2d_ms",
    "compute_ms",
    "residual_ms",
)
_OF_LOGGING = ("logging_ms", "logging_share")
_CREEP = ("CREEP_CONFIRMED", "CREEP_EARLY")


def primary_diagnosis(
    step_time: dict[str, Any], system: dict[str, Any], step_memory: dict[str, Any]
) -> dict[str, Any]:
    """The finding to act on first.

    A cause in the step comes first. Where the step is healthy, memory that grows without end is
    promoted (ours: it ends a long run whatever its speed), then GPUs idle for no visible reason.
    """
    issue = step_time["diagnosis"]
    if issue["kind"] in _NO_STEP_TIME:
        return _verdict(
            "INSUFFICIENT_STEP_TIME_DATA",
            "info",
            "step_time",
            issue["summary"],
            issue["action"],
            {"type": "insufficient_data", **_observed(step_time, system), **issue["evidence"]},
        )
    if issue["kind"] in _STRAGGLERS:
        return _promoted(issue, "step_time", _rank_comparison(issue, step_time, system))
    if issue["severity"] != "info":
        return _promoted(issue, "step_time", _phase_share(issue, step_time, system))
    memory = step_memory["diagnosis"]
    if memory["kind"] in _CREEP:
        evidence = {"type": "memory_trend", **memory["evidence"]}
        return _promoted(memory, "step_memory", evidence)
    if issue["kind"] == "COMPUTE_BOUND":
        return _promoted(issue, "step_time", _phase_share(issue, step_time, system))
    low = next((i for i in system["issues"] if i["kind"] in _LOW_UTIL), None)
    if low is not None:
        return _verdict(
            "LOW_GPU_UTILIZATION_UNEXPLAINED",
            "warn",
            "system",
            low["summary"],
            "No phase explains it: look for a small batch, small kernels, or work outside steps.",
            {"type": "utilization_fallback", **_observed(step_time, system), **low["evidence"]},
        )
    return _verdict(
        "NO_CLEAR_PERFORMANCE_BOTTLENECK",
        "info",
        "step_time",
        issue["summary"],
        issue["action"],
        {
            **_figures(step_time),
            "type": "no_clear_bottleneck",
            **_observed(step_time, system),
            **issue["evidence"],
        },
    )


def _promoted(issue: dict[str, Any], section: str, evidence: dict[str, Any]) -> dict[str, Any]:
    return _verdict(
        issue["kind"], issue["severity"], section, issue["summary"], issue["action"], evidence
    )


def _verdict(
    kind: str, severity: str, section: str, summary: str, action: str, evidence: dict[str, Any]
) -> dict[str, Any]:
    return {
        "kind": kind,
        "status": label(kind),
        "severity": severity,
        "section": section,
        "scope": "performance",
        "summary": summary,
        "action": action,
        "evidence": evidence,
    }


def _phase_share(
    issue: dict[str, Any], step_time: dict[str, Any], system: dict[str, Any]
) -> dict[str, Any]:
    return {
        "type": "phase_share",
        **_figures(step_time),
        **{name: issue["evidence"][name] for name in _OF_LOGGING if name in issue["evidence"]},
        "gpu_util_avg_percent": system["global"]["average"]["gpu_util_percent"],
        "score": issue["score"],
        "score_basis": "median_per_rank_step_time_share",
        "score_denominator": "step time without eval, checkpoint and compile, per rank",
    }


def _rank_comparison(
    issue: dict[str, Any], step_time: dict[str, Any], system: dict[str, Any]
) -> dict[str, Any]:
    """The culprit beside the median rank, by what names the cause.

    Of a straggler without a cause in the format it is the wait, of which the culprit has least.
    """
    own, rows = issue["evidence"], step_time["groups"]["rows"]
    metric = f"{issue['metric']}_ms"
    if metric in step_time["global"]["median"]:
        point = step_time["global"]["median"][metric]
        middle = {"rank": int(point["idx"]), "value_ms": point["value"]}
        value = rows[str(own["culprit_rank"])]["metrics"][metric]
    else:
        middle = {"rank": own["victim_rank"], "value_ms": own["visible_victim_ms"]}
        value = own["visible_culprit_ms"]
    delta = value - middle["value_ms"]
    evidence = {
        "type": "rank_comparison",
        "metric": metric,
        "phase": issue["phase"],
        "steps_analyzed": step_time["global"]["window"]["steps_analyzed"],
        "diagnosis_clock": step_time["global"]["window"]["diagnosis_clock"],
        "gpu_util_avg_percent": system["global"]["average"]["gpu_util_percent"],
        "median": middle,
        "worst": {"rank": own["culprit_rank"], "value_ms": value},
        "delta_ms": delta,
        "ratio": value / middle["value_ms"] if middle["value_ms"] else None,
        "score": issue["score"],
        "score_basis": "visible_cost_ms / victim_step_time_ms",
        "score_numerator_ms": own["visible_cost_ms"],
        "score_denominator_ms": own["step_time_ms"],
        "culprit": own["culprit"],
        "pattern": own["pattern"],
        "what_if": own["what_if"],
    }
    if issue["kind"] == "STRAGGLER":
        keys = ("metric", "phase", "median", "worst", "delta_ms", "ratio")
        evidence["comparisons"] = [{key: evidence[key] for key in keys}]
    return evidence


def _observed(step_time: dict[str, Any], system: dict[str, Any]) -> dict[str, Any]:
    """What the verdicts that name no phase rest on."""
    return {
        "step_time_status": step_time["diagnosis"]["status"],
        "steps_analyzed": step_time["global"]["window"]["steps_analyzed"],
        "gpu_util_avg_percent": system["global"]["average"]["gpu_util_percent"],
    }


def _figures(step_time: dict[str, Any]) -> dict[str, Any]:
    """The averages of the step over the window."""
    window, average = step_time["global"]["window"], step_time["global"]["average"]
    return {
        "basis": "average",
        "steps_analyzed": window["steps_analyzed"],
        "diagnosis_clock": window["diagnosis_clock"],
        **{name: average[name] for name in _SHOWN},
    }
