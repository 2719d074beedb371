"""Which Python a command ends up in, found the way `exec` would: PATH, shebang, `env`, wrappers."""

import itertools
import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from traceml_agent.errors import TracemlError

_PYTHON_NAME = re.compile(r"(python|pypy)(\d+(\.\d+)?t?)?(-dbg|d)?")
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
# pip, uv and conda write this second line where a shebang would be too long or would move.
_TRAMPOLINE = re.compile(rb"^'''exec' (?P<interpreter>.+?) \"\$0\" \"\$@\"", re.MULTILINE)

_TRANSPARENT = """
env nice nohup timeout stdbuf setsid ionice taskset numactl chrt time
uv conda mamba micromamba poetry pipenv pdm hatch pixi rye
"""
_ELSEWHERE = """
docker podman nerdctl kubectl ssh sudo su chroot nsenter apptainer singularity enroot
"""
TRANSPARENT = frozenset(_TRANSPARENT.split())
"""Programs that only prepare and then run the rest: what they start can be asked through them."""

ELSEWHERE = frozenset(_ELSEWHERE.split())
"""Programs that start Python in another place or with another environment."""

LAUNCHERS = frozenset(["torchrun", "accelerate", "deepspeed", "srun", "mpirun", "mpiexec"])
"""Programs that start several ranks, which must agree on one run id by themselves."""

_LAUNCHER_MODULES = ("torch.distributed.", "accelerate.", "deepspeed.")
_SILENT_LETTERS = frozenset("ivxqdhV?")  # would change what a probe prints, or that it runs
_HEAD_BYTES = 4096


class Unresolved(TracemlError):
    """No Python can be named for a command; the message says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """The Python of a command, and the words that start it as the command itself would."""

    prefix: tuple[str, ...]  # "env", "A=b", "timeout", "60", ...
    python: tuple[str, ...]  # the interpreter as the command or the shebang names it
    options: tuple[str, ...]  # "-u", "-E", "-X", "dev", ...
    reached_by: str  # for people
    is_exact: bool  # False: named by a launcher's arguments and looked up here instead

    @property
    def words(self) -> tuple[str, ...]:
        """The start of a command line that runs this Python with these options."""
        return (*self.prefix, *self.python, *self.options)


def resolve_target(command: Sequence[str], environ: Mapping[str, str]) -> Target:
    """The Python that a command starts. Raises Unresolved."""
    words = list(command)
    prefix: list[str] = []
    while words and _ASSIGNMENT.match(words[0]):
        prefix.append(words.pop(0))
    if prefix:
        prefix.insert(0, "env")
    if not words:
        raise Unresolved("no command was given")
    search_path = _search_path(prefix, environ)
    target = _python_at(words, prefix, search_path)
    if target is not None:
        return target
    name = os.path.basename(words[0])
    if name in ELSEWHERE:
        raise Unresolved(
            f"`{name}` starts Python in another place; run `traceml-agent doctor` there"
        )
    found = shutil.which(words[0], path=search_path)
    if found is None:
        raise Unresolved(f"`{words[0]}` is not found on PATH, or may not be executed")
    return _inside(words, prefix, found, environ)


def is_launcher(command: Sequence[str]) -> bool:
    """Whether a command starts several ranks: torchrun, srun, `-m torch.distributed.run`, ..."""
    names = {os.path.basename(word) for word in command}
    if names & LAUNCHERS:
        return True
    modules = [b for a, b in itertools.pairwise(command) if a == "-m"]
    return any((module + ".").startswith(_LAUNCHER_MODULES) for module in modules)


def split_options(words: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The options of an interpreter's command line, and the rest from the script, -m or -c on."""
    options: list[str] = []
    index = 0
    while index < len(words):
        word = words[index]
        if not word.startswith("-") or word in ("-", "--"):
            break
        if word.startswith("--"):
            width = 1 if "=" in word or word != "--check-hash-based-pycs" else 2
            options.extend(words[index : index + width])
            index += width
            continue
        kept, ends, wants_value = _letters(word[1:])
        if kept:
            options.append("-" + kept)
        if ends:
            break
        if wants_value:
            options.extend(words[index + 1 : index + 2])
            index += 1
        index += 1
    return tuple(options), tuple(words[index:])


def _letters(letters: str) -> tuple[str, bool, bool]:
    """The letters to keep; whether -c or -m ends the options; whether the next word belongs."""
    kept = ""
    for position, letter in enumerate(letters):
        if letter in "cm":
            return kept, True, False
        if letter in "WX":
            return kept + letters[position:], False, position + 1 == len(letters)
        if letter not in _SILENT_LETTERS:
            kept += letter
    return kept, False, False


def _python_at(words: list[str], prefix: list[str], search_path: str | None) -> Target | None:
    """The target where the first word is an interpreter or a script with a Python shebang."""
    if _PYTHON_NAME.fullmatch(os.path.basename(words[0])):
        if shutil.which(words[0], path=search_path) is None:
            raise Unresolved(f"`{words[0]}` is not found on PATH, or may not be executed")
        options, _ = split_options(words[1:])
        return Target(tuple(prefix), (words[0],), options, "named by the command", True)
    found = shutil.which(words[0], path=search_path)
    python = _shebang(found) if found is not None else None
    if found is None or python is None:
        return None
    start = next(
        (i for i, word in enumerate(python) if _PYTHON_NAME.fullmatch(os.path.basename(word))),
        None,
    )
    if start is None:
        return None
    options, _ = split_options(python[start + 1 :])
    return Target(
        tuple(prefix), tuple(python[: start + 1]), options, f"first line of {found}", True
    )


def _inside(words: list[str], prefix: list[str], found: str, environ: Mapping[str, str]) -> Target:
    """The Python among the arguments of another program. Raises Unresolved."""
    name = os.path.basename(words[0])
    for index in range(1, len(words)):
        before = [*prefix, *words[:index]]
        search_path = _search_path(before, environ)
        if words[index].startswith("-") or os.path.isdir(words[index]):
            continue
        looks_like_path = os.sep in words[index]
        if not looks_like_path and shutil.which(words[index], path=search_path) is None:
            continue
        target = _python_at(words[index:], before, search_path)
        if target is None:
            continue
        if name in TRANSPARENT:
            return target
        return Target(
            tuple(prefix),
            target.python,
            target.options,
            f"among the arguments of `{name}`, looked up on this machine",
            False,
        )
    raise Unresolved(f"it cannot be seen from here which Python `{found}` starts")


def _search_path(prefix: Sequence[str], environ: Mapping[str, str]) -> str | None:
    """PATH as an `env PATH=...` in front leaves it."""
    for word in reversed(prefix):
        if word.startswith("PATH="):
            return word.removeprefix("PATH=")
    return environ.get("PATH")


def _shebang(path: str) -> list[str] | None:
    """The words of the interpreter that a script names; None for a program that is no script."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return None
    if not head.startswith(b"#!"):
        return None
    line = head[2:].split(b"\n", 1)[0].decode("utf-8", "replace").strip()
    trampoline = _TRAMPOLINE.search(head)
    if trampoline is not None:
        return [_trampoline_python(trampoline["interpreter"].decode("utf-8", "replace"), path)]
    interpreter, _, argument = line.partition(" ")
    argument = argument.strip()
    if os.path.basename(interpreter) == "env" and argument.startswith("-S"):
        return [interpreter, *shlex.split(argument[2:])]
    return [interpreter, *([argument] if argument else [])]


def _trampoline_python(text: str, path: str) -> str:
    if "$(dirname" in text:
        name = re.split(r"[/'\"]+", text.rstrip("'\""))[-1]
        return str(Path(path).resolve().parent / name)
    return text.strip("'\"")
