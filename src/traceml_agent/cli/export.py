"""`traceml-agent export`: a run as a data set that DuckDB, Polars, Spark and Ray read."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from traceml_agent.cli.command import Command
from traceml_agent.cli.fold import part_of_run
from traceml_agent.errors import NoRun
from traceml_agent.report.fold import fold
from traceml_agent.report.runs import summary_payload


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a run id or its beginning, a run name, a run directory, or `latest`; several: the "
        "directories that the nodes of one run left, which are merged",
    )
    parser.add_argument(
        "--to",
        nargs=2,
        metavar=("FORMAT", "DIR"),
        required=True,
        help="the format, which is `parquet`, and the data set: new, or one that gets this run",
    )
    parser.add_argument(
        "--replace", action="store_true", help="write a run anew that the data set holds already"
    )


def _execute(arguments: argparse.Namespace) -> int:
    from traceml_agent.sinks.parquet import export

    format_name, directory = arguments.to
    if format_name != "parquet":
        raise NoRun(f"`export` writes no {format_name}; `--to parquet DIR` is what it knows")
    parts = [part_of_run(wanted, "export") for wanted in arguments.runs]
    problems: list[str] = []
    try:
        written = export(
            parts,
            Path(directory),
            _payload,
            replace=arguments.replace,
            problems=problems,
        )
    except OSError as error:
        raise NoRun(f"cannot export to {directory}: {error.strerror or error}") from None
    for problem in problems:
        print(f"traceml: left out: {problem}", file=sys.stderr)
    for path, rows in written.items():
        print(f"{path}  {rows:,} rows")
    return 0


def _payload(parts: Sequence[Path]) -> dict[str, Any]:
    return summary_payload(parts[0]) if len(parts) == 1 else fold(parts[0], parts=parts).payload


COMMAND = Command("export", "Write a run as a data set for other tools.", _configure, _execute)
