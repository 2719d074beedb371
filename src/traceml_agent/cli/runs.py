"""`traceml-agent runs`: the recorded runs, newest first."""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence

from traceml_agent.cli.command import Command
from traceml_agent.cli.places import runs_roots
from traceml_agent.report.runs import RunEntry, list_runs

_COLUMNS = ("RUN", "NAME", "STATUS", "STARTED", "STEPS", "RANKS", "VERDICT")
_UNKNOWN = "-"
_NAME_WIDTH = 30


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print a JSON list")


def _execute(arguments: argparse.Namespace) -> int:
    roots = runs_roots()
    entries = list_runs(roots)
    if arguments.json:
        json.dump([_as_json(entry) for entry in entries], sys.stdout, indent=2)
        print()
    elif entries:
        print(table([_COLUMNS, *(_cells(entry) for entry in entries)]), end="")
    else:
        print(f"traceml: there is no run in {roots[0]}", file=sys.stderr)
    return 0


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows with their columns aligned on the left, two spaces between, one row a line."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        + "\n"
        for row in rows
    )


def _cells(entry: RunEntry) -> tuple[str, ...]:
    started = entry.started_wall_s
    verdict = entry.verdict or _UNKNOWN
    return (
        entry.run_id,
        _shortened(entry.name) if entry.name else _UNKNOWN,
        entry.status,
        time.strftime("%Y-%m-%d %H:%M", time.localtime(started)) if started else _UNKNOWN,
        _UNKNOWN if entry.steps is None else str(entry.steps),
        _UNKNOWN if entry.ranks is None else str(entry.ranks),
        f"{verdict} ({entry.severity})" if entry.severity in ("warn", "crit") else verdict,
    )


def _shortened(name: str) -> str:
    return name if len(name) <= _NAME_WIDTH else name[: _NAME_WIDTH - 3] + "..."


def _as_json(entry: RunEntry) -> dict[str, object]:
    return {**dataclasses.asdict(entry), "path": str(entry.path)}


COMMAND = Command("runs", "List the recorded runs, newest first.", _configure, _execute)
