"""Bad settings and bad disks: the training never notices, and the user gets one line."""

import os
import subprocess
import sys

import pytest

from tests.e2e.harness import environment, run, runs_in, write

TRAINING = """
import os, shutil, sys, time
import torch
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

def train(steps):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 8)).mean().backward()
        optimizer.step()

train(20)
{middle}
train(20)
print(float(model.weight.detach().sum()))
"""


def script(tmp_path, middle=""):
    return write(tmp_path, TRAINING.replace("{middle}", middle))


def test_one_line_at_the_start_and_the_summary_at_the_end_all_on_stderr(tmp_path):
    result = run(tmp_path, script(tmp_path))
    assert len(result.stdout.splitlines()) == 1
    assert result.own_lines[0].startswith(f"traceml: recording to {result.run_dir} (patches: ")
    assert result.own_lines[-1].startswith("traceml: Run  ")
    assert result.own_lines[-1].endswith(result.run_dir.name)
    assert len(result.own_lines) <= 41
    assert max(map(len, result.own_lines[1:])) <= 100
    text = (result.run_dir / "final_summary.txt").read_text().replace("·", "|")
    text = text.replace("…", "~")
    assert [f"traceml: {line}".rstrip() for line in text.splitlines()] == result.own_lines[1:]


def test_stderr_that_is_no_utf8_terminal_gets_plain_ascii(tmp_path):
    result = run(tmp_path, script(tmp_path), PYTHONIOENCODING="ascii", LC_ALL="C")
    assert result.summary["step_time"]["metadata"]["training_total_steps"] == 40
    assert all(line.isascii() for line in result.own_lines)


def test_a_run_directory_holds_files_for_the_owner_alone(tmp_path):
    result = run(tmp_path, script(tmp_path))
    assert result.run_dir.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in result.run_dir.iterdir()} == {0o600}
    assert not list(result.run_dir.glob("*.ring"))


@pytest.mark.parametrize("name", ["TRACEML_DISABLE", "TRACEML_DISABLED"])
def test_disable_wins_over_enable(tmp_path, name):
    result = run(tmp_path, script(tmp_path), **{name: "1"})
    assert (result.own_lines, result.run_dirs) == ([], [])


@pytest.mark.parametrize(
    "code",
    [
        "import torch",
        "import torch\nwith torch.no_grad():\n    torch.nn.Linear(2, 2)(torch.zeros(1, 2))",
        "import torch\nfrom torch.utils.data import DataLoader\n"
        "for x in DataLoader(list(range(8))):\n    torch.nn.Linear(1, 2)(x[None].float())",
    ],
)
def test_where_nothing_is_recorded_exactly_one_line_says_why(tmp_path, code):
    result = run(tmp_path, write(tmp_path, code))
    (line,) = result.own_lines
    assert line.startswith("traceml: nothing was recorded: ")
    assert "no backward pass and no optimizer step was seen" in line
    assert result.run_dirs == []


def test_a_program_without_torch_hears_nothing(tmp_path):
    assert run(tmp_path, "-c", "import json").own_lines == []


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("TRACEML_SAMPLE_INTERVAL_S", "often", "seconds from 0.05 to 3600"),
        ("TRACEML_SPOOL_MAX_MB", "-1", "megabytes"),
        ("TRACEML_RUN_ID", "../../x", "letters, digits"),
        ("TRACEML_RUN_ID", "a" * 4096, "letters, digits"),
        ("TRACEML_RUN_ID", "a\nb", "letters, digits"),
        ("TRACEML_SUMMARY", "maybe", "1 or 0"),
    ],
)
def test_a_wrong_setting_is_one_line_with_what_is_accepted_and_the_default_counts(
    tmp_path, name, value, accepted
):
    result = run(tmp_path, script(tmp_path), **{name: value})
    (line,) = [line for line in result.own_lines if name in line]
    assert accepted in line
    assert result.summary["step_time"]["metadata"]["training_total_steps"] == 40


def test_an_unknown_setting_is_named_once(tmp_path):
    result = run(tmp_path, script(tmp_path), TRACEML_SAMPLE_INTERVALL="5")
    (line,) = [line for line in result.own_lines if "INTERVALL" in line]
    assert "no such setting" in line


def test_a_directory_that_cannot_be_written_is_replaced_and_named(tmp_path):
    (tmp_path / "runs").write_text("a file")
    off = run(tmp_path, script(tmp_path), enabled=False, TRACEML_DIR="")
    child = subprocess.run(
        [sys.executable, script(tmp_path)],
        env=environment(tmp_path, enabled=True),
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (child.returncode, child.stdout) == (0, off.stdout)
    first = child.stderr.splitlines()[0]
    assert first.startswith(f"traceml: cannot write to {tmp_path / 'runs'} (")
    assert "the run goes to" in first


def test_a_run_directory_removed_while_training_costs_one_line(tmp_path):
    middle = (
        "time.sleep(0.8)\nshutil.rmtree(os.environ.get('TRACEML_DIR', '/nowhere'), "
        "ignore_errors=True)\ntime.sleep(0.8)"
    )
    off = run(tmp_path, script(tmp_path, middle), enabled=False)
    on = run(tmp_path, script(tmp_path, middle))
    assert (on.returncode, on.stdout, on.other_stderr) == (0, off.stdout, off.other_stderr)
    complaints = [line for line in on.own_lines if "cannot write" in line]
    assert len(complaints) == 1
    assert "training goes on" in complaints[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_costs_one_line_and_the_training_goes_on(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        off = run(tmp_path, script(tmp_path), enabled=False)
        middle = "train(6000)\n"
        on = run(tmp_path, script(tmp_path, middle), TRACEML_DIR=str(disk))
        plain = run(tmp_path, script(tmp_path, middle), enabled=False)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert off.returncode == 0
    assert (on.returncode, on.stdout) == (0, plain.stdout)
    assert on.other_stderr == plain.other_stderr
    assert len([line for line in on.own_lines if "No space left" in line]) >= 1


@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full"])
def test_a_stderr_that_takes_nothing_changes_nothing(tmp_path, closed):
    command = f"{sys.executable} {script(tmp_path)} {closed}"
    results = [
        subprocess.run(
            ["sh", "-c", command],
            env=environment(tmp_path, enabled=enabled),
            capture_output=True, text=True, timeout=120,
        )
        for enabled in (False, True)
    ]  # fmt: skip
    off, on = results
    assert (on.returncode, on.stdout, on.stderr) == (off.returncode, off.stdout, off.stderr)
    assert len(runs_in(tmp_path)) == 1


def test_what_is_left_out_on_purpose_is_said_and_null(tmp_path):
    result = run(tmp_path, script(tmp_path), TRACEML_SKIP="forward,gpu")
    patches = result.summary["traceml_agent"]["patches"]
    assert patches["forward"] == "skipped by TRACEML_SKIP"
    assert result.summary["step_time"]["diagnosis"]["kind"] == "INCOMPLETE_DATA"
    assert result.summary["step_time"]["global"]["average"]["forward_ms"] is None


def test_secrets_of_the_command_and_the_environment_reach_no_file(tmp_path):
    result = run(
        tmp_path, script(tmp_path), "--api-key", "sk-SECRET1", "https://u:SECRET2@h/x",
        AWS_SECRET_ACCESS_KEY="SECRET3",
    )  # fmt: skip
    for path in result.run_dir.iterdir():
        assert b"SECRET" not in path.read_bytes(), path.name


def test_workers_of_a_loader_write_no_spool(tmp_path):
    loops = str(os.path.join(os.path.dirname(__file__), "loops.py"))
    result = run(tmp_path, loops, "workers_spawn")
    assert len(list(result.run_dir.glob("*.jsonl"))) == 1
    assert [line for line in result.own_lines if "nothing was recorded" in line] == []


@pytest.mark.parametrize("led", ["sys.stderr = sys.stdout", "sys.stderr = io.StringIO()"])
def test_what_the_agent_says_stays_on_stderr_where_the_program_leads_its_own_elsewhere(
    tmp_path, led
):
    code = f"import io, sys\n{led}\n{TRAINING.format(middle='')}"
    code += "print(sys.stderr.getvalue() if sys.stderr is not sys.stdout else '')"
    result = run(tmp_path, write(tmp_path, code))
    assert len(result.stdout.split()) == 1  # the sum
    assert result.own_lines[0].startswith("traceml: recording to")
    assert result.own_lines[-1].startswith("traceml: Run")


@pytest.mark.parametrize("may_write", [True, False])
def test_runs_lie_in_the_state_directory_of_the_user_or_elsewhere_if_that_takes_none(
    tmp_path, may_write
):
    home = tmp_path / "home"
    home.mkdir()
    if not may_write:  # root writes anywhere, but not into a file
        (home / ".local").write_text("")
    variables = {"TRACEML_ENABLE": "1", "HOME": str(home), "XDG_STATE_HOME": ""}
    result = run(tmp_path, script(tmp_path), enabled=False, **variables)
    assert result.returncode == 0
    (summary,) = tmp_path.rglob("final_summary.json")
    runs = home / ".local/state/traceml-agent/runs"
    assert (summary.parent.parent == runs) is may_write
    told = [line for line in result.own_lines if "cannot" in line and str(runs) in line]
    assert len(told) == (not may_write)
