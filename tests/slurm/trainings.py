"""Trainings for the jobs of the tests, and what is read of the runs they leave."""

import json
import re
from pathlib import Path
from typing import Any

from tests.slurm.cluster import Cluster
from traceml_agent.spool.digested import read_spool
from traceml_agent.spool.reader import Spool

STEPS = 12
PLAIN = f"""
import os, sys, time
import torch
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Linear(4, 2)
if os.environ.get("WORLD_SIZE", "1") != "1":
    import torch.distributed as dist
    dist.init_process_group("gloo")
    model = nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

def train(steps):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(3, 4)).square().mean().backward()
        optimizer.step()

train({STEPS})
"""
PRINT = """
rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
result = sum(p.double().sum().item() for p in model.parameters())
os.write(1, f"{rank} {result}\\n".encode())  # in one piece: several ranks write into one file
"""
ENDLESS = """
note = os.open("ready-" + os.environ["SLURM_JOB_ID"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.write(note, b".")
while True:
    train(1)
    time.sleep(0.02)
"""


def write(cluster: Cluster, name: str, source: str) -> str:
    """A script in the shared working directory."""
    (cluster.work / name).write_text(source)
    return name


def runs_of(cluster: Cluster, job: str) -> dict[str, Path]:
    """The run directories of a job, by their names."""
    name = re.compile(rf"slurm-{job}(?!\d)")  # 1 is not 12
    found = sorted((cluster.work / "traceml-runs").glob("*"))
    return {path.name: path for path in found if name.match(path.name)}


def spools_of(run_dir: Path) -> dict[int, Spool]:
    """The spools of a run by rank; no rank twice."""
    spools = [read_spool(path) for path in sorted(run_dir.glob("*.jsonl"))]
    by_rank = {spool.header.identity.rank: spool for spool in spools}
    assert len(by_rank) == len(spools), [spool.path.name for spool in spools]
    return by_rank


def summary_of(run_dir: Path) -> dict[str, Any]:
    """The summary that lies there. Nothing is folded here."""
    payload: dict[str, Any] = json.loads((run_dir / "final_summary.json").read_text())
    return payload


def summaries_printed(output: str) -> int:
    """How many summaries a job printed."""
    return sum(line.startswith("traceml: Run  ") for line in output.splitlines())
