"""`traceml-agent doctor [-- CMD...]`: would this command be recorded, and if not, why not?"""

import argparse
import dataclasses
import os
import shlex
import shutil
import sys
from collections.abc import Sequence

from traceml_agent.cli.command import Command
from traceml_agent.cli.interpreter import Interpreter, ask_all
from traceml_agent.cli.target import Target, Unresolved, resolve_target
from traceml_agent.cli.verdict import Verdict, judge
from traceml_agent.config import PREFIX, SWITCHES, Config
from traceml_agent.redact import redact, secrets_of
from traceml_agent.version import __version__

WOULD_RECORD, WOULD_NOT_RECORD = 0, 1


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "command",
        nargs=argparse.REMAINDER,
        metavar="[-- CMD...]",
        help="the training command, exactly as it is started; without one: `python`",
    )


def _execute(arguments: argparse.Namespace) -> int:
    command = arguments.command
    if command[:1] == ["--"]:
        command = command[1:]
    needs_switch = bool(command)
    if not command:
        command = [_default_python()]
    target = python = None
    try:
        target = resolve_target(command, os.environ)
        python = ask_all(target, os.environ)
    except Unresolved as error:
        verdict = Verdict(False, str(error), "name the Python that trains: doctor -- python ...")
    else:
        shown = shlex.join(command) if needs_switch else "python train.py"
        verdict = judge(python, shown, needs_switch)
    word = "would record" if verdict.records else "would not record"
    lines = [f"verdict: {word}: {verdict.reason}", f"fix: {verdict.fix}"]
    lines += [f"  {name:<14}{value}" for name, value in facts(target, python)]
    # This goes into bug reports, and the command may hold a token.
    secrets = secrets_of(os.environ.items(), command)
    for line in lines:
        print(redact(line, secrets))
    return WOULD_RECORD if verdict.records else WOULD_NOT_RECORD


def facts(target: Target | None, python: Interpreter | None) -> Sequence[tuple[str, str]]:
    """What was found out, for a bug report: pairs of a name and a value."""
    known: list[tuple[str, str]] = [("this command", f"{sys.executable} ({__version__})")]
    if target is not None:
        known.append(("python", f"{shlex.join(target.words)} ({target.reached_by})"))
    if python is None:
        return known
    version = ".".join(str(number) for number in python.version)
    known.append(("resolves to", f"{python.executable} ({version}, {python.tag})"))
    agent = python.agent_version or ("broken" if python.package_dir else "not there")
    known.append(("agent", f"{agent}, {python.package_dir}" if python.package_dir else agent))
    known.append(("startup file", "processed" if python.boot_runs else "not processed"))
    if python.torch_was_looked_for:
        known.append(("torch", python.torch_version or "not there"))
    if python.runs_dir is not None:
        known.append(("runs", python.runs_dir))
    # What is no setting of ours may be anything.
    known += [
        ("variable", f"{name}={value}" if is_setting(name) else f"{name} (no such setting)")
        for name, value in sorted(python.variables.items())
    ]
    known += [("problem", problem) for problem in python.problems]
    return known


def is_setting(variable: str) -> bool:
    """Whether the agent reads this variable."""
    names = {PREFIX + item.name.upper() for item in dataclasses.fields(Config)}
    return variable in names or variable in SWITCHES


def _default_python() -> str:
    return next((n for n in ("python", "python3") if shutil.which(n)), sys.executable)


COMMAND = Command(
    "doctor", "Say whether a command would be recorded, and if not, why not.", _configure, _execute
)
