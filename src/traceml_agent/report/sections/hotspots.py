"""Section hotspots: the lines of the program in which each phase passes."""

from collections import defaultdict
from typing import Any

from traceml_agent.report.diagnose.lines import named_issues
from traceml_agent.report.hotspots import Hotspot, Hotspots, hotspots_of
from traceml_agent.report.sections.shape import Window
from traceml_agent.report.series import steps_within
from traceml_agent.report.stats import total
from traceml_agent.report.view import RunView
from traceml_agent.schema.phases import PHASES
from traceml_agent.schema.stacks import RESIDUAL

LINES_OF_PHASE = 8
LINES_MOST = 60
SHARE_LEAST = 0.02
"""Of a phase. Chosen: below, a minute of samples (1,200) does not tell lines apart."""


def build(view: RunView, window: Window) -> Hotspots:
    """All lines, the one that takes most first."""
    return hotspots_of(view.ranks, host_means(view, window))


def with_lines(step_time: dict[str, Any], found: Hotspots) -> dict[str, Any]:
    """Section step_time with the lines in its findings, and with findings about lines."""
    issues = named_issues(step_time["issues"], found, step_time["global"]["window"])
    card = step_time["card"].splitlines()[:1]
    card.append(f"- {issues[0]['kind']}: {issues[0]['summary']}")
    return {**step_time, "issues": issues, "diagnosis": issues[0], "card": "\n".join(card)}


def listed(found: Hotspots) -> list[dict[str, Any]]:
    """The lines that the summary lists."""
    of_phase: dict[str, int] = defaultdict(int)
    lines = []
    for spot in found.spots:
        if spot.share >= SHARE_LEAST and of_phase[spot.phase] < LINES_OF_PHASE:
            of_phase[spot.phase] += 1
            lines.append(_listed(spot, found.samples.get(spot.phase, 0)))
    return lines[:LINES_MOST]


def host_means(view: RunView, window: Window) -> dict[str, float]:
    """Milliseconds of a step on the clock of the host: the mean over ranks and steps.

    Samples tell what the host did; on a GPU the other sections may be on another clock.
    """
    sums: dict[str, float] = defaultdict(float)
    count = 0
    for rank in view.ranks:
        series = rank.series
        chosen = steps_within(series, window.start_step or 0, window.end_step or 0)
        if not chosen:
            continue
        part = slice(chosen.start, chosen.stop)
        count += len(chosen)
        step = total(series.duration_ns[part])
        known = {n: total(c[part]) for n in PHASES if (c := series.phase_ns[n]) is not None}
        for name, elapsed in known.items():
            sums[name] += elapsed
        sums["step"] += step
        if len(known) == len(PHASES):
            sums[RESIDUAL] += max(0, step - sum(known.values()))
    return {name: value / count / 1e6 for name, value in sums.items()} if count else {}


def _listed(spot: Hotspot, phase_samples: int) -> dict[str, Any]:
    return {
        "phase": spot.phase,
        "file": spot.place.file,
        "line": spot.place.line,
        "function": spot.place.function,
        "code": spot.place.code,
        "kind": spot.kind,
        "input": spot.input,
        "before": spot.before,
        "share_percent": 100 * spot.share,
        "share_low_percent": 100 * spot.low,
        "share_high_percent": 100 * spot.high,
        "samples": spot.samples,
        "phase_samples": phase_samples,
        "ms_per_step": spot.ms_per_step,
        "late_percent": 100 * spot.late_share,
        "library": spot.library,
        "ranks_apart": list(spot.ranks),
        "paths": [
            {
                "share_percent": 100 * path.share,
                "lines": [
                    {
                        "file": line.file,
                        "line": line.line,
                        "function": line.function,
                        "code": line.call or line.text,
                    }
                    for line in path.lines
                ],
            }
            for path in spot.paths
        ],
    }
