"""However Python is started, the training is recorded and prints what it prints without us."""

import json
import os
import subprocess
import sys
import zipapp

import pytest

from tests.e2e.harness import Result, environment, run, runs_in, write

TRAINING = """
import torch
from torch import nn
torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(6):
    optimizer.zero_grad()
    loss = model(torch.randn(3, 4)).square().mean()
    loss.backward()
    optimizer.step()
    print(loss.item())
"""
STEPS = 6


def both(tmp_path, start):
    """The results of `start(directory, enabled)` with the agent off and on."""
    results = []
    for enabled in (False, True):
        directory = tmp_path / str(enabled)
        directory.mkdir()
        results.append(start(directory, enabled))
    return results


def same_and_recorded(tmp_path, start):
    off, on = both(tmp_path, start)
    assert (on.returncode, on.stdout, on.other_stderr) == (off.returncode, off.stdout, off.stderr)
    assert on.stdout
    assert sum(spool.end.steps for spool in on.spools) == STEPS
    return on


def module(directory):
    write(directory, TRAINING, "train.py")
    return ["-m", "train"]


def package(directory):
    (directory / "trainer").mkdir()
    write(directory, "", "trainer/__init__.py")
    write(directory, TRAINING, "trainer/__main__.py")
    return ["-m", "trainer"]


def directory_with_main(directory):
    (directory / "app").mkdir()
    write(directory, TRAINING, "app/__main__.py")
    return ["app"]


def zip_archive(directory):
    directory_with_main(directory)
    zipapp.create_archive(directory / "app", directory / "app.pyz")
    return ["app.pyz"]


COMMANDS = {
    "-c": lambda directory: ["-c", TRAINING],
    "-m module": module,
    "-m package": package,
    "directory": directory_with_main,
    "zipapp": zip_archive,
    **{
        option: lambda directory, option=option: [option, write(directory, TRAINING)]
        for option in ("-P", "-s", "-O", "-OO", "-u", "-B", "-b")
    },
    "-X dev": lambda directory: ["-X", "dev", "-W", "ignore", write(directory, TRAINING)],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_line_is_recorded_and_prints_the_same(tmp_path, name):
    if name == "-P" and sys.version_info < (3, 11):
        pytest.skip("-P came with Python 3.11")

    def start(directory, enabled):
        return run(directory, *COMMANDS[name](directory), enabled=enabled)

    same_and_recorded(tmp_path, start)


def test_a_script_on_stdin_is_recorded_and_prints_the_same(tmp_path):
    def start(directory, enabled):
        done = subprocess.run(
            [sys.executable, "-"],
            input=TRAINING,
            env=environment(directory, enabled),
            capture_output=True,
            text=True,
            cwd=directory,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr, runs_in(directory))

    same_and_recorded(tmp_path, start)


@pytest.mark.parametrize("option", ["-I", "-E"])
@pytest.mark.parametrize("enable", ["1", "force"])
def test_isolated_python_is_recorded_only_by_force(tmp_path, option, enable):
    result = run(tmp_path, option, write(tmp_path, TRAINING), TRACEML_ENABLE=enable)
    assert len(result.stdout.split()) == STEPS
    assert len(result.run_dirs) == (enable == "force")


def test_python_without_site_runs_unrecorded(tmp_path):
    packages = next(p for p in sys.path if p.endswith("site-packages"))
    result = run(tmp_path, "-S", write(tmp_path, TRAINING), PYTHONPATH=packages)
    assert len(result.stdout.split()) == STEPS
    assert result.run_dirs == []


@pytest.mark.parametrize(
    "name", ["statistics", "csv", "resource", "sqlite3", "getpass", "platform", "uuid", "psutil"]
)
def test_a_file_of_the_user_named_like_a_library_is_not_executed_by_the_agent(tmp_path, name):
    def start(directory, enabled):
        write(directory, "print('executed')\n", f"{name}.py")
        return run(directory, write(directory, TRAINING), enabled=enabled)

    off, on = both(tmp_path, start)
    assert (on.returncode, on.stdout) == (off.returncode, off.stdout)


def test_a_file_that_hides_a_needed_module_is_named_and_nothing_is_recorded(tmp_path):
    write(tmp_path, "", "orjson.py")
    result = run(tmp_path, write(tmp_path, TRAINING))
    assert (result.returncode, result.run_dirs) == (0, [])
    (line,) = result.own_lines
    assert line.startswith("traceml: nothing is recorded: ")
    assert "orjson.py hides a module" in line


def test_customize_modules_of_the_user_run_first(tmp_path):
    def start(directory, enabled):
        (directory / "site").mkdir()
        write(directory, "import torch\nprint('site', torch.ones(1))\n", "site/sitecustomize.py")
        path = write(directory, TRAINING)
        return run(directory, path, enabled=enabled, PYTHONPATH=str(directory / "site"))

    same_and_recorded(tmp_path, start)


def test_a_test_suite_that_trains_passes_the_same(tmp_path):
    body = "".join(f"    {line}\n" for line in TRAINING.splitlines())

    def start(directory, enabled):
        path = write(directory, f"def test_training(capsys):\n{body}", "test_train.py")
        options = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=0", path)
        result = run(directory, *options, enabled=enabled)
        stdout = "\n".join(line for line in result.stdout.splitlines() if " in " not in line)
        lines = [line for line in stdout.splitlines() if "s call" not in line]
        return Result(result.returncode, "\n".join(lines), result.stderr, result.run_dirs)

    assert same_and_recorded(tmp_path, start).returncode == 0


CELLS = [TRAINING, "print('between')", TRAINING.replace("torch.manual_seed(0)", "pass"), "1 / 0"]


def test_cells_of_a_notebook_kernel_are_recorded_and_print_the_same(tmp_path):
    off, on = both(tmp_path, lambda directory, enabled: (directory, cells(directory, enabled)))
    assert on[1] == off[1]
    (run_dir,) = runs_in(on[0])
    summary = json.loads((run_dir / "final_summary.json").read_text())
    assert summary["step_time"]["global"]["window"]["steps_analyzed"] > STEPS


def cells(directory, enabled):
    """What each cell showed, in a kernel of its own that is then shut down."""
    from jupyter_client.manager import KernelManager

    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(env=environment(directory, enabled), cwd=str(directory))
    client = manager.blocking_client()
    client.start_channels()
    shown = []
    try:
        client.wait_for_ready(timeout=60)
        for code in CELLS:
            client.execute_interactive(
                code, timeout=120, output_hook=lambda message: shown.append(output_of(message))
            )
    finally:
        client.stop_channels()
        manager.shutdown_kernel()
    return [text for text in shown if text and not text.startswith("traceml:")]


def output_of(message):
    content = message["content"]
    if message["msg_type"] == "stream":
        lines = content["text"].splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("traceml:"))
    if message["msg_type"] == "error":
        return content["ename"] + content["evalue"]
    return ""


def test_a_process_replaced_by_exec_is_recorded_twice(tmp_path):
    code = (
        TRAINING
        + "import os, sys\nif not os.environ.get('AGAIN'):\n    os.environ['AGAIN'] = '1'\n"
        + "    sys.stdout.flush(); os.execv(sys.executable, [sys.executable, *sys.argv])\n"
    )

    def start(directory, enabled):
        return run(directory, write(directory, code), enabled=enabled)

    off, on = both(tmp_path, start)
    assert (on.returncode, on.stdout) == (off.returncode, off.stdout)
    assert len(on.stdout.split()) == 2 * STEPS
    assert os.path.isdir(on.run_dirs[-1])
