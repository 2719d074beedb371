"""The findings of a run: the issues of all sections that call for action, the costliest first; and
small lines, which do not."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from traceml_agent.report.diagnose.causes import is_of_logging, of_residual
from traceml_agent.report.diagnose.issue import SEVERITIES

WAITS, INPUT = ("INPUT_BOUND", "INPUT_STRAGGLER"), "input_pipeline"
PERIODIC = "PERIODIC_SPIKES"

Finding = dict[str, Any]
"""An issue as JSON, with its `section` and the `id` by which people name it."""


def ranked(issues: Iterable[Finding]) -> list[Finding]:
    """The findings in the order in which to act, each with an `id`: its kind, and a number from
    the second of a kind on.

    First what is critical and has no cost, since it says that the run or its figures are not what
    they seem; then by the seconds of the run that they cost; then the rest by severity; `info`,
    which asks for nothing, last. What is
    about the same time follows the finding that it `explains`: why the training waits for input,
    what takes the time that no phase claims, how often a cause comes back. Their costs are one.
    """
    seen: Counter[str] = Counter()
    found: list[Finding] = []
    for issue in sorted(issues, key=_order):
        kind = issue["kind"]
        seen[kind] += 1
        name = kind if seen[kind] == 1 else f"{kind}-{seen[kind]}"
        found.append({"id": name, **issue, "explains": None})
    causes: dict[str, list[Finding]] = {}
    for finding in found:
        told = _told_by(finding, found)
        if told is not None:
            finding["explains"] = told["id"]
            causes.setdefault(told["id"], []).append(finding)
    for finding in found:
        known = [cause for cause in causes.get(finding["id"], ()) if cause["kind"] != PERIODIC]
        if known:
            finding["action"] = known[0]["action"]
            finding["place"] = finding.get("place") or known[0].get("place")
    return [f for top in found if top["explains"] is None for f in _with_causes(top, causes)]


def _told_by(finding: Finding, found: list[Finding]) -> Finding | None:
    """The finding that is about the same time; None where this one stands for itself."""
    waits = next((f for f in found if f["kind"] in WAITS), None)
    if finding["section"] == INPUT or _is_periodic(finding, "input"):
        return waits
    if finding["section"] != "causes":
        return None
    if finding["kind"] == PERIODIC:
        same = (f for f in found if f["section"] == "causes" and f["kind"] != PERIODIC)
        return next((f for f in same if f["metric"] == finding["metric"]), None)
    residuals = (f for f in found if f["kind"] == "RESIDUAL_HEAVY")
    return next((f for f in residuals if of_residual(f, [finding]) is not None), None)


def _is_periodic(finding: Finding, metric: str) -> bool:
    return bool(finding["kind"] == PERIODIC and finding["metric"] == metric)


def _with_causes(finding: Finding, causes: dict[str, list[Finding]]) -> Iterator[Finding]:
    yield finding
    for cause in causes.get(finding["id"], ()):
        yield from _with_causes(cause, causes)


def behind(primary: dict[str, Any], findings: list[Finding]) -> str | None:
    """The id of the finding that the primary diagnosis is about; None where it is none."""
    for finding in findings:
        same = all(finding[key] == primary[key] for key in ("kind", "section", "severity"))
        if same and is_of_logging(finding) == is_of_logging(primary):
            return str(finding["id"])
    return None


def _order(issue: Finding) -> tuple[int, float, int, float]:
    severity, cost = SEVERITIES.index(issue["severity"]), seconds_lost(issue)
    if severity == 0:
        return 3, -(cost or 0.0), 0, -(issue["score"] or 0.0)
    if cost is None:
        place = 0 if issue["severity"] == SEVERITIES[-1] else 2
        return place, 0.0, -severity, -(issue["score"] or 0.0)
    return 1, -cost, -severity, -(issue["score"] or 0.0)


def seconds_lost(issue: Finding) -> float | None:
    """What the finding costs the run; None where that is not known."""
    saving, cost = issue.get("saving"), issue.get("cost")
    if saving is not None and saving["run_s"] is not None:
        return float(saving["run_s"] - (saving["run_low_s"] + saving["run_high_s"]) / 2)
    return None if cost is None or cost["run_s"] is None else float(cost["run_s"])
