"""A finding in full, as text: what, where, what it costs, the evidence, the steps behind it."""

import textwrap
from collections.abc import Iterable
from typing import Any

from traceml_agent.report.render.saving import saving_text
from traceml_agent.report.render.units import milliseconds, percent, seconds

WIDTH = 90
_LABEL = 12
_BAR = 40
_PARTS = 3
_LINES_SHOWN = 6
_PATHS_SHOWN = 2
_HINTS = {
    "high": "measured",
    "medium": "from samples or a model",
    "low": "a hint",
}


def render_overview(payload: dict[str, Any]) -> str:
    """All findings in a table: the id that `explain` takes, severity, cost, one sentence."""
    found = payload["findings"]
    if not found:
        primary = payload["primary_diagnosis"]
        return "\n".join([f"No finding: {primary['summary']}", *_lines("Next", primary["action"])])
    rows = [("FINDING", "SEVERITY", "COSTS", "OF STEPS")]
    rows += [(_name(f), f["severity"], *_cost_cells(f)) for f in found]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def render_finding(
    finding: dict[str, Any], lines_of_phase: list[dict[str, Any]], steps: dict[str, Any] | None
) -> str:
    """One finding; the `hotspots` of its phase; the steps behind it (`report.evidence`), None where
    there are none."""
    lines = [f"{finding['id']}  {finding['status']} ({finding['severity']})", ""]
    lines += _lines("What", finding["summary"])
    if finding.get("place"):
        lines += _lines("Where", _place(finding["place"]))
    lines += _lines("Do", finding["action"])
    lines += _cost(finding)
    lines += _evidence(finding)
    confidence = finding.get("confidence", "high")
    lines += _lines("Confidence", f"{confidence}: {_HINTS.get(confidence, confidence)}")
    if lines_of_phase:
        lines += ["", *_hotspots(lines_of_phase)]
    if steps is not None:
        lines += ["", *_steps(steps)]
    return "\n".join(lines)


def _name(finding: dict[str, Any]) -> str:
    return f"  {finding['id']}" if finding.get("explains") else str(finding["id"])


def _lines(label: str, text: str) -> list[str]:
    return textwrap.wrap(
        f"{label:<{_LABEL}}{text}",
        WIDTH,
        subsequent_indent=" " * _LABEL,
        break_on_hyphens=False,
    )


def _place(place: dict[str, Any]) -> str:
    code = f": {place['code']}" if place.get("code") else ""
    function = f" in {place['function']}" if place["function"] else ""
    return f"{place['file']}:{place['line']}{function}{code}"


def _cost_cells(finding: dict[str, Any]) -> tuple[str, str]:
    cost = finding.get("cost")
    if cost is None:
        return "-", "-"
    return (
        "-" if cost["run_s"] is None else seconds(cost["run_s"]),
        percent(100 * cost["share"]),
    )


def _cost(finding: dict[str, Any]) -> list[str]:
    cost, saving = finding.get("cost"), finding.get("saving")
    lines: list[str] = []
    if cost is not None:
        text = f"{milliseconds(cost['ms_per_step'])} a step, {percent(100 * cost['share'])} of it"
        if cost["run_s"] is not None:
            text += f"; {seconds(cost['run_s'])} in this run"
        lines += _lines("Costs", text)
    if saving is not None:
        lines += _lines("Gain", saving_text(saving))
        least = saving["step_ms"] - saving["step_high_ms"]
        most = saving["step_ms"] - saving["step_low_ms"]
        between = milliseconds(least)
        if milliseconds(most) != between:
            between = f"between {between} and {milliseconds(most)}"
        text = f"{milliseconds(saving['step_ms'])} less {between}: {saving['method']}"
        lines += _lines("How", text)
    return lines


def _evidence(finding: dict[str, Any]) -> list[str]:
    """The plain figures of the evidence, as they stand in the summary."""
    shown = [
        f"{name} {_figure(value)}"
        for name, value in finding["evidence"].items()
        if isinstance(value, (int, float, str)) or value is None
    ]
    return _lines("Evidence", "; ".join(shown)) if shown else []


def _figure(value: float | str | None) -> str:
    if value is None:
        return "not measured"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _hotspots(spots: list[dict[str, Any]]) -> list[str]:
    """The lines in which the phase passes, and how the first of them was reached."""
    lines = [f"Where {spots[0]['phase']} passes, by {spots[0]['phase_samples']:,} samples"]
    for spot in spots[:_LINES_SHOWN]:
        bounds = f"{spot['share_low_percent']:.0f}-{spot['share_high_percent']:.0f} %"
        share = f"{percent(spot['share_percent']):>6} ({bounds})"
        lines += _cut(f"  {share:<18} {_place(spot)}")
    for path in spots[0].get("paths", ())[:_PATHS_SHOWN]:
        lines.append(f"  {percent(path['share_percent'])} of the first by way of")
        lines += [line for caller in path["lines"] for line in _cut(f"    {_place(caller)}")]
    return lines


def _cut(text: str) -> list[str]:
    return [text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"]


def _steps(steps: dict[str, Any]) -> list[str]:
    ranks = f" of {steps['ranks']} ranks" if steps["ranks"] > 1 else ""
    lines = [f"{steps['metric']} in {steps['steps']:,} steps{ranks}"]
    found = ((name, milliseconds(value)) for name, value in steps["quantiles_ms"].items())
    lines.append("  " + ", ".join(f"{name} {value}" for name, value in found))
    most = max(bin["steps"] for bin in steps["histogram"])
    for bin in steps["histogram"]:
        bar = "#" * round(_BAR * bin["steps"] / most)
        bar = bar or ("." if bin["steps"] else "")
        bounds = f"{milliseconds(bin['from_ms']):>11} - {milliseconds(bin['to_ms']):>11}"
        lines.append(f"  {bounds}  {bin['steps']:>9,}  {bar}".rstrip())
    lines += ["", "The steps with most of it"]
    return [*lines, *_slowest(steps["slowest"], several=steps["ranks"] > 1)]


def _slowest(slowest: Iterable[dict[str, Any]], *, several: bool) -> list[str]:
    lines = []
    for step in slowest:
        parts = sorted(step["parts_ms"].items(), key=lambda part: -part[1])[:_PARTS]
        rank = f"rank {step['rank']:<5} " if several else ""
        made = ", ".join(f"{name} {milliseconds(value)}" for name, value in parts if value)
        text = f"  {rank}step {step['step']:<8} {milliseconds(step['ms']):>10} of "
        text += f"{milliseconds(step['step_ms'])} at {seconds(step['at_s'])}: {made}"
        lines += textwrap.wrap(text, WIDTH, subsequent_indent=" " * _LABEL)
    return lines
