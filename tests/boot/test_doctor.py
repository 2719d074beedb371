"""`traceml-agent doctor`: one verdict and one fix, true of the very interpreter that would run."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.boot.conftest import PYTHONS, SUPPORTED, Venv, command_line

MakeVenv = Callable[..., Venv]
FAKE_TORCH = "__version__ = '2.13.0'\n"


class Answer:
    """What `doctor` printed."""

    def __init__(self, done: "subprocess.CompletedProcess[str]") -> None:
        # The agent in the command line's own Python may speak too, of the same variables.
        assert all(line.startswith("traceml: ") for line in done.stderr.splitlines())
        lines = done.stdout.splitlines()
        assert lines[0].startswith("verdict: ")
        assert lines[1].startswith("fix: ")
        assert all(line.startswith("  ") for line in lines[2:])
        self.verdict = lines[0].removeprefix("verdict: ")
        self.fix = lines[1].removeprefix("fix: ")
        self.facts = "\n".join(lines[2:])
        self.records = done.returncode == 0
        assert done.returncode in (0, 1)
        assert self.verdict.startswith("would record: " if self.records else "would not record: ")


def doctor(tmp_path: Path, *command: str, **variables: str) -> Answer:
    """Asks about a command, with the command line of the Python that runs the tests."""
    asked = ("doctor", *(("--", *command) if command else ()))
    done = command_line(tmp_path, *asked, **variables)
    return Answer(done)


@pytest.fixture
def ready(venv: Venv) -> Venv:
    """An environment in which a training would be recorded."""
    venv.link_dependencies()
    (venv.site_packages / "torch.py").write_text(FAKE_TORCH)
    return venv


def test_an_environment_that_has_all_would_record(ready: Venv, tmp_path: Path) -> None:
    answer = doctor(tmp_path, str(ready.python), "train.py", TRACEML_ENABLE="1")
    assert answer.records
    assert f"torch 2.13.0 in {ready.python}" in answer.verdict
    assert answer.fix == "nothing to do"
    assert str(tmp_path / "runs") in answer.facts


def test_the_verdict_agrees_with_the_run_itself(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    answer = doctor(tmp_path, sys.executable, "train.py", TRACEML_ENABLE="1")
    assert answer.records, answer.verdict


def test_asking_leaves_no_file_behind(ready: Venv, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*.jsonl"))
    doctor(tmp_path, str(ready.python), "train.py", TRACEML_ENABLE="1")
    assert sorted(tmp_path.rglob("*.jsonl")) == before
    assert not (tmp_path / "runs").exists()


def test_not_switched_on_is_the_last_obstacle(ready: Venv, tmp_path: Path) -> None:
    answer = doctor(tmp_path, str(ready.python), "train.py", "--lr", "0.1")
    assert not answer.records
    assert "TRACEML_ENABLE is not set; all else is in place" in answer.verdict
    assert answer.fix == f"TRACEML_ENABLE=1 {ready.python} train.py --lr 0.1"


def test_without_a_command_the_python_on_path_is_asked_as_if_switched_on(
    ready: Venv, tmp_path: Path
) -> None:
    answer = doctor(tmp_path, PATH=f"{ready.path / 'bin'}:/usr/bin:/bin")
    assert answer.records, answer.verdict


def test_a_variable_in_the_command_counts(ready: Venv, tmp_path: Path) -> None:
    python = str(ready.python)
    assert doctor(tmp_path, "env", "TRACEML_ENABLE=1", python, "t.py").records
    assert doctor(tmp_path, "TRACEML_ENABLE=1", python, "t.py").records
    emptied = doctor(tmp_path, "env", "-u", "TRACEML_ENABLE", python, "t.py", TRACEML_ENABLE="1")
    assert "TRACEML_ENABLE is not set" in emptied.verdict


def test_not_installed_names_the_interpreter(make_venv: MakeVenv, tmp_path: Path) -> None:
    bare = make_venv()
    answer = doctor(tmp_path, str(bare.python), "train.py", TRACEML_ENABLE="1")
    assert f"not installed for {bare.python}" in answer.verdict
    assert answer.fix.startswith(f"{bare.python} -m pip install traceml-agent")
    assert f"traceml-agent run {bare.python} train.py" in answer.fix


@pytest.mark.parametrize("minor", [m for m in SUPPORTED if PYTHONS[m] != Path(sys.executable)])
def test_for_another_version_only_an_installation_helps(
    make_venv: MakeVenv, tmp_path: Path, minor: str
) -> None:
    bare = make_venv(PYTHONS[minor])
    answer = doctor(tmp_path, str(bare.python), "train.py", TRACEML_ENABLE="1")
    assert answer.fix == f"{bare.python} -m pip install traceml-agent"


def test_a_python_too_old_is_named_with_its_version(tmp_path: Path) -> None:
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    old = [p for m in ("2.7.*", "3.6.*", "3.9.*") for p in versions.glob(f"{m}/bin/python")]
    if not old:
        pytest.skip("no Python older than 3.10 on this machine")
    for python in old:
        answer = doctor(tmp_path, str(python), "train.py", TRACEML_ENABLE="1")
        assert f"is Python {python.parents[1].name}, which is too old" in answer.verdict


def test_installed_by_target_the_startup_file_is_not_processed(
    make_venv: MakeVenv, wheel: Path, tmp_path: Path
) -> None:
    bare = make_venv()
    target = tmp_path / "target"
    bare.install("--target", str(target), str(wheel))
    answer = doctor(
        tmp_path, str(bare.python), "train.py", TRACEML_ENABLE="1", PYTHONPATH=str(target)
    )
    assert f"lies in {target}" in answer.verdict
    assert "not processed" in answer.verdict
    assert answer.fix == f"traceml-agent run {bare.python} train.py"


@pytest.mark.parametrize(
    ("options", "said", "fix"),
    [
        (["-S"], "started with -S", "leave -S out"),
        (["-I"], "-E or -I", "TRACEML_ENABLE=force"),
        (["-uE"], "-E or -I", "TRACEML_ENABLE=force"),
    ],
)
def test_options_that_shut_it_out_are_named(
    ready: Venv, tmp_path: Path, options: list[str], said: str, fix: str
) -> None:
    command = [str(ready.python), *options, "train.py"]
    answer = doctor(tmp_path, *command, TRACEML_ENABLE="1")
    assert (said in answer.verdict, answer.fix.startswith(fix)) == (True, True)
    if "force" in fix:
        assert doctor(tmp_path, *command, TRACEML_ENABLE="force").records


@pytest.mark.parametrize(
    ("variables", "said", "fix"),
    [
        ({"TRACEML_ENABLE": "treu"}, "TRACEML_ENABLE='treu' is not understood", "set TRACEML_"),
        ({"TRACEML_ENABLE": "0"}, "TRACEML_ENABLE is '0'", "TRACEML_ENABLE=1 "),
        (
            {"TRACEML_ENABLE": "1", "TRACEML_DISABLE": "1"},
            "TRACEML_DISABLE=1 switches it off",
            "unset TRACEML_DISABLE",
        ),
        (
            {"TRACEML_ENABLE": "1", "TRACEML_DISABLED": "yes"},
            "TRACEML_DISABLED=yes switches it off",
            "unset TRACEML_DISABLED",
        ),
    ],
)
def test_variables_that_switch_it_off_are_named(
    ready: Venv, tmp_path: Path, variables: dict[str, str], said: str, fix: str
) -> None:
    answer = doctor(tmp_path, str(ready.python), "train.py", **variables)
    assert not answer.records
    assert said in answer.verdict
    assert answer.fix.startswith(fix)


@pytest.mark.parametrize(
    ("torch", "said"),
    [
        (None, "has no torch"),
        ("raise ImportError('libcudart.so.12: cannot open shared object')", "libcudart.so.12"),
        ("import os; os.abort()", "fails"),
        ("raise SystemExit(0)", "fails"),
        ("__version__ = '1.13.1'", "torch 1.13.1 is too old"),
    ],
)
def test_torch_that_is_missing_broken_or_old_is_named(
    ready: Venv, tmp_path: Path, torch: str | None, said: str
) -> None:
    (ready.site_packages / "torch.py").unlink()
    if torch is not None:
        (ready.site_packages / "torch.py").write_text(torch + "\n")
    answer = doctor(tmp_path, str(ready.python), "train.py", TRACEML_ENABLE="1")
    assert not answer.records
    assert said in answer.verdict


def test_a_missing_dependency_is_named(ready: Venv, tmp_path: Path) -> None:
    (ready.site_packages / "wrapt").unlink()
    answer = doctor(tmp_path, str(ready.python), "train.py", TRACEML_ENABLE="1")
    assert not answer.records
    assert "No module named 'wrapt'" in answer.verdict
    assert "--force-reinstall" in answer.fix


def test_a_run_directory_that_cannot_be_written_is_named_with_the_way_out(
    ready: Venv, tmp_path: Path
) -> None:
    answer = doctor(
        tmp_path, str(ready.python), "t.py", TRACEML_ENABLE="1", TRACEML_DIR="/dev/null/runs"
    )
    assert answer.records
    assert f"to {tmp_path}/traceml-agent-" in answer.verdict
    assert "/dev/null/runs cannot be written" in answer.verdict
    assert answer.fix == "set TRACEML_DIR to a directory of yours"


def test_a_script_is_judged_by_the_python_of_its_first_line(ready: Venv, tmp_path: Path) -> None:
    script = tmp_path / "train"
    script.write_text(f"#!{ready.python} -u\n")
    script.chmod(0o755)
    answer = doctor(tmp_path, str(script), TRACEML_ENABLE="1")
    assert answer.records, answer.verdict
    assert f"first line of {script}" in answer.facts


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["no-such-python", "t.py"], "not found"),
        (["docker", "run", "image", "python", "t.py"], "another place"),
        (["sh", "train.sh"], "cannot be seen"),
    ],
)
def test_where_nothing_can_be_said_the_reason_is(
    tmp_path: Path, command: list[str], said: str
) -> None:
    answer = doctor(tmp_path, *command, TRACEML_ENABLE="1")
    assert (answer.records, said in answer.verdict) == (False, True)


def test_files_of_the_user_are_not_executed_by_the_question(ready: Venv, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("print('ran'); raise SystemExit\n")
    answer = doctor(tmp_path, str(ready.python), "train.py", TRACEML_ENABLE="1")
    assert answer.records, answer.verdict
