"""Which Python a command ends up in."""

import os
from pathlib import Path

import pytest

from traceml_agent.cli.target import Unresolved, is_launcher, resolve_target, split_options


@pytest.fixture
def bin_dir(tmp_path: Path) -> Path:
    """A directory for programs, first on the PATH that `resolved` uses."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in ("python", "python3", "python3.12", "env", "timeout", "srun", "docker", "uv", "sh"):
        program(directory, name, b"\x7fELF")
    return directory


def program(directory: Path, name: str, content: bytes) -> Path:
    """An executable file."""
    path = directory / name
    path.write_bytes(content)
    path.chmod(0o755)
    return path


def resolved(bin_dir: Path, *command: str) -> tuple[str, ...]:
    """The words that start the Python of a command."""
    return resolve_target(command, {"PATH": str(bin_dir)}).words


def test_a_python_is_taken_as_it_is_named(bin_dir: Path) -> None:
    assert resolved(bin_dir, "python", "train.py", "-E") == ("python",)
    assert resolved(bin_dir, "python3.12", "-m", "train") == ("python3.12",)
    path = str(bin_dir / "python3")
    assert resolved(bin_dir, path, "-c", "pass") == (path,)


@pytest.mark.parametrize(
    ("words", "options", "rest"),
    [
        (["-u", "train.py", "-E"], ("-u",), ("train.py", "-E")),
        (["-uB", "-X", "dev", "-Wignore", "t.py"], ("-uB", "-X", "dev", "-Wignore"), ("t.py",)),
        (["-W", "error", "-m", "train"], ("-W", "error"), ("-m", "train")),
        (["-Es", "-mtrain", "-S"], ("-Es",), ("-mtrain", "-S")),
        (["-Ic", "pass"], ("-I",), ("-Ic", "pass")),
        (["-i", "-v", "-O", "t.py"], ("-O",), ("t.py",)),
        (
            ["--check-hash-based-pycs", "always", "t.py"],
            ("--check-hash-based-pycs", "always"),
            ("t.py",),
        ),
        (["-", "-S"], (), ("-", "-S")),
        ([], (), ()),
    ],
)
def test_options_end_where_the_program_begins(
    words: list[str], options: tuple[str, ...], rest: tuple[str, ...]
) -> None:
    assert split_options(words) == (options, rest)


def test_what_goes_before_it_is_kept(bin_dir: Path) -> None:
    command = ("env", "-u", "X", "A=b", "timeout", "-s", "INT", "60", "python", "-u", "t.py")
    assert resolved(bin_dir, *command) == (*command[:-1],)
    assert resolved(bin_dir, "uv", "run", "python", "t.py") == ("uv", "run", "python")


def test_assignments_in_front_become_an_env(bin_dir: Path) -> None:
    assert resolved(bin_dir, "A=b", "python", "t.py") == ("env", "A=b", "python")


def test_a_shebang_names_the_python_and_its_options(bin_dir: Path) -> None:
    program(bin_dir, "tool", b"#!/opt/x/bin/python3.11 -sE\nimport sys\n")
    assert resolved(bin_dir, "tool", "--port", "1") == ("/opt/x/bin/python3.11", "-sE")
    program(bin_dir, "tool", b"#!/usr/bin/env python3\n")
    assert resolved(bin_dir, "tool") == ("/usr/bin/env", "python3")
    program(bin_dir, "tool", b"#!/usr/bin/env -S python3 -u -X dev\n")
    assert resolved(bin_dir, "tool") == ("/usr/bin/env", "python3", "-u", "-X", "dev")


@pytest.mark.parametrize(
    ("line", "python"),
    [
        (b'\'\'\'exec\' "/a long/bin/python" "$0" "$@"', "/a long/bin/python"),
        (b"'''exec' '/b/bin/python3' \"$0\" \"$@\"", "/b/bin/python3"),
        (b"'''exec' /c/bin/python3.11 \"$0\" \"$@\"", "/c/bin/python3.11"),
    ],
)
def test_a_script_of_sh_that_only_starts_python_is_seen_through(
    bin_dir: Path, line: bytes, python: str
) -> None:
    program(bin_dir, "tool", b"#!/bin/sh\n" + line + b"\n' '''\nimport sys\n")
    assert resolved(bin_dir, "tool") == (python,)


def test_a_script_that_looks_for_python_beside_itself_is_seen_through(bin_dir: Path) -> None:
    line = b'\'\'\'exec\' "$(dirname -- "$(realpath -- "$0")")"/\'python3\' "$0" "$@"'
    program(bin_dir, "tool", b"#!/bin/sh\n" + line + b"\n' '''\n")
    assert resolved(bin_dir, "tool") == (str(bin_dir / "python3"),)


def test_a_path_set_by_env_counts(bin_dir: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    program(other, "tool", b"#!/other/python\n")
    program(bin_dir, "tool", b"#!/first/python\n")
    words = resolved(bin_dir, "env", f"PATH={other}{os.pathsep}{bin_dir}", "tool")
    assert words[-1] == "/other/python"


def test_a_python_behind_a_launcher_is_looked_up_here_and_that_is_said(bin_dir: Path) -> None:
    target = resolve_target(["srun", "-n", "4", "python", "t.py"], {"PATH": str(bin_dir)})
    assert target.words == ("python",)
    assert not target.is_exact
    assert "srun" in target.reached_by


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["pythn", "t.py"], "`pythn` is not found"),
        (["python3.99", "t.py"], "`python3.99` is not found"),
        (["docker", "run", "image", "python", "t.py"], "in another place"),
        (["sh", "train.sh"], "cannot be seen"),
        (["A=b"], "no command"),
    ],
)
def test_where_no_python_can_be_named_the_reason_is(
    bin_dir: Path, command: list[str], said: str
) -> None:
    with pytest.raises(Unresolved, match=said):
        resolve_target(command, {"PATH": str(bin_dir)})


@pytest.mark.parametrize(
    "command",
    [
        "torchrun --nproc-per-node 2 t.py",
        "/venv/bin/accelerate launch t.py",
        "python -m torch.distributed.run t.py",
        "srun python t.py",
        "timeout 60 torchrun t.py",
    ],
)
def test_launchers_are_recognised(command: str) -> None:
    assert is_launcher(command.split())
    assert not is_launcher(["python", "t.py"])
