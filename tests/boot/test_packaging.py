"""What an installation puts where, and what an uninstallation leaves."""

import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.boot.conftest import REPOSITORY, STARTUP_FILES, Venv, run


def files_of(venv: Venv) -> set[str]:
    """Every file below site-packages, without byte code."""
    return {
        str(path.relative_to(venv.site_packages))
        for path in venv.site_packages.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_records_the_startup_files_at_its_root(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        record = next(name for name in archive.namelist() if name.endswith("/RECORD"))
        listed = {line.split(",")[0] for line in archive.read(record).decode().splitlines()}
    assert set(STARTUP_FILES) <= listed
    assert "_traceml_overlay/sitecustomize.py" in listed


def test_the_start_file_has_the_stem_of_the_pth_file_and_names_the_same_function(
    wheel: Path,
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        entry_point = archive.read("traceml_agent.start").decode("utf-8").strip()
        line = archive.read("traceml_agent.pth").decode("utf-8")
    module, _, function = entry_point.partition(":")
    assert (module, function) == ("_traceml_boot", "start")
    assert f'__import__("{module}").{function}()' in line


def test_the_pth_file_is_one_line_that_python_executes(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        lines = archive.read("traceml_agent.pth").decode("ascii").splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("import ")


@pytest.mark.parametrize("editable", [False, True])
def test_uninstalling_leaves_no_file(
    make_venv: Callable[..., Venv], wheel: Path, editable: bool
) -> None:
    venv = make_venv()
    (venv.site_packages / "neighbour.py").touch()  # pip removes directories that become empty
    before = files_of(venv)
    if editable:
        venv.install("-e", str(REPOSITORY))
    else:
        venv.install(str(wheel))
    assert set(STARTUP_FILES) <= files_of(venv)
    venv.run("-c", "pass", TRACEML_ENABLE="1")  # byte code of the boot module is a file too
    pip = [sys.executable, "-m", "pip", "--python", str(venv.python)]
    run([*pip, "uninstall", "-y", "traceml-agent"], os.environ)
    assert files_of(venv) == before
    assert not list(venv.site_packages.rglob("*traceml*"))


def test_an_editable_install_starts_the_agent_too(make_venv: Callable[..., Venv]) -> None:
    venv = make_venv()
    venv.install("-e", str(REPOSITORY))
    done = venv.run(
        "-c", "import sys; print('traceml_agent.startup' in sys.modules)", TRACEML_ENABLE="1"
    )
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_the_wheel_holds_no_tests_and_no_paths_of_the_builder(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        texts = [archive.read(name) for name in names]
    assert not [name for name in names if name.startswith(("tests", "examples", "docs"))]
    assert not [n for n, t in zip(names, texts, strict=True) if str(REPOSITORY).encode() in t]
