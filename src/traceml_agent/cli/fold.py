"""`traceml-agent fold`: writes final_summary.json and final_summary.txt of runs anew."""

import argparse

from traceml_agent.cli.command import Command
from traceml_agent.cli.places import runs_roots
from traceml_agent.errors import NoRun
from traceml_agent.report.fold import fold_and_write
from traceml_agent.report.runs import find_run
from traceml_agent.schema.summary import SUMMARY_JSON, SUMMARY_TEXT


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a run id or its beginning, a run name, a run directory, or `latest`",
    )


def _execute(arguments: argparse.Namespace) -> int:
    for wanted in arguments.runs:
        run_dir = find_run(wanted, runs_roots())
        if run_dir.is_file():
            raise NoRun(f"{run_dir} is a file; `fold` takes the directory of a run")
        try:
            fold_and_write(run_dir)
        except OSError as error:
            raise NoRun(f"cannot fold {run_dir}: {error.strerror or error}") from None
        for name in (SUMMARY_JSON, SUMMARY_TEXT):
            print(run_dir / name)
    return 0


COMMAND = Command("fold", "Write the summary files of runs anew.", _configure, _execute)
