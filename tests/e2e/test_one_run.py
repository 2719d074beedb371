"""All ranks of a job in one run, two jobs in two, and one summary on the terminal."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.harness import Result, environment, run, runs_in, write
from tests.slurm.cluster import free_port
from traceml_agent.spool.digested import read_spool

DDP = """
import os, sys, time
import torch
import torch.distributed as dist
from torch import nn

def train(rank=None, world=None, method=None):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    known = {} if rank is None else dict(rank=rank, world_size=world, init_method=method)
    dist.init_process_group("gloo", **known)
    model = nn.parallel.DistributedDataParallel(nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(10):
        optimizer.zero_grad()
        model(torch.ones(3, 4)).square().mean().backward()
        optimizer.step()
    dist.barrier()
    dist.destroy_process_group()
"""
JOB = DDP + "train()\n"
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node")


def ranks_of(run_dir: Path) -> list[tuple[int, int]]:
    """Ranks and attempts, sorted."""
    headers = [read_spool(path).header for path in run_dir.glob("*.jsonl")]
    return sorted((header.identity.rank, header.identity.attempt) for header in headers)


def printed(done: Result) -> int:
    """How many summaries went to the terminal."""
    return sum(line.startswith("traceml: Run  ") for line in done.own_lines)


@pytest.mark.slow
def test_a_rank_that_lives_longer_prints_the_one_summary(tmp_path):
    late = JOB + "time.sleep(5 * int(os.environ['RANK']))\n"
    done = run(tmp_path, *TORCHRUN, "2", "--standalone", write(tmp_path, late))
    assert done.returncode == 0, done.stderr
    assert printed(done) == 1
    (line,) = [line for line in done.own_lines if "has ended before" in line]
    assert "rank 0 has ended before rank 1" in line
    summary = done.own_lines.index(next(x for x in done.own_lines if x.startswith("traceml: Run ")))
    assert done.own_lines.index(line) < summary
    assert done.summary["traceml_agent"]["complete"]
    assert done.summary["run_context"]["run"]["status"] == "finished"


@pytest.mark.slow
def test_a_job_whose_rank_was_killed_still_prints_one_summary(tmp_path):
    killed = JOB + "if os.environ['RANK'] == '0': os.kill(os.getpid(), 9)\ntime.sleep(3)\n"
    ranks = [
        subprocess.Popen(
            [sys.executable, write(tmp_path, killed)],
            env=environment(tmp_path, True, RANK=str(rank), **rendezvous(tmp_path)),
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        for rank in (0, 1)
    ]
    errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [-9, 0], errors
    done = Result(0, "", errors[1], runs_in(tmp_path))
    assert printed(done) == 1
    assert done.summary["run_context"]["run"]["status"] == "killed"
    assert ranks_of(done.run_dir) == [(0, 0), (1, 0)]


def rendezvous(tmp_path: Path) -> dict[str, str]:
    """Variables of a script that starts its ranks by itself."""
    note = tmp_path / "port"
    if not note.exists():
        note.write_text(str(free_port(1)))
    return {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": note.read_text()}


@pytest.mark.slow
def test_the_first_rank_that_fails_says_where_to_look(tmp_path):
    failing = JOB + "if os.environ['RANK'] == '1': raise ValueError('boom')\ntime.sleep(20)\n"
    done = run(tmp_path, *TORCHRUN, "2", "--standalone", write(tmp_path, failing))
    assert done.returncode == 1
    (line,) = [line for line in done.own_lines if "failed" in line]
    assert line.startswith("traceml: rank 1 failed after step 10 (ValueError: boom), others still")
    assert printed(done) == 0  # torchrun ended the other rank


@pytest.mark.slow
def test_torchrun_twice_with_one_id_and_twice_at_once_are_runs_of_their_own(tmp_path):
    script = write(tmp_path, JOB)
    port = free_port(1)
    command = [
        sys.executable, *TORCHRUN, "2", "--rdzv-backend=c10d", "--rdzv-id=same",
        f"--rdzv-endpoint=127.0.0.1:{port}", script,
    ]  # fmt: skip
    standalone = [sys.executable, *TORCHRUN, "2", "--standalone", script]
    for together in ([command], [command], [standalone, standalone]):
        children = [
            subprocess.Popen(one, env=environment(tmp_path, True), cwd=tmp_path) for one in together
        ]
        assert [child.wait(timeout=150) for child in children] == [0] * len(children)
    runs = runs_in(tmp_path)
    assert [ranks_of(run_dir) for run_dir in runs] == [[(0, 0), (1, 0)]] * 4
    assert sum(run_dir.name.startswith("elastic-same-") for run_dir in runs) == 2


@pytest.mark.slow
def test_two_static_jobs_of_two_agents_on_one_port_are_two_runs(tmp_path):
    script, port = write(tmp_path, JOB), str(free_port(1))
    for _ in range(2):
        agents = [
            subprocess.Popen(
                [sys.executable, *TORCHRUN, "1", "--nnodes=2", f"--node-rank={node}",
                 "--master-addr=127.0.0.1", f"--master-port={port}", script],
                env=environment(tmp_path, True),
                cwd=tmp_path,
            )
            for node in (0, 1)
        ]  # fmt: skip
        assert [agent.wait(timeout=150) for agent in agents] == [0, 0]
    names = [run_dir.name for run_dir in runs_in(tmp_path)]
    assert names == [f"torchrun-{os.uname().nodename}-{port}{n}" for n in ("", "-2")]
    assert [ranks_of(run_dir) for run_dir in runs_in(tmp_path)] == [[(0, 0), (1, 0)]] * 2


SPAWN = (
    DDP
    + """
import torch.multiprocessing as mp

def child(index, kind, method):
    if kind == "group":
        train(index, 2, method)
        return
    torch.set_num_threads(1)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    begun = time.monotonic()
    while time.monotonic() < begun + 15 and len(os.listdir("trained")) < 2:
        optimizer.zero_grad()
        model(torch.ones(3, 4)).square().mean().backward()
        optimizer.step()
        open(f"trained/{index}", "w").close()
        time.sleep(0.05)

if __name__ == "__main__":
    os.makedirs("trained", exist_ok=True)
    mp.spawn(child, args=(sys.argv[1], sys.argv[2]), nprocs=2)
"""
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["group", "nothing"])
def test_children_of_mp_spawn_without_variables_are_one_run(tmp_path, kind):
    method = f"tcp://127.0.0.1:{free_port(1)}"
    done = run(tmp_path, write(tmp_path, SPAWN), kind, method)
    assert done.returncode == 0, done.stderr
    assert ranks_of(done.run_dir) == [(0, 0), (1, 0)]
    sizes = {spool.header.identity.world_size for spool in done.spools}
    assert sizes == ({2} if kind == "group" else {1, 2})
    assert done.summary["traceml_agent"]["missing_ranks"] == []
    assert printed(done) == 1
