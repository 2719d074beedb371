"""No setting leads out of the runs directory, and none names code that would be executed."""

import ast
import dataclasses
import getpass
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.boot.conftest import REPOSITORY, Venv
from tests.e2e.harness import run, write
from traceml_agent.config import PREFIX, SWITCHES, Config, resolve
from traceml_agent.identity import resolve_identity
from traceml_agent.run_key import Launch, resolve_run_key

TRAINING = """
import sys
import torch
from torch import nn

before = list(sys.path)
torch.set_num_threads(1)
model = nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
print("trained", sys.path == before)
"""
BAD_RUN_IDS = [
    "../../x",
    "..",
    ".",
    ".hidden",
    "-rf",
    "/etc/x",
    "a/b",
    "a\\b",
    "a\nb",
    "a b",
    "x" * 129,
    "x" * 4096,
    "é",
    "\x1b[31m",
    "%n",
    "${HOME}",
    "~",
    "\udcff",
]


@pytest.mark.parametrize("value", BAD_RUN_IDS, ids=lambda value: ascii(value)[:20])
def test_a_run_id_that_is_no_plain_name_is_refused_in_one_line(value: str) -> None:
    resolved = resolve({"TRACEML_RUN_ID": value}, Path("/nowhere"))
    assert resolved.config.run_id is None
    assert len(resolved.problems) == 1
    assert resolved.problems[0].startswith("TRACEML_RUN_ID=")
    assert len(resolved.problems[0].splitlines()) == 1
    assert len(resolved.problems[0]) < 250


def test_the_longest_plain_name_is_taken() -> None:
    value = "a" * 100 + "-Run_1.2"
    assert resolve({"TRACEML_RUN_ID": value}, Path("/nowhere")).config.run_id == value


@pytest.mark.parametrize("value", ["../../x", "x" * 4096, "a\nb"], ids=["path", "4 KB", "newline"])
def test_a_training_with_such_a_run_id_is_recorded_under_another_name(
    tmp_path: Path, value: str
) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    result = run(
        tmp_path,
        write(tmp_path, TRAINING),
        TRACEML_RUN_ID=value,
        TRACEML_DIR=str(inner / "runs"),
        TRACEML_SUMMARY="0",
    )
    assert (result.returncode, result.stdout, result.other_stderr) == (0, "trained True\n", "")
    refused, recording = result.own_lines
    assert refused.startswith("traceml: TRACEML_RUN_ID=")
    assert recording.startswith(f"traceml: recording to {next((inner / 'runs').iterdir())} ")
    beside = {path.name for path in tmp_path.iterdir()} - {f"torchinductor_{getpass.getuser()}"}
    assert beside == {"a", "train.py"}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    assert [path.name for path in inner.iterdir()] == ["runs"]


LAUNCH = Launch("1a2b3c4d", "parent-1-1a2b3c4d", "20260101-000000-2", False, "host")
NAMES_OF_LAUNCHERS = """
TORCHELASTIC_RUN_ID SLURM_JOB_ID SLURM_STEP_ID SLURM_ARRAY_JOB_ID SLURM_ARRAY_TASK_ID MASTER_PORT
RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_RANK TORCHELASTIC_RESTART_COUNT SLURM_PROCID
"""
VALUES = st.one_of(
    st.text(max_size=300).filter(lambda text: "\0" not in text),
    st.integers(-5, 10**400).map(str),
    st.sampled_from(["../../x", "..", "/etc/x", "a\nb", "x" * 4096, "é" * 200, "\udcff"]),
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES_OF_LAUNCHERS.split()), VALUES))
def test_whatever_a_launcher_sets_the_run_id_is_one_plain_name(environ: dict[str, str]) -> None:
    run_id = resolve_run_key(environ, None, LAUNCH).run_id
    assert run_id == os.path.basename(run_id)
    assert not run_id.startswith((".", "-"))
    assert run_id.isascii() and run_id.isprintable() and 0 < len(run_id) <= 128
    identity = resolve_identity(environ)
    for name in ("rank", "local_rank", "node_rank", "world_size", "local_world_size", "attempt"):
        assert 0 <= getattr(identity, name) < 2**31


# Code


def variables() -> list[str]:
    """Every variable of the agent, and the one that once named a directory with code."""
    names = [PREFIX + item.name.upper() for item in dataclasses.fields(Config)]
    return [*names, *SWITCHES, "TRACEML_OVERLAY_ROOT"]


def trap(directory: Path, marker: Path) -> None:
    """Modules under all names that the agent could be brought to import from there."""
    names = ["evil", "sitecustomize", "_traceml_boot", "orjson", "wrapt", "psutil", "traceml_agent"]
    directory.mkdir(exist_ok=True)
    for name in [*names, *variables()]:
        module = directory / f"{name}.py"
        module.write_text(f"open({str(marker)!r}, 'a').write({name!r} + ' ')\n")


@pytest.mark.parametrize("form", ["path", "function", "expression"])
def test_no_variable_of_the_agent_brings_code_into_the_program(tmp_path: Path, form: str) -> None:
    marker = tmp_path / "executed"
    tag = (sys.implementation.cache_tag or "") + sys.abiflags
    directory = tmp_path / "trap" / tag  # named as the directory of an overlay is
    directory.parent.mkdir()
    trap(directory, marker)
    value = {
        "path": str(directory),
        "function": "evil:main",
        "expression": f"__import__('os').system('touch {marker}')",
    }[form]
    values = dict.fromkeys(variables(), value)
    values |= {"TRACEML_ENABLE": "1", "TRACEML_DISABLE": "", "TRACEML_DISABLED": ""}
    values |= {"TRACEML_SKIP": "evil", "TRACEML_TEST_RAISE": "0"}
    result = run(tmp_path, write(tmp_path, TRAINING), **values)
    assert (result.returncode, result.stdout, result.other_stderr) == (0, "trained True\n", "")
    assert not marker.exists()


def test_the_overlay_takes_the_agent_from_beside_itself_whatever_the_variables_say(
    make_venv: Callable[..., Venv], tmp_path: Path
) -> None:
    bare = make_venv()
    marker = tmp_path / "executed"
    tag = (sys.implementation.cache_tag or "") + sys.abiflags
    laid, start, agent = tmp_path / "trap" / tag, tmp_path / "start", tmp_path / tag
    laid.parent.mkdir()
    trap(laid, marker)
    start.mkdir()
    own = REPOSITORY / "agent" / "sitecustomize" / "sitecustomize.py"
    (start / "sitecustomize.py").symlink_to(own)
    values = dict.fromkeys(variables(), str(laid))
    values |= {"TRACEML_ENABLE": "1", "TRACEML_DISABLE": "", "TRACEML_DISABLED": ""}
    code = "import sys; print('_traceml_boot' in sys.modules, sys.path[-1])"
    without = bare.run("-c", code, PYTHONPATH=str(start), **values)
    agent.mkdir()
    (agent / "_traceml_boot.py").symlink_to(REPOSITORY / "agent" / "_traceml_boot.py")
    (agent / "traceml_agent").symlink_to(REPOSITORY / "src" / "traceml_agent")
    beside = bare.run("-c", code, PYTHONPATH=str(start), **values)
    assert (without.stdout.split()[0], without.stderr) == ("False", "")
    assert (beside.stdout.split(), beside.stderr) == (["True", str(agent)], "")
    assert not marker.exists()


_EXECUTING = """
__import__ import_module exec eval compile execfile spec_from_file_location exec_module load_module
run_path run_module find_module entry_points iter_entry_points load addsitedir CDLL PyDLL
LoadLibrary
"""
EXECUTING = frozenset(_EXECUTING.split())
"""Functions that execute code which an argument names or holds."""
_STARTING = """
system popen Popen run call check_call check_output getoutput posix_spawn posix_spawnp spawnv
spawnve execv execve execvp execvpe execl execlp
"""
STARTING = frozenset(_STARTING.split())
"""Functions that start another program."""
_NETWORK = (
    "http urllib urllib3 requests httpx aiohttp asyncio socketserver xmlrpc ftplib smtplib ssl"
)
NETWORK = frozenset(_NETWORK.split())
MAY_START = {"src/traceml_agent/cli/child.py", "src/traceml_agent/cli/interpreter.py"}
"""The command that `run` and `doctor` were given, and the Python that it names."""
MAY_CHANGE_THE_PATH = {"agent/sitecustomize/sitecustomize.py", "src/traceml_agent/cli/probe.py"}
"""The overlay, which adds the directory that it lies in; the probe, which takes one away."""


def trees() -> dict[str, ast.Module]:
    """The source of the package and of the startup files."""
    paths = [
        path
        for root in (REPOSITORY / "src" / "traceml_agent", REPOSITORY / "agent")
        for path in sorted(root.rglob("*.py"))
    ]
    return {
        path.relative_to(REPOSITORY).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in paths
    }


def calls(tree: ast.Module) -> list[tuple[str, str, ast.Call]]:
    """Each call, with the object and the name that is called."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            owner, _, name = ast.unparse(node.func).rpartition(".")
            found.append((owner, name, node))
    return found


def fixed_names(tree: ast.Module) -> set[str]:
    """Variables of loops over strings that stand in the source."""
    return {
        node.target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.For)
        and isinstance(node.target, ast.Name)
        and isinstance(node.iter, (ast.Tuple, ast.List))
        and all(isinstance(item, ast.Constant) for item in node.iter.elts)
    }


def test_what_is_imported_or_executed_by_name_stands_in_the_source() -> None:
    wrong, seen = [], 0
    for file, tree in trees().items():
        for owner, name, call in calls(tree):
            if name not in EXECUTING or (owner, name) == ("re", "compile"):
                continue
            seen += 1
            argument = call.args[0] if call.args else None
            if isinstance(argument, ast.Constant):
                continue
            if not (isinstance(argument, ast.Name) and argument.id in fixed_names(tree)):
                wrong.append(f"{file}:{call.lineno}: {ast.unparse(call)}")
    assert wrong == []
    assert seen  # the search sees such calls at all


def test_other_programs_are_started_and_the_path_is_changed_where_that_is_the_task() -> None:
    starting, changing = set(), set()
    for file, tree in trees().items():
        for owner, name, _ in calls(tree):
            if name in STARTING and owner in ("os", "subprocess", "asyncio", "pty", "runpy"):
                starting.add(file)
            if owner == "sys.path" and name in ("append", "insert", "extend"):
                changing.add(file)
        for node in ast.walk(tree):
            targets = node.targets if isinstance(node, (ast.Assign, ast.Delete)) else []
            if any(ast.unparse(target).startswith("sys.path[") for target in targets):
                changing.add(file)
            if any(ast.unparse(target) == "sys.path" for target in targets):
                changing.add(file)
    assert starting == MAY_START
    assert changing == MAY_CHANGE_THE_PATH


def test_a_setting_is_a_number_a_word_or_the_directory_of_the_runs() -> None:
    """What a setting can hold: nothing that code could be found by, `dir` and its files aside."""
    kinds = get_type_hints(Config)
    assert kinds.pop("snapshots") is str
    assert resolve({"TRACEML_SNAPSHOTS": "os.system"}).config.snapshots == "watched"
    harmless = (bool, int, float, float | None, str | None, tuple[str, ...])
    assert [name for name, kind in kinds.items() if kind not in harmless] == ["dir"]
    assert kinds["dir"] == Path | None


def test_nothing_opens_a_connection_or_a_port() -> None:
    """In a training; a sink sends what a user asks it to send, from elsewhere."""
    wrong = []
    for file, tree in trees().items():
        for node in ast.walk(tree) if "/sinks/" not in file else ():
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            wrong += [f"{file}: {n}" for n in names if n.split(".")[0] in NETWORK]
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "socket":
                wrong += [f"{file}: socket.{node.attr}"] if node.attr != "gethostname" else []
    assert wrong == []
