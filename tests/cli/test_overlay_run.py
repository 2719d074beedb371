"""`traceml-agent run` where the Python of the command does not have the agent."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.boot.conftest import PYTHONS, SUPPORTED
from tests.cli.conftest import Cli

STARTED = "import sys; print('traceml_agent.startup' in sys.modules)"
MakeVenv = Callable[..., Path]


@pytest.fixture
def make_venv(tmp_path: Path) -> MakeVenv:
    """An empty environment of a Python; returns its interpreter."""

    def make(python: Path = Path(sys.executable)) -> Path:
        path = tmp_path / "bare"
        subprocess.run(
            [str(python), "-m", "venv", "--without-pip", str(path)], check=True, timeout=60
        )
        return path / "bin" / "python"

    return make


def test_the_agent_is_laid_over_a_python_that_has_none(cli: Cli, make_venv: MakeVenv) -> None:
    done = cli("run", "--", str(make_venv()), "-c", STARTED)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_all_that_recording_needs_can_be_imported_there(cli: Cli, make_venv: MakeVenv) -> None:
    code = "import wrapt, psutil, orjson, platformdirs, pynvml, traceml_agent.capture.steps"
    done = cli("run", "--", str(make_venv()), "-c", code)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_shell_script_is_overlaid_too(cli: Cli, make_venv: MakeVenv, tmp_path: Path) -> None:
    script = tmp_path / "train.sh"
    script.write_text(f'"{make_venv()}" -c "{STARTED}"\n')
    assert cli("run", "--", "sh", str(script)).stdout == "True\n"


def test_a_path_of_the_user_still_counts(cli: Cli, make_venv: MakeVenv, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "sitecustomize.py").write_text("import sys; sys.mine = 'ran'\n")
    (tmp_path / "mine" / "module.py").write_text("name = 'mine'\n")
    code = f"import module, sys; print(module.name, sys.mine); {STARTED}"
    done = cli("run", "--", str(make_venv()), "-c", code, PYTHONPATH=str(tmp_path / "mine"))
    assert done.stdout == "mine ran\nTrue\n"


def test_the_overlay_is_gone_afterwards(
    cli: Cli, make_venv: MakeVenv, environ: dict[str, str]
) -> None:
    python = str(make_venv())
    cli("run", "--", python, "-c", STARTED)
    cli("run", "--", python, "-c", "import os; os.kill(os.getpid(), 9)")
    assert not list(Path(environ["TMPDIR"]).glob("traceml-overlay-*"))


@pytest.mark.parametrize("minor", [m for m in SUPPORTED if PYTHONS[m] != Path(sys.executable)])
def test_another_version_runs_unrecorded_and_one_line_says_why(
    cli: Cli, make_venv: MakeVenv, minor: str
) -> None:
    python = make_venv(PYTHONS[minor])
    done = cli("run", "--", str(python), "-c", f"{STARTED}; raise SystemExit(5)")
    assert (done.stdout, done.returncode) == ("False\n", 5)
    (line,) = done.stderr.splitlines()
    assert line.startswith("traceml: nothing is recorded: ")
    assert f"{python} -m pip install traceml-agent" in line


@pytest.mark.parametrize("option", ["-S", "-E", "-I"])
def test_options_that_shut_the_overlay_out_are_named(
    cli: Cli, make_venv: MakeVenv, option: str
) -> None:
    done = cli("run", "--", str(make_venv()), option, "-c", STARTED)
    assert done.stdout == "False\n"
    (line,) = done.stderr.splitlines()
    assert line.startswith("traceml: nothing is recorded: ")
    assert option in line


def test_where_no_directory_can_be_made_the_command_still_runs(
    cli: Cli, make_venv: MakeVenv, tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can hide /tmp from a child")
    python = make_venv()
    done = cli("run", "--", str(python), "-c", "print('result')", TMPDIR=str(tmp_path / "gone"))
    assert (done.stdout, done.returncode) == ("result\n", 0)
