"""The command line: `traceml-agent COMMAND`. Works without torch."""

import argparse
import os
import sys
from collections.abc import Sequence

from traceml_agent.cli import config, doctor, explain, export, fold, run, runs, trace, view
from traceml_agent.cli.command import Command
from traceml_agent.errors import TracemlError
from traceml_agent.version import __version__

__all__ = ["COMMANDS", "main"]

COMMANDS: tuple[Command, ...] = (
    view.COMMAND,
    explain.COMMAND,
    trace.COMMAND,
    runs.COMMAND,
    fold.COMMAND,
    export.COMMAND,
    run.COMMAND,
    doctor.COMMAND,
    config.COMMAND,
)
"""Every subcommand, in the order of `--help`."""

USAGE_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns the exit code; 2 with a message for a `TracemlError`."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.execute(arguments)
        sys.stdout.flush()
    except TracemlError as error:
        print(f"traceml: {error}", file=sys.stderr)
        return USAGE_ERROR
    except BrokenPipeError:
        # The reader left (`| head`). Python flushes stdout once more at exit: let that succeed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except KeyboardInterrupt:
        return 128 + 2
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="traceml-agent",
        description="Why is this PyTorch training slow? Record it with "
        "`TRACEML_ENABLE=1 python train.py`, then read the runs with these commands.",
    )
    parser.add_argument("--version", action="version", version=f"traceml-agent {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        subparser = subparsers.add_parser(
            command.name, help=command.sentence, description=command.sentence
        )
        command.configure(subparser)
        subparser.set_defaults(execute=command.execute)
    return parser
