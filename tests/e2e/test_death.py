"""However a process ends: the exit is the user's, the run can be folded, nothing closed is lost."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.e2e.harness import environment, run, runs_in, write
from traceml_agent.report.fold import fold

TRAINING = """
import ctypes, os, signal, sys, time
import torch
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

def train(steps):
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        model(torch.randn(4, 8)).mean().backward()
        optimizer.step()
        os.write(1, b"%d\\n" % step)
"""

ENDINGS = {
    "return": ("train(10)", "finished", 0),
    "sys_exit_0": ("train(10); sys.exit()", "finished", 0),
    "sys_exit_3": ("train(10); sys.exit(3)", "failed", 3),
    "exception": ("train(10)\nraise ValueError('no more data')", "failed", 1),
    "keyboard_interrupt": ("train(10)\nos.kill(os.getpid(), signal.SIGINT); time.sleep(9)",
                           "interrupted", 130),
    "os_exit": ("train(10); os._exit(7)", "failed", 7),
    "os_exit_0": ("train(10); os._exit(0)", "finished", 0),
    "sigterm": ("train(10); os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)",
                "terminated", None),
    "sigterm_in_c": ("train(10); os.kill(os.getpid(), signal.SIGTERM); "
                     "ctypes.PyDLL(None).sleep(9)", "terminated", None),
    "sigkill": ("train(10); os.kill(os.getpid(), signal.SIGKILL); time.sleep(9)", "killed", None),
    "abort": ("train(10); os.abort()", "failed", None),
    "segfault": ("train(10); ctypes.string_at(0)", "failed", None),
    "exception_beside_ipython": ("import IPython\ntrain(10)\nraise ValueError('no data')",
                                 "failed", 1),
    "exit_in_function": ("def f():\n    train(10)\n    sys.exit('bad input')\nf()", "failed", 1),
    "exit_caught": ("train(5)\ntry:\n    sys.exit(3)\nexcept SystemExit:\n    pass\ntrain(5)",
                    "finished", 0),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(ENDINGS))
def test_the_end_is_the_users_and_the_summary_names_it(tmp_path, name):
    ending, status, exit_code = ENDINGS[name]
    script = write(tmp_path, TRAINING + ending + "\n")
    off = run(tmp_path, script, enabled=False, may_crash=True)
    on = run(tmp_path, script, may_crash=True)
    assert on.returncode == off.returncode
    assert on.stdout == off.stdout
    assert on.other_stderr == off.other_stderr
    summary = fold(on.run_dir).payload
    assert summary["run_context"]["run"]["status"] == status
    assert summary["run_context"]["exit"]["0"]["exit_code"] == exit_code
    assert summary["step_time"]["metadata"]["training_total_steps"] >= 9
    if name in ("sigterm", "abort", "segfault", "exception"):
        assert "train.py" in summary["run_context"]["exit"]["0"]["stack"]


@pytest.mark.parametrize("handler", ["before", "after"])
def test_a_sigterm_handler_of_the_user_runs_once_and_decides_the_exit_code(tmp_path, handler):
    install = "signal.signal(signal.SIGTERM, lambda *a: (print('bye'), sys.exit(5)))\n"
    before, after = (install, "") if handler == "before" else ("", install)
    body = f"{before}train(5)\n{after}os.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(9)\n"
    script = write(tmp_path, TRAINING + body)
    off, on = run(tmp_path, script, enabled=False), run(tmp_path, script)
    assert (on.returncode, on.stdout) == (off.returncode, off.stdout) == (5, "1\n2\n3\n4\n5\nbye\n")
    assert on.summary["run_context"]["exit"]["0"]["exit_code"] == 5


@pytest.mark.parametrize("after_s", [0.2, 0.9])
def test_a_sigkill_at_any_moment_loses_no_closed_step(tmp_path, after_s):
    script = write(tmp_path, TRAINING + "train(10**9)\n")
    with subprocess.Popen(
        [sys.executable, script],
        env=environment(tmp_path, enabled=True),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"1\n"
        reader = os.fdopen(os.dup(child.stdout.fileno()), "rb")
        deadline = time.monotonic() + after_s
        last = b"1"
        while time.monotonic() < deadline:
            last = reader.readline().strip()
        child.send_signal(signal.SIGKILL)
        printed = int((reader.read().split() or [last])[-1])
        reader.close()
    (run_dir,) = runs_in(tmp_path)
    payload = fold(run_dir).payload
    assert payload["run_context"]["run"]["status"] == "killed"
    # The last printed step is still open: nothing after it has told that it is over.
    assert payload["step_time"]["metadata"]["training_total_steps"] >= printed - 1
