"""The command line as a whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from traceml_agent.cli import COMMANDS
from traceml_agent.version import __version__


def test_help_names_every_command(cli: Cli) -> None:
    done = cli("--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert command.name in done.stdout
        assert command.sentence in " ".join(done.stdout.split())


def test_version_is_printed(cli: Cli) -> None:
    assert cli("--version").stdout == f"traceml-agent {__version__}\n"


def test_the_console_command_is_the_module(environ: dict[str, str]) -> None:
    script = Path(sys.executable).with_name("traceml-agent")
    if not script.exists():
        pytest.skip("not installed as a console command")
    done = subprocess.run(
        [str(script), "--version"], env=environ, capture_output=True, text=True, check=False
    )
    assert done.stdout == f"traceml-agent {__version__}\n"


@pytest.mark.parametrize("arguments", [(), ("nonsense",), ("view", "--no-such-option")])
def test_wrong_usage_is_exit_code_2(cli: Cli, arguments: tuple[str, ...]) -> None:
    done = cli(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage:" in done.stderr


@pytest.mark.parametrize("command", ["view", "runs", "config", "doctor", "fold", "run"])
def test_no_command_imports_torch(environ: dict[str, str], tmp_path: Path, command: str) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    arguments = {
        "fold": ["fold", "x"],
        "run": ["run", "--", "true"],
        "doctor": ["doctor", "--help"],
    }
    code = (
        "import sys; from traceml_agent.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as error:\n    assert 'torch' not in str(error), error\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments.get(command, [command])],
        env={**environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_command_line_itself_is_never_recorded(cli: Cli, environ: dict[str, str]) -> None:
    done = cli("runs", TRACEML_ENABLE="1")
    assert done.returncode == 0
    assert os.listdir(environ["TRACEML_DIR"]) == []
