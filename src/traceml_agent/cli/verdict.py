"""Would this command be recorded? One verdict, one reason, one fix; first what weighs most."""

import os
import re
from dataclasses import dataclass

from traceml_agent.cli.interpreter import OFF_VALUES, ON_VALUES, Interpreter, kill_file, own_tag
from traceml_agent.spool.rundir import fallback_runs_dir, why_unsafe

TORCH_FLOOR = (2, 1)
"""The floor of the `torch` extra: the oldest version with all the calls that are patched."""
PYTHON_FLOOR = (3, 10)
_INSTALL = "-m pip install traceml-agent"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a command would be recorded, why, and what to do."""

    records: bool
    reason: str
    fix: str


def judge(python: Interpreter, command: str, needs_switch: bool) -> Verdict:
    """The verdict on a command. Without `needs_switch` an unset TRACEML_ENABLE is no obstacle."""
    return (
        _interpreter(python)
        or _forbidden(python)
        or _installation(python, command)
        or _switches(python, command, needs_switch)
        or _torch(python)
        or _run_directory(python)
        or Verdict(True, f"torch {python.torch_version} in {python.executable}", "nothing to do")
    )


def _no(reason: str, fix: str) -> Verdict:
    return Verdict(False, reason, fix)


def _interpreter(python: Interpreter) -> Verdict | None:
    version = ".".join(str(number) for number in python.version)
    if python.version[:2] < PYTHON_FLOOR:
        return _no(
            f"{python.executable} is Python {version}, which is too old",
            "use Python 3.10 or later for the training",
        )
    if python.no_site:
        return _no(
            "Python is started with -S, which leaves out all startup files",
            "leave -S out of the command",
        )
    if python.changes_user:
        return _no(
            f"{python.executable} runs with the rights of another user (setuid or setgid)",
            "start the training with an interpreter that has no setuid or setgid bit",
        )
    return None


def _forbidden(python: Interpreter) -> Verdict | None:
    path = kill_file(python.prefix)
    if path is None:
        return None
    return _no(
        f"an administrator forbids recording here: {path} exists",
        f"ask whoever put {path} there; no variable overrides it",
    )


def _installation(python: Interpreter, command: str) -> Verdict | None:
    can_overlay = python.tag == own_tag() and not python.ignores_environment
    run = f"traceml-agent run {command}"
    install = f"{python.executable} {_INSTALL}"
    if python.package_dir is None:
        return _no(
            f"traceml-agent is not installed for {python.executable}",
            f"{install}   (or leave that Python as it is: {run})" if can_overlay else install,
        )
    if not python.boot_runs:
        if python.pth_dirs:
            reason = (
                f"traceml-agent lies in {python.pth_dirs[0]}, which is on PYTHONPATH and no "
                "site directory: its startup file is not processed there"
            )
        else:
            reason = (
                f"traceml-agent is imported from {python.package_dir}, but its startup file "
                f"traceml_agent.pth is in no site directory of {python.executable}"
            )
        return _no(reason, run if can_overlay else install)
    if python.was_asked_all and python.runs_dir is None:
        return _no(
            f"traceml-agent in {python.package_dir} does not work: {python.failure}",
            f"{python.executable} -m pip install --force-reinstall traceml-agent",
        )
    return None


def _switches(python: Interpreter, command: str, needs_switch: bool) -> Verdict | None:
    value = python.variables.get("TRACEML_ENABLE", "")
    word = value.strip().lower()
    for name in ("TRACEML_DISABLE", "TRACEML_DISABLED"):
        if python.variables.get(name, "").strip().lower() not in OFF_VALUES:
            return _no(f"{name}={python.variables[name]} switches it off", f"unset {name}")
    if word not in OFF_VALUES + ON_VALUES:
        return _no(f"TRACEML_ENABLE={value!r} is not understood", "set TRACEML_ENABLE=1")
    if python.ignores_environment and word != "force":
        return _no(
            "Python is started with -E or -I, and TRACEML_ENABLE is not `force`",
            f"TRACEML_ENABLE=force {command}",
        )
    if needs_switch and word in OFF_VALUES:
        state = f"is {value!r}" if value else "is not set"
        others = _torch(python)
        if others is not None:
            return others
        return _no(f"TRACEML_ENABLE {state}; all else is in place", f"TRACEML_ENABLE=1 {command}")
    return None


def _torch(python: Interpreter) -> Verdict | None:
    if not python.torch_was_looked_for:
        return _no(
            f"`import torch` fails in {python.executable}: {python.failure}",
            f"repair torch there: {python.executable} -c 'import torch' must succeed",
        )
    if python.torch_version is None:
        return _no(
            f"{python.executable} has no torch",
            "use the interpreter that trains, or install torch there",
        )
    numbers = re.match(r"(\d+)\.(\d+)", python.torch_version)
    if numbers is not None and (int(numbers[1]), int(numbers[2])) < TORCH_FLOOR:
        floor = ".".join(str(number) for number in TORCH_FLOOR)
        return _no(
            f"torch {python.torch_version} is too old",
            f"use torch {floor} or later",
        )
    return None


def _run_directory(python: Interpreter) -> Verdict | None:
    if python.runs_dir is None or _can_hold_runs(python.runs_dir):
        return None
    fallback = str(fallback_runs_dir())
    fix = "set TRACEML_DIR to a directory of yours"
    if _can_hold_runs(fallback) and why_unsafe(fallback_runs_dir().parent) is None:
        return Verdict(True, f"to {fallback}, because {python.runs_dir} cannot be written", fix)
    return _no(f"neither {python.runs_dir} nor {fallback} can be written", fix)


def _can_hold_runs(directory: str) -> bool:
    """Whether the directory, or the nearest one above it that exists, can be written."""
    existing = directory
    while not os.path.lexists(existing) and os.path.dirname(existing) != existing:
        existing = os.path.dirname(existing)
    return os.path.isdir(existing) and os.access(existing, os.W_OK | os.X_OK)
