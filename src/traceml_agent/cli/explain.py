"""`traceml-agent explain`: a finding in full, with the steps it rests on."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from traceml_agent.cli.command import Command
from traceml_agent.cli.places import runs_roots
from traceml_agent.errors import NoRun, TracemlError
from traceml_agent.report.evidence import steps_behind
from traceml_agent.report.fold import read_summary
from traceml_agent.report.render.explain import render_finding, render_overview
from traceml_agent.report.runs import find_run, summary_payload
from traceml_agent.report.sections.step_time import analysis_window
from traceml_agent.report.view import load_run


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run",
        nargs="?",
        metavar="RUN",
        help="a run id or its beginning, a run name, a run directory, a final_summary.json, or "
        "`latest` (the default)",
    )
    parser.add_argument(
        "finding",
        nargs="?",
        metavar="FINDING",
        help="the id or kind of a finding; without one, all are listed and the one behind the "
        "verdict is shown",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _execute(arguments: argparse.Namespace) -> int:
    path = find_run(arguments.run, runs_roots())
    try:
        payload = read_summary(path) if path.is_file() else summary_payload(path)
        finding = _finding(payload, arguments.finding)
        steps = None if finding is None else _steps(path, finding)
    except OSError as error:
        raise NoRun(f"cannot read {error.filename or path}: {error.strerror or error}") from None
    if arguments.json:
        shown = {"findings": [f["id"] for f in payload["findings"]], "finding": finding}
        spots = [] if finding is None else _hotspots(payload, finding)
        json.dump({**shown, "hotspots": spots, "steps": steps}, sys.stdout, indent=2)
        print()
        return 0
    parts = [] if arguments.finding is not None else [render_overview(payload)]
    if finding is not None:
        parts.append(render_finding(finding, _hotspots(payload, finding), steps))
    text = "\n\n".join(parts)
    if (sys.stdout.encoding or "").lower().replace("-", "") != "utf8":
        text = text.replace("…", "~").encode("ascii", "replace").decode()
    print(text)
    return 0


def _finding(payload: dict[str, Any], wanted: str | None) -> dict[str, Any] | None:
    """The finding that a person means, or the one behind the verdict, or the first; None where
    there is none.

    Raises TracemlError where no finding is called so.
    """
    found: list[dict[str, Any]] = payload["findings"]
    if any("id" not in finding for finding in found):
        raise TracemlError(
            "the summary was written by an older version; `traceml-agent fold RUN` makes it anew"
        )
    if wanted is None:
        behind = payload["primary_diagnosis"].get("finding")
        return next((f for f in found if f["id"] == behind), found[0] if found else None)
    word = wanted.upper().replace(" ", "_").replace("-", "_")
    for finding in found:
        if finding["id"].replace("-", "_") == word:
            return finding
    names = ", ".join(finding["id"] for finding in found) or "none"
    raise TracemlError(f"the run has no finding {wanted!r}; it has: {names}")


def _hotspots(payload: dict[str, Any], finding: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines in which the phase of a finding passes, those with most of it first."""
    found = [spot for spot in payload["hotspots"] if spot["phase"] == finding["metric"]]
    return sorted(found, key=lambda spot: -spot["share_percent"])


def _steps(path: Path, finding: dict[str, Any]) -> dict[str, Any] | None:
    """The steps behind a finding; None where its time is none of the step, or without spools."""
    metric = finding["metric"]
    if path.is_file() or metric is None:
        return None
    view = load_run(path)
    return steps_behind(view, analysis_window(view), metric)


COMMAND = Command(
    "explain",
    "Explain a finding of a run: its evidence, its steps, what fixing it would save.",
    _configure,
    _execute,
)
