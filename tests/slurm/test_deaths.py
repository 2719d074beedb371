"""Jobs that Slurm ends, with cgroups as sites have them: the summary is there afterwards."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm import trainings
from tests.slurm.cluster import TIMEOUT_S, Cluster
from tests.slurm.trainings import runs_of, spools_of, summary_of

pytestmark = pytest.mark.slow

ENDLESS = trainings.PLAIN + trainings.ENDLESS
WARNED = """
import signal
signal.signal(signal.SIGUSR1, lambda *_: open("warned", "w").close())
"""


def wait_until_ready(cluster: Cluster, job: str, ranks: int) -> None:
    """Until that many processes of the job have trained."""
    note = cluster.work / f"ready-{job}"
    deadline = time.monotonic() + TIMEOUT_S
    while not note.exists() or note.stat().st_size < ranks:
        assert time.monotonic() < deadline, cluster.output(job)
        time.sleep(0.1)


def only_run(cluster: Cluster, job: str) -> Path:
    (run_dir,) = runs_of(cluster, job).values()
    return run_dir


@pytest.fixture(scope="module", autouse=True)
def job_of_a_minute(cluster: Cluster) -> Iterator[str]:
    """A job that runs into its time limit, which is a minute at least, while others are tested."""
    script = trainings.write(cluster, "warned.py", WARNED + ENDLESS)
    yield cluster.submit(
        "--comment=traceml", "--time=1", "--signal=USR1@15", "--wrap", f"srun python {script}"
    )


@pytest.fixture(scope="module")
def cluster(cgroup_cluster: Cluster) -> Cluster:
    """The one with cgroups."""
    return cgroup_cluster


def test_a_cancelled_job_has_its_summary_when_it_has_left_the_queue(cluster: Cluster) -> None:
    script = trainings.write(cluster, "endless.py", ENDLESS)
    step = cluster.submit("--comment=traceml", "-N2", "-n2", "--wrap", f"srun python {script}")
    # Not the last command of the shell, or it would replace itself by python.
    direct = cluster.submit("--comment=traceml", "--wrap", f"python {script}; true")
    wait_until_ready(cluster, step, 2)
    wait_until_ready(cluster, direct, 1)
    cluster.run("scancel", step, direct)
    assert cluster.wait(step) == cluster.wait(direct) == "CANCELLED"
    steps = summary_of(only_run(cluster, step))
    assert steps["run_context"]["run"]["status"] == "terminated"
    assert {how["status"] for how in steps["run_context"]["exit"].values()} == {"terminated"}
    assert sorted(steps["run_context"]["exit"]) == ["0", "1"]
    assert min(how["last_step"] for how in steps["run_context"]["exit"].values()) >= 12
    # A child of the batch shell gets no SIGTERM: what it had in its ring is in the summary.
    killed = summary_of(only_run(cluster, direct))
    assert killed["run_context"]["run"]["status"] == "killed"
    assert killed["run_context"]["exit"]["0"]["last_step"] >= 12
    assert (only_run(cluster, direct) / "final_summary.txt").exists()
    idle = cluster.run("sinfo", "-h", "-N", "-t", "drain,down", "-o", "%n").stdout
    assert idle == "", "an epilog took a node out of service"


def test_the_epilog_brings_home_what_a_killed_job_left_on_its_nodes(cluster: Cluster) -> None:
    script = trainings.write(cluster, "endless.py", ENDLESS)
    place = cluster.work / "node-local"
    place.mkdir()
    job = cluster.submit(
        "--comment=traceml", "-N2", "-n2", f"--export=ALL,TRACEML_SPOOL_LOCAL=1,TMPDIR={place}",
        "--wrap", f"srun python {script}",
    )  # fmt: skip
    wait_until_ready(cluster, job, 2)
    local = list(place.rglob("rank*.jsonl"))
    assert len(local) == 2
    cluster.run("scancel", job)
    assert cluster.wait(job) == "CANCELLED"
    summary = summary_of(only_run(cluster, job))
    assert {how["status"] for how in summary["run_context"]["exit"].values()} == {"terminated"}
    # More than the digest of the start had: the rest came from the nodes.
    assert min(how["last_step"] for how in summary["run_context"]["exit"].values()) >= 12
    assert summary["traceml_agent"]["problems"] == []
    assert [path for path in local if path.exists()] == []


def test_a_requeued_job_is_the_next_attempt_of_the_same_run(cluster: Cluster) -> None:
    twice = f"""
import os, sys
if "SLURM_RESTART_COUNT" in os.environ:
    exec({trainings.PLAIN!r})
else:
    exec({ENDLESS!r})
"""
    script = trainings.write(cluster, "twice.py", twice)
    job = cluster.submit("--comment=traceml", "--requeue", "--wrap", f"srun python {script}")
    wait_until_ready(cluster, job, 1)
    assert cluster.run("scontrol", "requeue", job).returncode == 0
    assert cluster.wait(job) == "COMPLETED", cluster.output(job)
    run_dir = only_run(cluster, job)
    assert run_dir.name == f"slurm-{job}.0"
    names = sorted(path.name for path in run_dir.glob("*.jsonl"))
    assert [name.split("-")[:2] for name in names] == [
        ["rank00000", "attempt0"],
        ["rank00000", "attempt1"],
    ]
    summary = summary_of(run_dir)
    assert summary["traceml_agent"]["attempt"] == 1
    assert summary["run_context"]["run"]["status"] == "finished"


def test_the_signal_before_the_time_limit_is_the_program_s_and_the_summary_is_there_after_it(
    cluster: Cluster, job_of_a_minute: str
) -> None:
    assert cluster.wait(job_of_a_minute) == "TIMEOUT", cluster.output(job_of_a_minute)
    assert (cluster.work / "warned").exists()
    run_dir = only_run(cluster, job_of_a_minute)
    summary = summary_of(run_dir)
    assert summary["run_context"]["run"]["status"] == "terminated"
    assert "SIGTERM" in summary["run_context"]["exit"]["0"]["exception"]
    assert spools_of(run_dir)[0].end is None
