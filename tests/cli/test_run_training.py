"""`traceml-agent run` around a real training: who folds, and who prints."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Cli

pytest.importorskip("torch")

TRAIN = """
import os, signal, sys
import torch
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
data = torch.utils.data.TensorDataset(torch.ones(64, 4))
for (batch,) in torch.utils.data.DataLoader(data, batch_size=2):
    optimizer.zero_grad()
    model(batch).pow(2).sum().backward()
    optimizer.step()
print("trained", flush=True)
END
"""


def train(cli: Cli, tmp_path: Path, end: str, **variables: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a training under `run` that ends in this way."""
    script = tmp_path / "train.py"
    script.write_text(TRAIN.replace("END", end))
    done = cli("run", "--", sys.executable, str(script), **variables)
    return done.returncode, done.stdout, done.stderr


def only_run(runs_dir: Path) -> Path:
    (run_dir,) = runs_dir.iterdir()
    return run_dir


def test_a_training_that_ends_in_order_prints_its_summary_once(
    cli: Cli, tmp_path: Path, runs_dir: Path
) -> None:
    code, out, err = train(cli, tmp_path, "sys.exit(3)")
    assert (code, out) == (3, "trained\n")
    assert all(line.startswith("traceml:") for line in err.splitlines()), err
    assert err.count("final_summary.json") <= 1
    plain = cli("view", str(only_run(runs_dir))).stdout.splitlines()
    assert err.count(plain[0]) == 1
    status = json.loads((only_run(runs_dir) / "final_summary.json").read_text())
    assert status["run_context"]["run"]["status"] == "failed"


@pytest.mark.parametrize(
    ("end", "number"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", signal.SIGKILL),
        ("os.kill(os.getpid(), signal.SIGTERM)", signal.SIGTERM),
    ],
)
def test_a_training_that_is_killed_is_folded_and_shown(
    cli: Cli, tmp_path: Path, runs_dir: Path, end: str, number: int
) -> None:
    code, out, err = train(cli, tmp_path, end)
    assert (code, out) == (-number, "trained\n")
    payload = json.loads((only_run(runs_dir) / "final_summary.json").read_text())
    expected = "killed" if number == signal.SIGKILL else "terminated"
    assert payload["run_context"]["run"]["status"] == expected
    assert (only_run(runs_dir) / "final_summary.txt").exists()
    plain = cli("view", str(only_run(runs_dir))).stdout.splitlines()
    assert err.count(plain[0]) == 1
    assert all(line.startswith("traceml:") for line in err.splitlines()), err


def test_summary_0_keeps_it_from_being_printed_but_not_from_being_written(
    cli: Cli, tmp_path: Path, runs_dir: Path
) -> None:
    end = "os.kill(os.getpid(), signal.SIGKILL)"
    _, _, err = train(cli, tmp_path, end, TRACEML_SUMMARY="0")
    assert (only_run(runs_dir) / "final_summary.json").exists()
    assert len(err.splitlines()) <= 1


def test_an_unusable_fold_does_not_change_the_exit_code(
    cli: Cli, tmp_path: Path, runs_dir: Path
) -> None:
    spoil = (
        "import pathlib\n"
        "for path in pathlib.Path(os.environ['TRACEML_DIR']).glob('*/*.jsonl'):\n"
        "    path.write_text('spoiled')\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    code, out, err = train(cli, tmp_path, spoil)
    assert (code, out) == (-signal.SIGKILL, "trained\n")
    assert "Traceback" not in err


def test_a_run_that_had_to_go_elsewhere_is_found_there(
    cli: Cli, tmp_path: Path, environ: dict[str, str]
) -> None:
    """TRACEML_DIR cannot be written: the run falls back, and readers look there too."""
    _, _, err = train(cli, tmp_path, "", TRACEML_DIR="/dev/null/runs")
    assert "the run goes to" in err
    viewed = cli("view", "--json", TRACEML_DIR="/dev/null/runs")
    assert viewed.returncode == 0, viewed.stderr
    assert json.loads(viewed.stdout)["traceml_agent"]["run_dir"].startswith(environ["TMPDIR"])


def test_a_script_that_trains_twice_makes_two_runs_and_both_are_folded(
    cli: Cli, tmp_path: Path, runs_dir: Path
) -> None:
    script = tmp_path / "train.py"
    script.write_text(TRAIN.replace("END", "os.kill(os.getpid(), signal.SIGKILL)"))
    twice = tmp_path / "twice.sh"
    twice.write_text(f"{sys.executable} {script}\n{sys.executable} {script}\nexit 6\n")
    done = cli("run", "--", "sh", str(twice))
    assert done.returncode == 6
    run_dirs = list(runs_dir.iterdir())
    assert len(run_dirs) == 2
    assert all((run_dir / "final_summary.json").exists() for run_dir in run_dirs)


def test_a_launcher_that_is_killed_leaves_runs_that_are_found_by_their_parent(
    cli: Cli, tmp_path: Path, runs_dir: Path
) -> None:
    script = tmp_path / "train.py"
    script.write_text(TRAIN.replace("END", "os.kill(os.getpid(), signal.SIGKILL)"))
    launcher = tmp_path / "torchrun"
    launcher.write_text(
        f"#!{sys.executable}\n"
        "import os, subprocess, sys\n"
        "ranks = {'RANK': '0', 'LOCAL_RANK': '0', 'WORLD_SIZE': '1', 'MASTER_PORT': '29500',\n"
        "         'TORCHELASTIC_RUN_ID': 'none'}\n"
        "done = subprocess.run([sys.executable, *sys.argv[1:]], env={**os.environ, **ranks})\n"
        "sys.exit(1)\n"
    )
    launcher.chmod(0o755)
    done = cli("run", "--", str(launcher), str(script))
    assert done.returncode == 1
    assert (only_run(runs_dir) / "final_summary.json").exists(), done.stderr
    assert only_run(runs_dir).name.startswith("torchrun-")
    assert os.listdir(only_run(runs_dir))
