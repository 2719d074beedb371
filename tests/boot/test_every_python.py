"""The command line, the spool reader and the fold on each supported Python of this machine."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.boot.conftest import CHILD_TIMEOUT_S, PYTHONS, SUPPORTED, Venv, installer
from tests.cli.conftest import MakeRun, make_run, runs_dir

__all__ = ["make_run", "runs_dir"]

DEPENDENCIES = ("wrapt", "psutil", "nvidia-ml-py", "orjson", "platformdirs")


@pytest.fixture(scope="module", params=SUPPORTED)
def complete_venv(
    request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Venv:
    """An environment with the wheel and its dependencies, and without torch."""
    base = tmp_path_factory.mktemp(f"complete{request.param}")
    command = [str(PYTHONS[request.param]), "-m", "venv", "--without-pip", str(base / "venv")]
    subprocess.run(command, check=True, timeout=60)
    venv = Venv(base / "venv", base)
    venv.install(str(wheel))
    done = subprocess.run(
        [*installer(venv.python), *DEPENDENCIES],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode != 0 and not os.environ.get("CI"):
        pytest.skip(f"the dependencies cannot be installed: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr
    return venv


def agent(venv: Venv, runs: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """The installed console command."""
    return subprocess.run(
        [str(venv.path / "bin" / "traceml-agent"), *arguments],
        env=venv.environ(TRACEML_DIR=str(runs)),
        cwd=venv.home,
        capture_output=True,
        text=True,
        timeout=CHILD_TIMEOUT_S,
        check=False,
    )


def test_it_folds_views_and_lists_without_torch(
    complete_venv: Venv, make_run: MakeRun, runs_dir: Path
) -> None:
    make_run("one", ended=False)
    viewed = agent(complete_venv, runs_dir, "view", "--json")
    assert viewed.returncode == 0, viewed.stderr
    assert json.loads(viewed.stdout)["primary_diagnosis"]["kind"] == "INPUT_BOUND"
    assert agent(complete_venv, runs_dir, "fold", "one").returncode == 0
    (entry,) = json.loads(agent(complete_venv, runs_dir, "runs", "--json").stdout)
    assert (entry["run_id"], entry["status"], entry["steps"]) == ("one", "killed", 60)


def test_it_runs_a_command_and_explains_itself(complete_venv: Venv, runs_dir: Path) -> None:
    ran = agent(complete_venv, runs_dir, "run", "--", "python", "-c", "raise SystemExit(3)")
    assert (ran.returncode, ran.stdout, ran.stderr) == (3, "", "")
    doctor = agent(complete_venv, runs_dir, "doctor", "--", "python", "train.py")
    assert doctor.returncode == 1
    assert doctor.stdout.startswith("verdict: would not record: ")
    assert "has no torch" in doctor.stdout
    config = agent(complete_venv, runs_dir, "config")
    assert f"TRACEML_DIR = {runs_dir}  [TRACEML_DIR]" in config.stdout.splitlines()


def test_every_module_can_be_imported_and_none_imports_torch(complete_venv: Venv) -> None:
    code = (
        "import importlib, pkgutil, sys, traceml_agent\n"
        "for module in pkgutil.walk_packages(traceml_agent.__path__, 'traceml_agent.'):\n"
        "    if not module.name.endswith(('__main__', '.probe')):\n"
        "        importlib.import_module(module.name)\n"
        "assert 'torch' not in sys.modules\n"
        "print('all')\n"
    )
    done = complete_venv.run("-W", "error", "-c", code)
    assert (done.stdout, done.stderr) == ("all\n", "")
