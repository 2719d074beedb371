"""`traceml-agent run CMD...`: runs a command recorded, whatever Python it starts.

Its output, its signals and its exit status are those of the command. What this adds to
`TRACEML_ENABLE=1 CMD...`: an overlay where that Python does not have the agent, and the fold of a
run whose process was killed and could not fold it.
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from traceml_agent.cli.child import NOT_EXECUTABLE, NOT_FOUND, Child, Outcome, end_like
from traceml_agent.cli.command import Command
from traceml_agent.cli.interpreter import OFF_VALUES, Interpreter, ask, kill_file, own_tag
from traceml_agent.cli.overlay import overlay
from traceml_agent.cli.places import runs_roots
from traceml_agent.cli.target import Target, Unresolved, is_launcher, resolve_target
from traceml_agent.config import resolve
from traceml_agent.errors import TracemlError
from traceml_agent.guard import guard
from traceml_agent.report.fold import fold_and_write, is_folded
from traceml_agent.report.render.text import render_text
from traceml_agent.report.runs import headers, is_run_dir, run_dirs

_JOB_VARIABLES = ("TRACEML_RUN_ID", "SLURM_JOB_ID", "TORCHELASTIC_RUN_ID", "RANK")
"""With one of these the processes of the job agree on a run id without us."""
_CLOCK_SLACK_NS = 2_000_000_000
"""The time stamps of a file system may lag behind the clock."""


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "command",
        nargs=argparse.REMAINDER,
        metavar="[--] CMD...",
        help="the training command, for example `python train.py --epochs 3`",
    )


def _execute(arguments: argparse.Namespace) -> int:
    command = arguments.command
    if command[:1] == ["--"]:
        command = command[1:]
    if not command:
        raise TracemlError("no command was given; for example: traceml-agent run python train.py")
    began_ns = time.time_ns()
    try:
        target = resolve_target(command, os.environ)
    except Unresolved:
        target = None  # a shell script, say
    names_run = target is not None and not is_launcher(command)
    environ = recording_environment(os.environ, names_run)
    with contextlib.ExitStack() as stack:
        environ = _with_overlay(target, environ, stack)
        try:
            child = Child(command, environ)
        except OSError as error:
            _say(f"cannot run {command[0]}: {error.strerror}")
            return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
        outcome = child.wait()
    # The user's exit status stands; an error or a Ctrl-C in the fold must not change it.
    with contextlib.suppress(KeyboardInterrupt), guard("fold"):
        _fold_what_was_left(outcome, environ, began_ns)
    return end_like(outcome)


def recording_environment(environ: Mapping[str, str], names_run: bool) -> dict[str, str]:
    """The environment of the command: switched on; `names_run`: with an id for the one run it is.

    A script may train several times and a launcher starts ranks that agree on an id by themselves:
    one id for all would put runs into one directory that have nothing to do with each other.
    """
    enabled = dict(environ)
    if enabled.get("TRACEML_ENABLE", "").strip().lower() != "force":
        enabled["TRACEML_ENABLE"] = "1"
    if names_run and not any(enabled.get(name) for name in _JOB_VARIABLES):
        enabled["TRACEML_RUN_ID"] = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    return enabled


def _with_overlay(
    target: Target | None, environ: dict[str, str], stack: contextlib.ExitStack
) -> dict[str, str]:
    """The environment, with the overlay where the command's Python needs it and can use it."""
    for name in ("TRACEML_DISABLE", "TRACEML_DISABLED"):
        if environ.get(name, "").strip().lower() not in OFF_VALUES:
            _say(f"{name} is set, so nothing is recorded")
            return environ
    # Where the Python is not known, the overlay says nothing in one that cannot use it.
    python = None
    if target is not None:
        with contextlib.suppress(Unresolved):
            python = ask(target, environ)
    # Of an unknown Python only what holds for the whole machine is known.
    forbidden_by = kill_file("/" if python is None else python.prefix)
    if forbidden_by is not None:
        _say(f"an administrator forbids recording: {forbidden_by} exists, so nothing is recorded")
        return environ
    if python is not None:
        if python.boot_runs:
            return environ
        reason = why_no_overlay(python)
        if reason is not None:
            _say(f"nothing is recorded: {reason}")
            return environ
    try:
        return stack.enter_context(overlay(environ))
    except (OSError, TracemlError) as error:
        if python is not None:
            _say(f"nothing is recorded: no overlay could be made: {error}")
        return environ


def why_no_overlay(python: Interpreter) -> str | None:
    """Why a Python without the agent cannot be given it by an overlay; None if it can."""
    version = ".".join(str(number) for number in python.version)
    install = f"install it there: {python.executable} -m pip install traceml-agent"
    if python.version < (3, 10, 0):
        return f"{python.executable} is Python {version}; traceml-agent needs 3.10 or later"
    if python.no_site:
        return f"{python.executable} is started with -S, which leaves out all startup files"
    if python.ignores_environment:
        return f"{python.executable} has no traceml-agent, and -E or -I hides PYTHONPATH; {install}"
    if python.tag != own_tag():
        return (
            f"{python.executable} ({python.tag}) has no traceml-agent and cannot load the one of "
            f"{own_tag()}; {install}"
        )
    return None


def _fold_what_was_left(outcome: Outcome, environ: Mapping[str, str], began_ns: int) -> None:
    """Folds the runs of the command that no process of it folded, and prints what they say."""
    prints = resolve(environ).config.summary
    for run_dir in _left_runs(outcome, environ, began_ns):
        try:
            payload = fold_and_write(run_dir).payload
        except (TracemlError, OSError) as error:
            _say(f"no summary of {run_dir}: {error}")
            continue
        if prints:
            encoding = (sys.stderr.encoding or "").lower().replace("-", "")
            _say(render_text(payload, ascii_only=encoding != "utf8"))


def _left_runs(outcome: Outcome, environ: Mapping[str, str], began_ns: int) -> list[Path]:
    """The runs of this command whose summary is missing or older than their records."""
    roots = runs_roots()
    run_id = environ.get("TRACEML_RUN_ID")
    if run_id and resolve(environ).config.run_id == run_id:
        candidates = [root / run_id for root in roots if is_run_dir(root / run_id)]
    else:
        candidates = [
            run_dir
            for run_dir in run_dirs(roots)
            if run_dir.stat().st_mtime_ns >= began_ns - _CLOCK_SLACK_NS
            and any(outcome.pid in (h.pid, h.parent_pid) for h in headers(run_dir))
        ]
    return [run_dir for run_dir in candidates if not is_folded(run_dir)]


def _say(text: str) -> None:
    """Writes lines on stderr; silent where it is closed: the command may not notice us."""
    if sys.stderr is None:
        return
    with contextlib.suppress(OSError, ValueError):
        for line in text.splitlines():
            print(f"traceml: {line}".rstrip(), file=sys.stderr)
        sys.stderr.flush()


COMMAND = Command("run", "Run a command recorded, whatever Python it starts.", _configure, _execute)
