"""The overlay that `traceml-agent run` puts on PYTHONPATH, in Pythons that do and do not fit."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.boot.conftest import CHILD_TIMEOUT_S, PYTHONS, REPOSITORY, Venv

OVERLAY = REPOSITORY / "agent" / "sitecustomize"
STARTED = "import sys; print('traceml_agent.startup' in sys.modules)"
OWN_TAG = (sys.implementation.cache_tag or "") + sys.abiflags


@pytest.fixture
def overlay_root(tmp_path: Path) -> Path:
    """A directory as `traceml-agent run` makes it, for the Python that runs the tests."""
    root = tmp_path / OWN_TAG
    root.mkdir()
    (root / "traceml_agent").symlink_to(REPOSITORY / "src" / "traceml_agent")
    (root / "_traceml_boot.py").symlink_to(REPOSITORY / "agent" / "_traceml_boot.py")
    start = tmp_path / "start"
    start.mkdir()
    (start / "sitecustomize.py").symlink_to(OVERLAY / "sitecustomize.py")
    return root


def overlaid(overlay_root: Path, *more_path: Path) -> dict[str, str]:
    """The variables that switch the overlay on."""
    return {
        "PYTHONPATH": os.pathsep.join(
            str(path) for path in (overlay_root.parent / "start", *more_path)
        ),
        "TRACEML_ENABLE": "1",
    }


def test_it_starts_the_agent_where_none_is_installed(
    make_venv: Callable[..., Venv], overlay_root: Path
) -> None:
    done = make_venv().run("-c", STARTED, **overlaid(overlay_root))
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_it_leaves_an_installed_agent_alone_and_the_path_as_it_was(
    venv: Venv, overlay_root: Path
) -> None:
    show = f"{STARTED}; print(sys.path); print(sys.modules['traceml_agent'].__file__)"
    plain = venv.run("-c", show, TRACEML_ENABLE="1")
    with_overlay = venv.run("-c", show, **overlaid(overlay_root))
    assert with_overlay.stdout == plain.stdout
    assert with_overlay.stderr == ""


def test_the_path_of_the_program_gains_only_its_last_entry(
    make_venv: Callable[..., Venv], overlay_root: Path
) -> None:
    venv = make_venv()
    show = "import sys, json; print(json.dumps(sys.path))"
    plain = venv.run("-c", show).stdout.strip()
    with_overlay = venv.run("-c", show, **overlaid(overlay_root)).stdout.strip()
    assert with_overlay == plain.removesuffix("]") + f', "{overlay_root}"]'


def test_it_is_not_started_when_switched_off(
    make_venv: Callable[..., Venv], overlay_root: Path
) -> None:
    variables = {**overlaid(overlay_root), "TRACEML_DISABLE": "1"}
    done = make_venv().run("-c", STARTED, **variables)
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.parametrize("name", ["sitecustomize", "usercustomize"])
def test_the_file_that_it_hides_still_runs_under_its_own_name(
    make_venv: Callable[..., Venv], overlay_root: Path, tmp_path: Path, name: str
) -> None:
    venv = make_venv()
    config = venv.path / "pyvenv.cfg"
    config.write_text(config.read_text().replace("packages = false", "packages = true"))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / f"{name}.py").write_text("import sys\nsys.ran = getattr(sys, 'ran', 0) + 1\n")
    code = f"import sys; print(sys.ran, sys.modules['{name}'].__file__); {STARTED}"
    done = venv.run("-c", code, **overlaid(overlay_root, mine))
    assert (done.stdout, done.stderr) == (f"1 {mine / name}.py\nTrue\n", "")


@pytest.mark.parametrize("fault", ["raise ValueError('mine')", "import no_such_module"])
def test_a_hidden_file_that_fails_fails_as_without_the_overlay(
    make_venv: Callable[..., Venv], overlay_root: Path, tmp_path: Path, fault: str
) -> None:
    venv = make_venv()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "sitecustomize.py").write_text(fault + "\n")
    show = "import sys; print('sitecustomize' in sys.modules)"
    plain = venv.run("-c", show, PYTHONPATH=str(mine))
    with_overlay = venv.run("-c", show, **overlaid(overlay_root, mine))
    assert plain.stderr
    assert (with_overlay.stdout, with_overlay.stderr) == (plain.stdout, plain.stderr)


@pytest.mark.parametrize("minor", [m for m in PYTHONS if PYTHONS[m] != Path(sys.executable)])
def test_inherited_by_a_python_of_another_version_it_is_silent(
    overlay_root: Path, tmp_path: Path, minor: str
) -> None:
    done = other_python(PYTHONS[minor], overlay_root, tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == ("result\nFalse\n", "", 0)


def test_inherited_by_a_python_too_old_for_the_agent_it_is_silent(
    overlay_root: Path, tmp_path: Path
) -> None:
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    old = [p for m in ("2.7.*", "3.6.*", "3.9.*") for p in versions.glob(f"{m}/bin/python")]
    if not old:
        pytest.skip("no Python older than 3.10 on this machine")
    for python in old:
        done = other_python(python, overlay_root, tmp_path)
        assert (done.stdout, done.stderr, done.returncode) == ("result\nFalse\n", "", 0), python


def test_when_its_directory_is_gone_it_is_silent(
    make_venv: Callable[..., Venv], overlay_root: Path
) -> None:
    for file in overlay_root.iterdir():
        file.unlink()
    venv = make_venv()
    emptied = venv.run("-c", STARTED, **overlaid(overlay_root))
    assert (emptied.stdout, emptied.stderr) == ("False\n", "")
    overlay_root.rmdir()
    gone = venv.run("-c", STARTED, **overlaid(overlay_root))
    assert (gone.stdout, gone.stderr) == ("False\n", "")


def other_python(
    python: Path, overlay_root: Path, home: Path
) -> "subprocess.CompletedProcess[str]":
    """A program in another Python under the same variables."""
    return subprocess.run(
        [str(python), "-c", f"print('result'); {STARTED}"],
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(home),
            "PYTHONDONTWRITEBYTECODE": "1",  # Python 2 writes beside the source
            **overlaid(overlay_root),
        },
        capture_output=True,
        text=True,
        timeout=CHILD_TIMEOUT_S,
        check=False,
    )
