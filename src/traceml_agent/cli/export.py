"""`traceml-agent export`: a run as a data set that DuckDB, Polars, Spark and Ray read."""

import argparse
import sys
from pathlib import Path

from traceml_agent.cli.command import Command
from traceml_agent.cli.places import runs_roots
from traceml_agent.errors import NoRun
from traceml_agent.report.runs import find_run, summary_payload


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run",
        metavar="RUN",
        help="a run id or its beginning, a run name, a run directory, or `latest`",
    )
    parser.add_argument("--to", choices=("parquet",), required=True, help="the format")
    parser.add_argument(
        "directory", metavar="DIR", type=Path, help="the data set: new, or one that gets this run"
    )
    parser.add_argument(
        "--replace", action="store_true", help="write a run anew that the data set holds already"
    )


def _execute(arguments: argparse.Namespace) -> int:
    from traceml_agent.sinks.parquet import export

    run_dir = find_run(arguments.run, runs_roots())
    if run_dir.is_file():
        raise NoRun(f"{run_dir} is a file; `export` takes the directory of a run")
    problems: list[str] = []
    try:
        written = export(
            run_dir,
            arguments.directory,
            summary_payload,
            replace=arguments.replace,
            problems=problems,
        )
    except OSError as error:
        raise NoRun(f"cannot export to {arguments.directory}: {error.strerror or error}") from None
    for problem in problems:
        print(f"traceml: left out: {problem}", file=sys.stderr)
    for path, rows in written.items():
        print(f"{path}  {rows:,} rows")
    return 0


COMMAND = Command("export", "Write a run as a data set for other tools.", _configure, _execute)
