"""`traceml-agent run`: the command must not notice it."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import CHILD_TIMEOUT_S, Cli

RUN = [sys.executable, "-m", "traceml_agent", "run", "--"]

COUNT_SIGNALS = """
import os, signal, sys, time
seen = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: seen.append(number))
print("ready", flush=True)
deadline = time.monotonic() + 20
while not seen and time.monotonic() < deadline:
    time.sleep(0.01)
time.sleep(0.4)
print(len(seen), *(signal.Signals(number).name for number in seen), flush=True)
"""


@pytest.mark.parametrize("code", [0, 1, 2, 3, 127, 255])
def test_the_exit_code_is_that_of_the_command(cli: Cli, code: int) -> None:
    done = cli("run", "--", "sh", "-c", f"exit {code}")
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT, signal.SIGINT]
)
def test_it_ends_by_the_signal_that_ended_the_command(cli: Cli, number: signal.Signals) -> None:
    done = cli("run", "--", "sh", "-c", f"kill -{int(number)} $$")
    assert (done.returncode, done.stdout, done.stderr) == (-number, "", "")


def test_a_shell_sees_128_and_the_signal(environ: dict[str, str]) -> None:
    done = subprocess.run(
        ["sh", "-c", '"$@"; echo $?', "sh", *RUN, "sh", "-c", "kill -9 $$"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=CHILD_TIMEOUT_S,
        check=False,
    )
    assert done.stdout == "137\n"


def test_standard_streams_are_those_of_the_command(environ: dict[str, str]) -> None:
    done = subprocess.run(
        [*RUN, "sh", "-c", "cat; echo error >&2"],
        input=b"\x00\xff bytes",
        env=environ,
        capture_output=True,
        timeout=CHILD_TIMEOUT_S,
        check=False,
    )
    assert (done.stdout, done.stderr) == (b"\x00\xff bytes", b"error\n")


def test_arguments_reach_the_command_unchanged(cli: Cli) -> None:
    code = "import json, sys; print(json.dumps(sys.argv[1:]))"
    arguments = ["--", "-h", "--json", "", "a b", "$HOME", "--version"]
    with_dashes = cli("run", "--", sys.executable, "-c", code, *arguments)
    without = cli("run", sys.executable, "-c", code, *arguments)
    assert json.loads(with_dashes.stdout) == arguments
    assert without.stdout == with_dashes.stdout


@pytest.mark.parametrize(
    ("command", "code"), [("no-such-program", 127), ("./not-executable", 126), ("./", 126)]
)
def test_a_command_that_cannot_be_run_gives_the_code_of_the_shell(
    cli: Cli, tmp_path: Path, command: str, code: int
) -> None:
    (tmp_path / "not-executable").write_text("x")
    done = cli("run", "--", command)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(f"traceml: cannot run {command}: ")
    assert len(done.stderr.splitlines()) == 1


def test_no_command_is_wrong_usage(cli: Cli) -> None:
    assert cli("run").returncode == 2
    assert cli("run", "--").returncode == 2


def counting(environ: dict[str, str], **options: object) -> "subprocess.Popen[str]":
    """A command that counts its signals, under `run` and ready to receive them."""
    process = subprocess.Popen(
        [*RUN, sys.executable, "-u", "-c", COUNT_SIGNALS],
        env=environ,
        stdout=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1"])
def test_a_signal_to_it_alone_reaches_the_command_once(environ: dict[str, str], name: str) -> None:
    process = counting(environ, start_new_session=True)
    os.kill(process.pid, getattr(signal, name))
    out, _ = process.communicate(timeout=CHILD_TIMEOUT_S)
    assert (out, process.returncode) == (f"1 {name}\n", 0)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_to_the_whole_group_reaches_the_command_once(
    environ: dict[str, str], name: str
) -> None:
    """As `timeout`, Slurm and `kill -- -GROUP` send it."""
    process = counting(environ, start_new_session=True)
    os.killpg(process.pid, getattr(signal, name))
    out, _ = process.communicate(timeout=CHILD_TIMEOUT_S)
    assert (out, process.returncode) == (f"1 {name}\n", 0)


def test_ctrl_c_at_a_terminal_reaches_the_command_once(environ: dict[str, str]) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [*RUN, sys.executable, "-u", "-c", COUNT_SIGNALS], environ)
    output = b""
    deadline = time.monotonic() + CHILD_TIMEOUT_S
    while b"ready" not in output and time.monotonic() < deadline:
        output += os.read(terminal, 1024)
    os.write(terminal, b"\x03")
    while time.monotonic() < deadline:
        try:
            chunk = os.read(terminal, 1024)
        except OSError:  # the other side has closed
            break
        output += chunk
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert b"1 SIGINT" in output
    assert os.waitstatus_to_exitcode(status) == 0


def test_no_process_of_it_outlives_the_command(environ: dict[str, str]) -> None:
    process = subprocess.Popen([*RUN, "sh", "-c", "exit 4"], env=environ, start_new_session=True)
    assert process.wait(timeout=CHILD_TIMEOUT_S) == 4
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def variables_seen(cli: Cli, *prefix: str, **variables: str) -> dict[str, str]:
    """The TRACEML_* variables that the command sees."""
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    done = cli("run", "--", *prefix, sys.executable, "-c", code, **variables)
    assert done.returncode == 0, done.stderr
    return {k: v for k, v in json.loads(done.stdout).items() if k.startswith("TRACEML_")}


def test_the_command_is_switched_on_and_gets_a_run_id_of_its_own(cli: Cli) -> None:
    first, second = variables_seen(cli), variables_seen(cli, TRACEML_ENABLE="0")
    assert first["TRACEML_ENABLE"] == second["TRACEML_ENABLE"] == "1"
    assert first["TRACEML_RUN_ID"] != second["TRACEML_RUN_ID"]
    assert variables_seen(cli, TRACEML_ENABLE="force")["TRACEML_ENABLE"] == "force"


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_JOB_ID": "7"},
        {"TORCHELASTIC_RUN_ID": "x"},
        {"RANK": "1", "WORLD_SIZE": "2"},
    ],
)
def test_a_job_with_several_processes_names_its_run_itself(
    cli: Cli, variables: dict[str, str]
) -> None:
    assert "TRACEML_RUN_ID" not in variables_seen(cli, **variables)


def test_a_run_id_of_the_user_stays(cli: Cli) -> None:
    assert variables_seen(cli, TRACEML_RUN_ID="mine")["TRACEML_RUN_ID"] == "mine"


def test_disabled_it_says_so_once_and_runs_the_command(cli: Cli) -> None:
    done = cli("run", "--", "sh", "-c", "echo result; exit 3", TRACEML_DISABLE="1")
    assert (done.returncode, done.stdout) == (3, "result\n")
    assert done.stderr == "traceml: TRACEML_DISABLE is set, so nothing is recorded\n"
