"""Asks an interpreter what it is and what it did with the agent's startup files."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from traceml_agent.cli.target import Target, Unresolved

OFF_VALUES = ("", "0", "false", "no", "off")
ON_VALUES = ("1", "true", "yes", "on", "force")
_ASKED = " 1 "
"""Means 1 to the startup files, and tells us our own value from one of the user."""
_MARK = b"TRACEML-PROBE:"
_QUICK_TIMEOUT_S = 20.0
_FULL_TIMEOUT_S = 180.0
"""Chosen: importing torch from a cold network file system was seen to take over a minute."""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """What one interpreter answered. None: it did not get that far."""

    executable: str
    version: tuple[int, int, int]
    tag: str  # two interpreters with equal tags can load each other's compiled modules
    no_site: bool
    ignores_environment: bool
    changes_user: bool
    variables: dict[str, str]  # the TRACEML_* variables that it sees
    prefix: str = ""
    boot_runs: bool = False
    package_dir: str | None = None
    pth_dirs: tuple[str, ...] = ()
    agent_version: str | None = None
    runs_dir: str | None = None
    problems: tuple[str, ...] = ()
    was_asked_all: bool = False
    torch_version: str | None = None
    torch_was_looked_for: bool = False
    failure: str = ""  # last line of stderr; says why where an answer is missing


def own_tag() -> str:
    """The tag of the interpreter that runs this."""
    return (sys.implementation.cache_tag or "unknown") + getattr(sys, "abiflags", "")


def kill_file(prefix: str) -> str | None:
    """The file by which an administrator forbids recording in the Python at `prefix`, or None.

    As the boot module itself decides it.
    """
    import _traceml_boot  # type: ignore[import-untyped]  # imports nothing, so no typing either

    found: str | None = _traceml_boot.kill_file(prefix)
    return found


def ask(target: Target, environ: Mapping[str, str]) -> Interpreter:
    """What can be known in a few hundredths of a second. Raises Unresolved."""
    return _ask(target, environ, (), _QUICK_TIMEOUT_S)


def ask_all(target: Target, environ: Mapping[str, str]) -> Interpreter:
    """All facts; imports torch there. Raises Unresolved."""
    return _ask(target, environ, ("all",), _FULL_TIMEOUT_S)


def _ask(
    target: Target, environ: Mapping[str, str], arguments: tuple[str, ...], timeout_s: float
) -> Interpreter:
    source = Path(__file__).with_name("probe.py").read_text(encoding="utf-8")
    command = [*target.words, "-c", source, *arguments]
    try:
        answer = subprocess.run(
            command,
            env=_asking_environment(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except OSError as error:
        raise Unresolved(f"`{' '.join(target.python)}` cannot be run: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise Unresolved(
            f"`{' '.join(target.python)}` gave no answer within {timeout_s:.0f} s"
        ) from None
    lines = [
        json.loads(line.removeprefix(_MARK))
        for line in answer.stdout.splitlines()
        if line.startswith(_MARK)
    ]
    failure = _last_line(answer.stderr) or f"exit code {answer.returncode}"
    if not lines:
        raise Unresolved(f"`{' '.join(target.python)}` does not start: {failure}")
    python = _interpreter(lines, bool(arguments), failure)
    if python.variables.get("TRACEML_ENABLE") == _ASKED:
        variables = {k: v for k, v in python.variables.items() if k != "TRACEML_ENABLE"}
        if "TRACEML_ENABLE" in environ:
            variables["TRACEML_ENABLE"] = environ["TRACEML_ENABLE"]
        python = dataclasses.replace(python, variables=variables)
    return python


def _asking_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The user's environment, switched on: otherwise the startup line would leave no trace."""
    asking = dict(environ)
    if asking.get("TRACEML_ENABLE", "").strip().lower() in OFF_VALUES:
        asking["TRACEML_ENABLE"] = _ASKED
    return asking


def _interpreter(lines: list[dict[str, Any]], all_asked: bool, failure: str) -> Interpreter:
    known = {field.name for field in dataclasses.fields(Interpreter)}
    values: dict[str, Any] = {}
    for line in lines:
        values.update({name: value for name, value in line.items() if name in known})
    for name in ("version", "pth_dirs", "problems"):
        if name in values:
            values[name] = tuple(values[name])
    return Interpreter(
        **values,
        was_asked_all=all_asked,
        torch_was_looked_for="torch_version" in values,
        failure=failure,
    )


def _last_line(stderr: bytes) -> str:
    lines = [line for line in stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else ""
