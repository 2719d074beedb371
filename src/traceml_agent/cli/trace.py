"""`traceml-agent trace`: the tree of spans of one process of a run, as `trace()` shows it."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from traceml_agent.cli.command import Command
from traceml_agent.cli.fold import part_of_run
from traceml_agent.config import resolve
from traceml_agent.errors import NewerSchema, NoRun, NoSpools
from traceml_agent.report import spans
from traceml_agent.report.automatic import newest, with_automatic
from traceml_agent.report.parts import paths_without_copies
from traceml_agent.report.span_rows import rows_in
from traceml_agent.spool.digested import read_spool
from traceml_agent.spool.reader import NotASpool, Spool, header_of
from traceml_agent.terminal import printable


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run",
        nargs="?",
        metavar="RUN",
        help="a run id or its beginning, a run name, a run directory, or `latest` (the default)",
    )
    parser.add_argument(
        "--format", choices=spans.FORMATS, default="tree", help="default: tree, a line a span"
    )
    parser.add_argument("--name", help="the spans of this name, and all below them")
    parser.add_argument("--last", type=int, metavar="N", help="the N that were closed last")
    parser.add_argument(
        "--rank", type=int, metavar="N", help="of which process (default: the lowest rank there is)"
    )


def _execute(arguments: argparse.Namespace) -> int:
    if arguments.last is not None and arguments.last < 0:
        raise NoRun(f"--last is a number of spans from 0 on, not {arguments.last}")
    run_dir = part_of_run(arguments.run, "trace")
    most = resolve(os.environ).config.trace_max_spans
    rows, marks = rows_in((spool := _spool(run_dir, arguments.rank)).spans, most)
    roots = spans.forest(
        newest(with_automatic(rows, spool, most), most), arguments.name, arguments.last
    )
    print(printable(_text(arguments.format, roots, marks)))
    return 0


def _text(wanted: str, roots: list[spans.Row], marks: list[tuple[str, Any, str]]) -> str:
    if wanted == "dict":
        return str(spans.dict_of(roots, marks))
    if wanted == "json":
        return spans.json_of(roots, marks)
    if wanted == "df":
        return str(spans.frame_of(roots).to_string())
    return spans.text_of(roots)


def _spool(run_dir: Path, rank: int | None) -> Spool:
    """That of the last process which had this rank. Raises NoRun."""
    found = []
    problem = ""
    for path in paths_without_copies([run_dir]):
        try:
            header = header_of(path)
        except (NotASpool, NewerSchema, OSError) as error:
            problem = f" ({error})"
            continue
        found.append((header.identity.rank, header.identity.attempt, header.wall_ns, path))
    if not found:
        raise NoSpools(f"no readable spool in {run_dir}{problem}")
    ranks = sorted({entry[0] for entry in found})
    if rank is None:
        rank = ranks[0]
        if len(ranks) > 1:
            others = f"rank {rank} of {len(ranks)} ranks; --rank shows another one"
            print(f"traceml: {others}", file=sys.stderr)
    own = [entry for entry in found if entry[0] == rank]
    if not own:
        raise NoRun(f"the run has no rank {rank}; it has {', '.join(map(str, ranks[:20]))}")
    try:
        return read_spool(max(own)[3], whole=True, spans=True)
    except (NotASpool, OSError) as error:
        raise NoRun(f"cannot read the spool of rank {rank}: {error}") from None


COMMAND = Command(
    "trace",
    "Show epochs, steps, phases and the program's own scopes of a process as a tree.",
    _configure,
    _execute,
)
