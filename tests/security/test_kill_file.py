"""A file forbids recording for all users of a machine or an environment, and wins over all else."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.boot.conftest import (
    REPOSITORY,
    Venv,
    command_line,
    modules_of_agent,
)
from tests.e2e.harness import environment, write

LIST_MODULES = "import sys; print(*sys.modules)"
STARTED = "import sys; print('traceml_agent.startup' in sys.modules)"
KILL_FILE = "etc/traceml-agent/disable"
_MOVING = """
HOME XDG_CONFIG_HOME XDG_CONFIG_DIRS PREFIX VIRTUAL_ENV CONDA_PREFIX PYTHONUSERBASE TMPDIR
PYTHONEXECUTABLE __PYVENV_LAUNCHER__ TRACEML_DIR TRACEML_HOME TRACEML_KILL_FILE TRACEML_CONFIG
"""
MOVING = _MOVING.split()
"""Variables that move other files of other programs, or sound as if they did."""
TRAINING = """
import torch
from torch import nn
model = nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
print("trained")
"""


def forbid(venv: Venv) -> Path:
    """Puts the file into the environment."""
    path = venv.path / KILL_FILE
    path.parent.mkdir(parents=True)
    path.touch()
    return path


@pytest.fixture
def ready(venv: Venv) -> Venv:
    """An environment in which a training would be recorded."""
    venv.link_dependencies()
    (venv.site_packages / "torch.py").write_text("__version__ = '2.13.0'\n")
    return venv


def test_the_file_of_an_environment_wins_silently_over_every_value(venv: Venv) -> None:
    assert venv.run("-c", STARTED, TRACEML_ENABLE="1").stdout == "True\n"
    path = forbid(venv)
    for value in ("1", "force", "on", "treu"):
        done = venv.run("-c", LIST_MODULES, TRACEML_ENABLE=value, TRACEML_DISABLE="0")
        assert modules_of_agent(done.stdout) == ["_traceml_boot"]
        assert done.stderr == ""
    path.unlink()
    assert venv.run("-c", STARTED, TRACEML_ENABLE="1").stdout == "True\n"


def test_no_variable_moves_the_file_of_an_environment(venv: Venv, tmp_path: Path) -> None:
    forbid(venv)
    for name in MOVING:
        done = venv.run("-c", STARTED, TRACEML_ENABLE="force", **{name: str(tmp_path)})
        assert (name, done.stdout) == (name, "False\n")
    # This one names another Python altogether: the agent of this environment is then not there.
    base = venv.run("-c", "import sys; print(sys.base_prefix)").stdout.strip()
    done = venv.run("-c", STARTED, TRACEML_ENABLE="force", PYTHONHOME=base)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("kind", ["directory", "dangling link"])
def test_whatever_bears_the_name_forbids(venv: Venv, kind: str) -> None:
    path = forbid(venv)
    path.unlink()
    if kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/nowhere")
    assert venv.run("-c", STARTED, TRACEML_ENABLE="1").stdout == "False\n"


def test_a_file_in_the_place_of_its_directory_forbids_nothing(venv: Venv) -> None:
    (venv.path / "etc").touch()
    done = venv.run("-c", STARTED, TRACEML_ENABLE="1")
    assert (done.stdout, done.stderr) == ("True\n", "")


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone is not kept out of a directory")
def test_a_directory_that_may_not_be_looked_into_forbids(venv: Venv, tmp_path: Path) -> None:
    path = forbid(venv)
    path.unlink()
    path.parent.chmod(0o700)
    for directory in (*tmp_path.parents, tmp_path, venv.path):
        if directory.stat().st_uid == 0 and directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o055)
    ask = "import os, sys, _traceml_boot; {}; print(_traceml_boot.kill_file(sys.prefix))"
    as_nobody = venv.run("-c", ask.format("os.setuid(65534)"))
    as_root = venv.run("-c", ask.format("pass"))
    assert (as_root.stdout, as_nobody.stdout) == ("None\n", f"{path}\n")


def test_a_python_that_an_overlay_gives_the_agent_to_obeys_its_own_file(
    make_venv: Callable[..., Venv], tmp_path: Path
) -> None:
    bare = make_venv()
    tag = (sys.implementation.cache_tag or "") + sys.abiflags
    packages, start = tmp_path / tag, tmp_path / "start"
    packages.mkdir()
    start.mkdir()
    (packages / "traceml_agent").symlink_to(REPOSITORY / "src" / "traceml_agent")
    (packages / "_traceml_boot.py").symlink_to(REPOSITORY / "agent" / "_traceml_boot.py")
    own = REPOSITORY / "agent" / "sitecustomize" / "sitecustomize.py"
    (start / "sitecustomize.py").symlink_to(own)
    variables = {"PYTHONPATH": str(start), "TRACEML_ENABLE": "force"}
    assert bare.run("-c", STARTED, **variables).stdout == "True\n"
    forbid(bare)
    assert bare.run("-c", STARTED, **variables).stdout == "False\n"


def test_it_is_looked_for_only_when_the_agent_is_switched_on(venv: Venv) -> None:
    count = (
        "import os, _traceml_boot; seen = []; look = os.lstat; "
        "os.lstat = lambda path: (seen.append(path), look(path)); "
        "os.environ.update(TRACEML_ENABLE={!r}, TRACEML_DISABLE={!r}); "
        "print(_traceml_boot.refusal(), *seen)"
    )
    own = f"{venv.path}/{KILL_FILE}"
    for enable, disable, said in (
        ("", "", "not enabled"),
        ("1", "1", "disabled"),
        ("1", "", f"None /{KILL_FILE} {own}"),
    ):
        assert venv.run("-c", count.format(enable, disable)).stdout == f"{said}\n"
    forbid(venv)
    assert venv.run("-c", count.format("1", "")).stdout.startswith("forbidden ")


def test_doctor_names_the_file_before_all_that_a_user_could_change(
    ready: Venv, tmp_path: Path
) -> None:
    python = str(ready.python)
    assert command_line(tmp_path, "doctor", "--", python, "t.py", TRACEML_ENABLE="1").stdout
    path = forbid(ready)
    for variables in ({"TRACEML_ENABLE": "1"}, {"TRACEML_ENABLE": "force"}, {}):
        done = command_line(tmp_path, "doctor", "--", python, "t.py", **variables)
        verdict, fix = done.stdout.splitlines()[:2]
        assert verdict.startswith("verdict: would not record: an administrator forbids")
        assert (str(path) in verdict, str(path) in fix) == (True, True)
        assert done.returncode == 1


def test_run_says_so_in_one_line_and_runs_the_command(ready: Venv, tmp_path: Path) -> None:
    path = forbid(ready)
    done = command_line(tmp_path, "run", str(ready.python), "-c", f"{STARTED}; sys.exit(3)")
    assert (done.returncode, done.stdout) == (3, "False\n")
    assert done.stderr.splitlines() == [
        f"traceml: an administrator forbids recording: {path} exists, so nothing is recorded"
    ]


def test_the_file_of_the_machine_forbids_a_training_and_all_else_is_as_without_the_agent(
    own_etc: list[str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [*own_etc, sys.executable, write(tmp_path, TRAINING)],
        env=environment(tmp_path, True, TRACEML_ENABLE="force"),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "trained\n", "")
    assert not (tmp_path / "runs").exists()


def test_the_file_of_the_machine_is_named_by_doctor_and_run(
    own_etc: list[str], tmp_path: Path
) -> None:
    script = tmp_path / "train.sh"
    script.write_text(f'{sys.executable} -c "{STARTED}"\n')
    answers = []
    for command in (["doctor", "--", sys.executable, "t.py"], ["run", "sh", str(script)]):
        done = subprocess.run(
            [*own_etc, sys.executable, "-m", "traceml_agent", *command],
            env=environment(tmp_path, True),
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        answers.append((done.stdout.splitlines(), done.stderr))
    (verdict, *_), _ = answers[0]
    assert f"administrator forbids recording here: /{KILL_FILE} exists" in verdict
    assert answers[1] == (
        ["False"],
        f"traceml: an administrator forbids recording: /{KILL_FILE} exists, so nothing is "
        "recorded\n",
    )
