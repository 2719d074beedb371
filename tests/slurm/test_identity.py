"""Who is who, and in which run, when a real Slurm starts the trainings."""

import socket

import pytest

from tests.slurm import trainings
from tests.slurm.cluster import Cluster, free_port
from tests.slurm.conftest import SLURM_FILES
from tests.slurm.trainings import STEPS, runs_of, spools_of, summaries_printed, summary_of

pytestmark = pytest.mark.slow


def rank_lines(output: str) -> list[str]:
    return sorted(line for line in output.splitlines() if line[:1].isdigit())


def run_ready_file(cluster: Cluster, name: str, tasks: int, disable: str = "0") -> str:
    """The job that ran a ready file with two nodes and two GPUs a node."""
    port = str(free_port(1))
    job = cluster.submit(
        "--gpus-per-node=2",
        f"--ntasks-per-node={tasks}",
        str(SLURM_FILES / name),
        trainings.write(cluster, "ddp.py", trainings.PLAIN + trainings.PRINT),
        TRACEML_DISABLE=disable,
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=port,
        RDZV_ENDPOINT=f"127.0.0.1:{port}",
    )
    assert cluster.wait(job) == "COMPLETED", cluster.output(job)
    assert len(rank_lines(cluster.output(job))) == 4
    return job


def check_four_ranks(cluster: Cluster, job: str, launcher: str) -> None:
    """Two nodes of two ranks are one run, and print one summary."""
    (run_dir,) = runs_of(cluster, job).values()
    assert run_dir.name == f"slurm-{job}.0"
    spools = spools_of(run_dir)
    found = [spools[rank].header.identity for rank in range(4)]
    assert [(i.local_rank, i.node_rank) for i in found] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert {(i.world_size, i.local_world_size, i.attempt) for i in found} == {(4, 2, 0)}
    assert {(i.launcher, i.job_id) for i in found} == {(launcher, f"{job}.0")}
    assert {spool.end.steps for spool in spools.values() if spool.end} == {STEPS}
    assert summaries_printed(cluster.output(job)) == 1
    summary = summary_of(run_dir)
    assert summary["traceml_agent"]["complete"]
    assert summary["meta"]["world_size"] == 4
    assert summary["run_context"]["execution"]["expected_nodes"] == 2


def test_a_process_for_each_gpu_is_one_run_and_trains_as_without_the_agent(
    plain_cluster: Cluster,
) -> None:
    off = run_ready_file(plain_cluster, "process_per_gpu.sbatch", 2, disable="1")
    job = run_ready_file(plain_cluster, "process_per_gpu.sbatch", 2)
    assert not runs_of(plain_cluster, off)
    assert rank_lines(plain_cluster.output(job)) == rank_lines(plain_cluster.output(off))
    check_four_ranks(plain_cluster, job, "slurm")


def test_a_torchrun_on_each_node_is_one_run(plain_cluster: Cluster) -> None:
    job = run_ready_file(plain_cluster, "torchrun_per_node.sbatch", 1)
    check_four_ranks(plain_cluster, job, "torchrun")


def test_tasks_of_an_array_are_runs_of_their_own(plain_cluster: Cluster) -> None:
    cluster = plain_cluster
    script = trainings.write(cluster, "plain.py", trainings.PLAIN + trainings.PRINT)
    job = cluster.submit("--comment=traceml", "--array=3,7", "--wrap", f"python {script}")
    for task in ("3", "7"):
        cluster.wait(f"{job}_{task}")
        assert summaries_printed(cluster.output(job, task)) == 1
    assert list(runs_of(cluster, job)) == [f"slurm-{job}_3", f"slurm-{job}_7"]
    for run_dir in runs_of(cluster, job).values():
        assert spools_of(run_dir)[0].header.identity.world_size == 1


HET = """#!/bin/sh
#SBATCH -N1 -n1
#SBATCH hetjob
#SBATCH -N1 -n2
unset WORLD_SIZE
srun --het-group=0,1 python plain.py
"""


def test_a_step_over_both_parts_of_a_het_job_is_one_run(plain_cluster: Cluster) -> None:
    cluster = plain_cluster
    trainings.write(cluster, "plain.py", trainings.PLAIN + trainings.PRINT)
    script = trainings.write(cluster, "het.sbatch", HET)
    job = cluster.submit(script, TRACEML_ENABLE="1")
    assert cluster.wait(job) == "COMPLETED", cluster.output(job)
    (run_dir,) = runs_of(cluster, job).values()
    spools = spools_of(run_dir)
    found = [spools[rank].header.identity for rank in range(3)]
    assert [(i.local_rank, i.node_rank, i.local_world_size) for i in found] == [
        (0, 0, 1),
        (0, 1, 2),
        (1, 1, 2),
    ]
    assert {i.world_size for i in found} == {3}


MANY = """
srun -n1 --exact python plain.py &
srun -n1 --exact python plain.py &
wait
python plain.py
python plain.py
"""


def test_steps_and_trainings_one_after_the_other_in_a_job_are_runs_of_their_own(
    plain_cluster: Cluster,
) -> None:
    cluster = plain_cluster
    trainings.write(cluster, "plain.py", trainings.PLAIN)
    job = cluster.submit("--comment=traceml", "-n2", "--wrap", MANY)
    assert cluster.wait(job) == "COMPLETED", cluster.output(job)
    names = [f"slurm-{job}", f"slurm-{job}-2", f"slurm-{job}.0", f"slurm-{job}.1"]
    assert sorted(runs_of(cluster, job)) == sorted(names)
    for name, run_dir in runs_of(cluster, job).items():
        spools = spools_of(run_dir)
        assert list(spools) == [0], name
        assert spools[0].header.run_id == name
        assert summary_of(run_dir)["traceml_agent"]["complete"]


def test_two_torchruns_at_once_in_one_job_do_not_mix(plain_cluster: Cluster) -> None:
    cluster = plain_cluster
    script = trainings.write(cluster, "ddp.py", trainings.PLAIN)
    one = f"torchrun --standalone --nproc-per-node=2 {script}"
    job = cluster.submit("--comment=traceml", "-n4", "--wrap", f"{one} & {one} & wait")
    assert cluster.wait(job) == "COMPLETED", cluster.output(job)
    runs = runs_of(cluster, job)
    assert list(runs) == [f"slurm-{job}", f"slurm-{job}-2"]
    parents = []
    for run_dir in runs.values():
        spools = spools_of(run_dir)
        assert sorted(spools) == [0, 1]
        parents.append({spool.header.parent_pid for spool in spools.values()})
        assert summary_of(run_dir)["traceml_agent"]["complete"]
    assert [len(pids) for pids in parents] == [1, 1]
    assert parents[0] != parents[1]
    assert summaries_printed(cluster.output(job)) == 2


NODE_LOCAL = """#!/bin/sh
#SBATCH -N2 --ntasks-per-node=1
export TRACEML_ENABLE=1 TRACEML_DIR=/mnt/runs GLOO_SOCKET_IFNAME=eth0
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes=2 --nproc-per-node=2 --rdzv-backend=c10d --rdzv-id=same \
    --rdzv-endpoint="$head_node:29500" ddp.py
"""


def test_nodes_without_a_shared_directory_write_the_parts_of_one_run(
    network_cluster: Cluster,
) -> None:
    cluster = network_cluster
    trainings.write(cluster, "ddp.py", trainings.PLAIN + trainings.PRINT)
    job = cluster.submit(trainings.write(cluster, "local.sbatch", NODE_LOCAL))
    assert cluster.wait(job) == "COMPLETED", cluster.output(job)
    output = cluster.output(job)
    parts = [cluster.directory.parent / node.name / "runs" for node in cluster.nodes]
    ranks = []
    for node, part in zip(cluster.nodes, parts, strict=True):
        (run_dir,) = part.iterdir()
        assert run_dir.name == f"slurm-{job}.0"
        spools = spools_of(run_dir)
        assert {spool.header.hostname for spool in spools.values()} == {node.name}
        assert {spool.header.run_id for spool in spools.values()} == {run_dir.name}
        assert {spool.header.identity.world_size for spool in spools.values()} == {4}
        assert not summary_of(run_dir)["traceml_agent"]["complete"]
        ranks.append(sorted(spools))
    assert sorted(ranks) == [[0, 1], [2, 3]]
    assert socket.gethostname() not in [node.name for node in cluster.nodes]
    # The part without rank 0 is told in one line.
    assert summaries_printed(output) == 1
    assert output.count("rank 0 is not in") == 1
