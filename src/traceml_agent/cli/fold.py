"""`traceml-agent fold`: writes final_summary.json and final_summary.txt of a run anew."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from traceml_agent.cli.command import Command
from traceml_agent.cli.places import runs_roots
from traceml_agent.errors import NoRun
from traceml_agent.report.fold import fold_and_write
from traceml_agent.report.parts import spool_paths
from traceml_agent.report.runs import find_run
from traceml_agent.schema.summary import SUMMARY_JSON, SUMMARY_TEXT


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a run id or its beginning, a run name, a run directory, or `latest`; several: the "
        "directories that the nodes of one run left, which are merged",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        help="where the summary is written (default: the first RUN)",
    )


def _execute(arguments: argparse.Namespace) -> int:
    parts = [part_of_run(wanted, "fold") for wanted in arguments.runs]
    target: Path = arguments.output if arguments.output is not None else parts[0]
    try:
        if arguments.output is not None:
            target.mkdir(mode=0o700, parents=True, exist_ok=True)
            _refuse_another_run(target, parts)
        fold_and_write(target, parts=parts)
    except OSError as error:
        raise NoRun(f"cannot fold into {target}: {error.strerror or error}") from None
    for name in (SUMMARY_JSON, SUMMARY_TEXT):
        print(target / name)
    return 0


def _refuse_another_run(target: Path, parts: Sequence[Path]) -> None:
    known = {part.resolve() for part in parts}
    if target.resolve() not in known and spool_paths([target]):
        raise NoRun(f"{target} holds spools that are not to be folded; name an empty directory")


def part_of_run(wanted: str, command: str) -> Path:
    """The directory that a person means. Raises NoRun."""
    found = find_run(wanted, runs_roots())
    if found.is_file():
        raise NoRun(f"{found} is a file; `{command}` takes the directory of a run")
    return found


COMMAND = Command(
    "fold",
    "Write the summary files of a run anew; of several directories, the parts of one run.",
    _configure,
    _execute,
)
