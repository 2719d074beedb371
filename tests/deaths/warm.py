"""Jobs for warm_parent.py, and what they left behind."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.harness import environment, runs_in
from traceml_agent.report.fold import fold

PARENT = Path(__file__).with_name("warm_parent.py")

NO_BREAKER = {"TRACEML_MAX_OVERHEAD": "100"}
"""Percent. These steps are so short that on a busy machine the breaker may stop the recording."""
TRAINING = """
import ctypes, os, signal, sys, threading, time
import torch
from torch import nn
from torch.utils.data import DataLoader

model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
def leaving():
    with open("leaving", "w") as file:
        file.write(str(time.monotonic()))

note = os.open("steps", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
done = 0

def train(steps, loader=None):
    global done
    for batch in loader or (torch.randn(4, 8) for _ in range(steps)):
        # A request for a batch closes the step before it; without a loader it is the next update.
        if loader is not None:
            os.write(note, b"%d\\n" % done)
        optimizer.zero_grad()
        model(batch).mean().backward()
        optimizer.step()
        if loader is None:
            os.write(note, b"%d\\n" % done)
        done += 1
"""


@dataclass(frozen=True, slots=True)
class Job:
    """One training: the source that follows TRAINING, and the signals it gets."""

    name: str
    source: str
    # Name, and how many seconds after the script noted so many closed steps; -1: after its start.
    signals: tuple[tuple[str, float, int], ...] = ()
    environ: dict[str, str] = field(default_factory=dict)
    limit_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Death:
    """What a job left."""

    pid: int
    returncode: int
    overdue: bool
    exit_s: float | None  # from `leaving()` to the end of the exit hooks, or of the process
    stdout: str
    stderr: str
    closed_steps: int  # that the script itself knows to be closed
    run_dir: Path | None

    @property
    def summary(self) -> dict[str, Any]:
        assert self.run_dir is not None, self.stderr
        return fold(self.run_dir).payload

    @property
    def steps(self) -> int:
        return int(self.summary["step_time"]["metadata"]["training_total_steps"])

    @property
    def spool_lines(self) -> list[str]:
        """The whole lines of all spools of the run."""
        assert self.run_dir is not None, self.stderr
        spools = sorted(self.run_dir.glob("*.jsonl"))
        return [line for spool in spools for line in spool.read_text().split("\n")[:-1]]

    @property
    def own_lines(self) -> list[str]:
        return [line for line in self.stderr.splitlines() if line.startswith("traceml:")]

    @property
    def other_stderr(self) -> str:
        lines = self.stderr.splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("traceml:"))


def let_die(
    tmp_path: Path,
    jobs: list[Job],
    *,
    enabled: bool = True,
    width: int = 2,
    timeout_s: float = 280,
    **extra: str,
) -> dict[str, Death]:
    """Runs the jobs, `width` at a time, under one parent."""
    tmp_path.mkdir(exist_ok=True)
    for job in jobs:
        (tmp_path / job.name).mkdir()
        (tmp_path / job.name / "train.py").write_text(TRAINING + job.source + "\n")
    plan = {
        "width": width,
        "jobs": [
            {
                "name": job.name,
                "signals": job.signals,
                "environ": job.environ,
                "limit_s": job.limit_s,
            }
            for job in jobs
        ],
    }
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    parent = subprocess.run(
        [sys.executable, str(PARENT), str(path)],
        env=environment(tmp_path, enabled, **(NO_BREAKER | extra)),
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert (parent.returncode, parent.stdout) == (0, ""), parent.stderr
    outcomes = json.loads((tmp_path / "outcomes.json").read_text())
    return {job.name: _death(tmp_path, job.name, outcomes[job.name]) for job in jobs}


def _death(tmp_path: Path, name: str, outcome: dict[str, Any]) -> Death:
    directory = tmp_path / name
    notes = directory / "steps"
    lines = notes.read_text().splitlines() if notes.exists() else []
    mine = [run for run in runs_in(tmp_path) if run.name.endswith(f"-{outcome['pid']}")]
    return Death(
        pid=outcome["pid"],
        returncode=outcome["returncode"],
        overdue=outcome["overdue"],
        exit_s=_exit_s(directory, outcome["ended_s"]),
        stdout=_text(directory / "stdout"),
        stderr=_text(directory / "stderr"),
        closed_steps=int(lines[-1]) if lines else 0,
        run_dir=mine[0] if mine else None,
    )


def _text(path: Path) -> str:
    """Nothing where the job was killed before it opened the file."""
    return path.read_text() if path.exists() else ""


def _exit_s(directory: Path, ended_s: float) -> float | None:
    began, end = directory / "leaving", directory / "past_hooks"
    if not began.exists():
        return None
    # The interpreter takes seconds to take torch down on a busy machine: that is not counted.
    return (float(end.read_text()) if end.exists() else ended_s) - float(began.read_text())


def view(run_dir: Path) -> "subprocess.CompletedProcess[str]":
    """`traceml-agent view RUN` as a user types it."""
    return subprocess.run(
        [sys.executable, "-m", "traceml_agent", "view", str(run_dir)],
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        timeout=60,
    )
