"""What the startup line does, and what it never does, in real interpreters."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.boot.conftest import CHILD_TIMEOUT_S, Venv, modules_of_agent

LIST_MODULES = "import sys; print(*sys.modules)"
STARTED = "import sys; print('traceml_agent.startup' in sys.modules)"
COUNT_SENTINELS = (
    "import sys; print([type(finder).__name__ for finder in sys.meta_path].count('Sentinel'))"
)


def test_the_line_runs_twice_in_a_venv_and_starts_once(venv: Venv) -> None:
    (venv.site_packages / "count.pth").write_text(
        "import sys; sys.line_runs = getattr(sys, 'line_runs', 0) + 1\n"
    )
    done = venv.run("-c", f"{COUNT_SENTINELS}; print(sys.line_runs)", TRACEML_ENABLE="1")
    sentinels, line_runs = done.stdout.split()
    assert sentinels == "1"
    assert int(line_runs) >= 1


def test_a_second_startup_file_starts_nothing_a_second_time(any_venv: Venv) -> None:
    again = f"import _traceml_boot; _traceml_boot.start(); {COUNT_SENTINELS}"
    assert any_venv.run("-c", again, TRACEML_ENABLE="1").stdout == "1\n"


def test_switched_on_it_waits_with_standard_library_modules_only(any_venv: Venv) -> None:
    done = any_venv.run("-c", LIST_MODULES, TRACEML_ENABLE="1")
    assert modules_of_agent(done.stdout) == [
        "_traceml_boot",
        "traceml_agent",
        "traceml_agent.startup",
        "traceml_agent.version",
    ]
    assert done.stderr == ""


def test_waiting_for_torch_imports_nothing_that_takes_long(venv: Venv) -> None:
    without, waiting = (
        set(venv.run("-c", LIST_MODULES, **variables).stdout.split())
        for variables in ({}, {"TRACEML_ENABLE": "1"})
    )
    own = set(modules_of_agent("\n".join(waiting)))
    assert waiting - without - own <= {"__future__"}


@pytest.mark.parametrize("value", [None, "", "0"])
def test_switched_off_not_even_the_boot_module_is_imported(
    any_venv: Venv, value: str | None
) -> None:
    variables = {} if value is None else {"TRACEML_ENABLE": value}
    done = any_venv.run("-c", LIST_MODULES, **variables)
    assert modules_of_agent(done.stdout) == []
    assert done.stderr == ""


@pytest.mark.parametrize("value", ["false", "no", "off", "False", " 0 "])
def test_words_for_off_import_the_boot_module_alone(venv: Venv, value: str) -> None:
    done = venv.run("-c", LIST_MODULES, TRACEML_ENABLE=value)
    assert modules_of_agent(done.stdout) == ["_traceml_boot"]
    assert done.stderr == ""


@pytest.mark.parametrize("value", ["1", "true", "YES", " on ", "force"])
def test_words_for_on_start_the_agent(venv: Venv, value: str) -> None:
    assert venv.run("-c", STARTED, TRACEML_ENABLE=value).stdout == "True\n"


def test_an_unknown_value_is_off_and_one_line_names_the_accepted_ones(any_venv: Venv) -> None:
    done = any_venv.run("-c", STARTED, TRACEML_ENABLE="treu")
    assert done.stdout == "False\n"
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("traceml: TRACEML_ENABLE='treu'")
    assert "1, true, yes, on, force" in done.stderr


@pytest.mark.parametrize("name", ["TRACEML_DISABLE", "TRACEML_DISABLED"])
@pytest.mark.parametrize("enable", ["1", "force"])
def test_disable_wins(venv: Venv, name: str, enable: str) -> None:
    done = venv.run("-c", STARTED, TRACEML_ENABLE=enable, **{name: "1"})
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_disable_set_to_no_does_not_disable(venv: Venv) -> None:
    done = venv.run("-c", STARTED, TRACEML_ENABLE="1", TRACEML_DISABLE="0")
    assert done.stdout == "True\n"


@pytest.mark.parametrize(
    "fault",
    [
        "raise SystemExit(7)",
        "raise KeyboardInterrupt",
        "raise RuntimeError('broken')",
        "def activate():\n    raise SystemExit(7)",
        "this is no Python",
    ],
)
def test_a_fault_at_the_start_leaves_output_and_exit_code_of_the_program(
    venv: Venv, fault: str
) -> None:
    (venv.site_packages / "traceml_agent" / "startup.py").write_text(fault + "\n")
    done = venv.run("-c", "print('result'); raise SystemExit(3)", TRACEML_ENABLE="1")
    assert (done.stdout, done.returncode) == ("result\n", 3)
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("traceml: not started: ")


def test_without_the_package_the_line_left_behind_is_silent_when_off(venv: Venv) -> None:
    (venv.site_packages / "traceml_agent").rename(venv.site_packages / "gone")
    done = venv.run("-c", "print('result')")
    assert (done.stdout, done.stderr, done.returncode) == ("result\n", "", 0)


def test_without_the_package_one_line_says_so_when_on(venv: Venv) -> None:
    (venv.site_packages / "traceml_agent").rename(venv.site_packages / "gone")
    done = venv.run("-c", "print('result')", TRACEML_ENABLE="1")
    assert (done.stdout, done.returncode) == ("result\n", 0)
    assert done.stderr.splitlines() == [
        "traceml: not started: ModuleNotFoundError: No module named 'traceml_agent'"
    ]


def test_without_the_boot_module_python_still_runs(venv: Venv) -> None:
    (venv.site_packages / "_traceml_boot.py").unlink()
    done = venv.run("-c", "print('result')", TRACEML_ENABLE="1")
    assert (done.stdout, done.returncode) == ("result\n", 0)


def test_python_without_site_starts_nothing(any_venv: Venv) -> None:
    done = any_venv.run("-S", "-c", STARTED, TRACEML_ENABLE="1")
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.parametrize("option", ["-I", "-E"])
def test_isolated_python_needs_force(any_venv: Venv, option: str) -> None:
    with_one = any_venv.run(option, "-c", STARTED, TRACEML_ENABLE="1")
    with_force = any_venv.run(option, "-c", STARTED, TRACEML_ENABLE="force")
    assert (with_one.stdout, with_force.stdout) == ("False\n", "True\n")
    assert with_one.stderr == ""


@pytest.mark.parametrize("options", [("-s",), ("-u",), ("-O",), ("-X", "dev"), ("-W", "error")])
def test_other_options_of_python_do_not_matter(venv: Venv, options: tuple[str, ...]) -> None:
    done = venv.run(*options, "-c", STARTED, TRACEML_ENABLE="1")
    assert (done.stdout, done.stderr) == ("True\n", "")


@pytest.mark.parametrize("name", ["sitecustomize", "usercustomize"])
def test_customize_modules_of_the_user_still_run(venv: Venv, name: str) -> None:
    # usercustomize is looked for on the whole path, in a venv only if user sites are enabled.
    (venv.path / "pyvenv.cfg").write_text(
        (venv.path / "pyvenv.cfg")
        .read_text()
        .replace("include-system-site-packages = false", "include-system-site-packages = true")
    )
    (venv.site_packages / f"{name}.py").write_text("import sys\nsys.users_file_ran = True\n")
    code = f"import sys; print(getattr(sys, 'users_file_ran', False)); {STARTED}"
    assert venv.run("-c", code, TRACEML_ENABLE="1").stdout == "True\nTrue\n"


def test_files_of_the_user_named_like_the_standard_library_are_not_executed(venv: Venv) -> None:
    for name in ("statistics", "queue", "platform", "json", "socket", "threading"):
        (venv.home / f"{name}.py").write_text(f"raise SystemExit('{name} of the user ran')\n")
    (venv.home / "train.py").write_text(STARTED)
    done = venv.run(str(venv.home / "train.py"), TRACEML_ENABLE="1")
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_read_only_site_packages_and_no_home_do_not_matter(venv: Venv) -> None:
    for path in (venv.site_packages, venv.site_packages / "traceml_agent"):
        path.chmod(0o555)
    environ = venv.environ(TRACEML_ENABLE="1")
    del environ["HOME"], environ["TRACEML_DIR"]
    try:
        done = subprocess.run(
            [str(venv.python), "-c", STARTED],
            env=environ,
            capture_output=True,
            text=True,
            timeout=CHILD_TIMEOUT_S,
            check=False,
        )
    finally:
        for path in (venv.site_packages, venv.site_packages / "traceml_agent"):
            path.chmod(0o755)
    assert (done.stdout, done.stderr, done.returncode) == ("True\n", "", 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_package_that_may_not_be_read_leaves_the_program_alone(
    venv: Venv, tmp_path: Path
) -> None:
    """An image built under umask 077 and run by an ordinary user."""
    (venv.site_packages / "traceml_agent").chmod(0o700)
    for directory in (*tmp_path.parents, tmp_path, venv.path):
        if directory.stat().st_uid == 0 and directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o055)
    done = venv.run(
        "-c",
        "import os, sys, site; os.setuid(65534); import _traceml_boot; _traceml_boot._started = "
        "False; os.environ['TRACEML_ENABLE'] = '1'; _traceml_boot.start(); print('result')",
    )
    assert (done.stdout, done.returncode) == ("result\n", 0)
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("traceml: not started: ")


def test_closed_stderr_is_no_error_and_nothing_goes_to_stdout(any_venv: Venv) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f"exec '{any_venv.python}' -c 'print(\"result\")' 2>&-"],
        env=any_venv.environ(TRACEML_ENABLE="treu"),
        stdout=subprocess.PIPE,
        text=True,
        timeout=CHILD_TIMEOUT_S,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("result\n", 0)


def test_a_program_without_stderr_is_not_disturbed(venv: Venv) -> None:
    code = (
        "import sys, os; sys.stderr = None; os.environ['TRACEML_ENABLE'] = 'treu'; "
        "import _traceml_boot; _traceml_boot.start(); print('result')"
    )
    done = venv.run("-c", code)
    assert (done.stdout, done.returncode) == ("result\n", 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a setuid interpreter")
def test_an_interpreter_with_the_rights_of_another_user_starts_nothing(
    venv: Venv, tmp_path: Path
) -> None:
    for directory in (*tmp_path.parents, tmp_path, venv.path, venv.path / "bin"):
        if directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o055)
    setuid_python = venv.path / "bin" / "setuid-python"
    setuid_python.write_bytes(Path(sys.executable).resolve().read_bytes())
    setuid_python.chmod(0o4755)
    done = subprocess.run(
        [str(setuid_python), "-c", f"import os; print(os.getuid() != os.geteuid()); {STARTED}"],
        env=venv.environ(TRACEML_ENABLE="force"),
        capture_output=True,
        text=True,
        timeout=CHILD_TIMEOUT_S,
        check=False,
        user=65534,
    )
    if not done.stdout.startswith("True"):
        pytest.skip(f"this file system knows no setuid: {done.stderr}")
    assert setuid_python.stat().st_mode & stat.S_ISUID
    assert done.stdout == "True\nFalse\n"


def test_children_that_never_import_torch_write_no_file(any_venv: Venv) -> None:
    done = any_venv.run("-c", "print('result')", TRACEML_ENABLE="1")
    assert (done.stdout, done.stderr) == ("result\n", "")
    assert not (any_venv.home / "runs").exists()
