"""`traceml-agent view`: the summary of one run, folded on the spot where none is written yet."""

import argparse
import json
import sys
from pathlib import Path

from traceml_agent.cli.command import Command
from traceml_agent.cli.fold import part_of_run
from traceml_agent.cli.places import runs_roots
from traceml_agent.errors import NoRun
from traceml_agent.report.fold import fold, read_summary
from traceml_agent.report.render.text import render_stored
from traceml_agent.report.runs import find_run, summary_payload


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN|FILE",
        help="a run id or its beginning, a run name, a run directory, a final_summary.json, or "
        "`latest` (the default); several: the directories that the nodes of one run left",
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def _execute(arguments: argparse.Namespace) -> int:
    wanted = arguments.runs or [None]
    path = find_run(wanted[0], runs_roots())
    try:
        if len(wanted) > 1:
            parts = [part_of_run(part, "view") for part in wanted]
            payload = fold(parts[0], parts=parts).payload
        else:
            payload = read_summary(path) if path.is_file() else summary_payload(path)
    except OSError as error:
        raise _unreadable(path, error) from None
    if arguments.json:
        json.dump(payload, sys.stdout, indent=2)
        print()
    else:
        encoding = (sys.stdout.encoding or "").lower().replace("-", "")
        print(render_stored(payload, ascii_only=encoding != "utf8").rstrip("\n"))
    return 0


def _unreadable(path: Path, error: OSError) -> NoRun:
    return NoRun(f"cannot read {error.filename or path}: {error.strerror or error}")


COMMAND = Command(
    "view", "Show the summary of a run; the latest one without an argument.", _configure, _execute
)
