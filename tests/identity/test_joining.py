"""All ranks of a job find one directory; two jobs never share one.

Claims are taken one after the other in one process: each stands for a process by its launch and
its life, which is real (this process lives; the pid of a process that ended does not).
"""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from traceml_agent.capture.joining import Claim, Place, join
from traceml_agent.capture.launch import launch_of, pid_namespace, start_ticks
from traceml_agent.run_key import Launch, RunKey, Sharing, resolve_run_key
from traceml_agent.spool.liveness import boot_id
from traceml_agent.spool.rundir import make_run_dir

LAUNCH = Launch("0a0a0a0a", "parent-7-0a0a0a0a", "20260101-000000-8", False, "host1")
CHILD = replace(LAUNCH, is_child=True)
TORCHRUN = {"TORCHELASTIC_RUN_ID": "exp", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0"}
STATIC = TORCHRUN | {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4", "MASTER_PORT": "29500"}
SLURM = {"SLURM_JOB_ID": "5", "SLURM_STEP_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"}
TUTORIAL = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "12355"}
KEYS = {
    "given": ({"SLURM_JOB_ID": "5"}, "mine", LAUNCH, "mine", Sharing.GIVEN),
    "step": (SLURM, None, LAUNCH, "slurm-5.1", Sharing.STEP),
    "child in a step": (SLURM, None, CHILD, "slurm-5.1", Sharing.STEP),
    "batch": ({"SLURM_JOB_ID": "5"}, None, LAUNCH, "slurm-5", Sharing.LAUNCH),
    "torchrun in a batch": (
        TORCHRUN | {"SLURM_JOB_ID": "5"}, None, LAUNCH, "slurm-5", Sharing.LAUNCH
    ),
    "torchrun in a step": (SLURM | STATIC, None, LAUNCH, "slurm-5.1", Sharing.SHARED),
    "torchrun": (TORCHRUN, None, LAUNCH, "elastic-exp-0a0a0a0a", Sharing.LAUNCH),
    "torchrun on nodes": (TORCHRUN | {"WORLD_SIZE": "4"}, None, LAUNCH, "elastic-exp",
                          Sharing.SHARED),
    "static": (STATIC | {"MASTER_ADDR": "h"}, None, LAUNCH, "torchrun-h-29500", Sharing.SHARED),
    "mpi": ({"OMPI_COMM_WORLD_RANK": "0", "PMIX_NAMESPACE": "prterun-h-1@1"}, None, LAUNCH,
            "mpi-prterun-h-1-1", Sharing.SHARED),
    "spawn": ({}, None, CHILD, "parent-7-0a0a0a0a", Sharing.LAUNCH),
    "spawn with RANK": (TUTORIAL, None, CHILD, "parent-7-0a0a0a0a", Sharing.LAUNCH),
    "spawn on nodes": (TUTORIAL | {"MASTER_ADDR": "h2"}, None, CHILD, "environment-h2-12355",
                       Sharing.SHARED),
    "RANK": (TUTORIAL, None, LAUNCH, "environment-host1-12355", Sharing.SHARED),
    "RANK alone": ({"RANK": "1"}, None, LAUNCH, "parent-7-0a0a0a0a", Sharing.LAUNCH),
    "Lightning starts the others": (
        {"LOCAL_RANK": "0", "NODE_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
         "MASTER_PORT": "4711"}, None, LAUNCH, "environment-host1-4711", Sharing.SHARED,
    ),
    "Lightning on one device": (
        {"LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "4711"},
        None, LAUNCH, "20260101-000000-8", Sharing.LAUNCH,
    ),
    "nothing": ({}, None, LAUNCH, "20260101-000000-8", Sharing.LAUNCH),
}  # fmt: skip


@pytest.mark.parametrize("case", KEYS)
def test_each_launcher_gives_a_key(case: str) -> None:
    environ, configured, launch, run_id, sharing = KEYS[case]
    assert resolve_run_key(environ, configured, launch) == RunKey(run_id, sharing)


def test_the_agent_of_torchrun_is_told_apart_from_others_whatever_the_parent() -> None:
    file = "/tmp/torchelastic_a1/none_b2/attempt_{}/{}/error.json"

    def token(path: str, parent: int) -> str:
        return launch_of({"TORCHELASTIC_ERROR_FILE": path}, parent).token

    first = token(file.format(0, 0), 1)
    assert token(file.format(1, 3), 2) == first  # a restart, another rank, a script between
    assert token(file.format(0, 0).replace("b2", "b3"), 1) != first


@pytest.fixture(scope="module")
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def claim(rank: int, launch: str = "a", **fields: object) -> Claim:
    """A process of this machine that lives: the parent of pytest, which is not ours."""
    import os

    pid = os.getppid()
    own = Claim(rank, 0, 0, 4, launch, pid, start_ticks(pid), "h", boot_id(), pid_namespace())
    return replace(own, **fields)  # type: ignore[arg-type]


def take(runs: Path, sharing: Sharing, own: Claim, is_child: bool = False) -> Place:
    return join(partial(make_run_dir, runs), RunKey("job", sharing), own, is_child)


def name(place: Place) -> str:
    return f"{place.run_dir.name}:{place.rank}:{place.attempt}"


def test_two_launches_with_one_key_get_two_directories_whichever_rank_comes_first(
    tmp_path: Path,
) -> None:
    order = [("a", 0), ("b", 1), ("b", 0), ("a", 1), ("c", 1)]
    found = [name(take(tmp_path, Sharing.LAUNCH, claim(r, by))) for by, r in order]
    assert found == ["job:0:0", "job-2:1:0", "job-2:0:0", "job:1:0", "job-3:1:0"]


def test_one_launch_that_trains_twice_gets_two_directories(tmp_path: Path, dead_pid: int) -> None:
    first = [claim(r, pid=dead_pid) for r in (0, 1)]
    assert [name(take(tmp_path, Sharing.LAUNCH, c)) for c in first] == ["job:0:0", "job:1:0"]
    again = [claim(r) for r in (0, 1)]
    assert [name(take(tmp_path, Sharing.LAUNCH, c)) for c in again] == ["job-2:0:0", "job-2:1:0"]


def test_ranks_of_one_job_on_several_nodes_meet(tmp_path: Path) -> None:
    nodes = [(0, "a"), (2, "b"), (1, "a"), (3, "b")]
    found = {take(tmp_path, Sharing.SHARED, claim(r, by)).run_dir.name for r, by in nodes}
    assert found == {"job"}


def test_a_later_job_with_the_key_of_a_dead_one_gets_a_directory_of_its_own(
    tmp_path: Path, dead_pid: int
) -> None:
    for rank in (0, 1, 2):  # rank 3 died before it trained
        take(tmp_path, Sharing.SHARED, claim(rank, "a", pid=dead_pid))
    found = [
        name(take(tmp_path, Sharing.SHARED, claim(r, "b" if r < 2 else "c"))) for r in range(4)
    ]
    assert found == ["job-2:0:0", "job-2:1:0", "job-2:2:0", "job-2:3:0"]


def test_a_job_of_another_size_is_another_job(tmp_path: Path) -> None:
    take(tmp_path, Sharing.SHARED, claim(0, "a"))
    assert name(take(tmp_path, Sharing.SHARED, claim(5, "b", world_size=8))) == "job-2:5:0"


def test_a_restart_by_the_agent_joins_its_own_run_and_not_that_of_an_earlier_job(
    tmp_path: Path, dead_pid: int
) -> None:
    for launch in ("old", "new"):
        for rank in (0, 1):
            take(tmp_path, Sharing.SHARED, claim(rank, launch, pid=dead_pid))
    restarted = [claim(rank, "new", elastic_restarts=1) for rank in (0, 1)]
    assert [name(take(tmp_path, Sharing.SHARED, c)) for c in restarted] == [
        "job-2:0:1",
        "job-2:1:1",
    ]
    replaced = claim(2, "a node that was not there before", elastic_restarts=1)
    assert name(take(tmp_path, Sharing.SHARED, replaced)) == "job-2:2:1"


@pytest.mark.parametrize("sharing", [Sharing.LAUNCH, Sharing.STEP, Sharing.SHARED])
def test_a_requeued_script_finds_each_of_its_trainings_again(
    tmp_path: Path, dead_pid: int, sharing: Sharing
) -> None:
    for restart in (0, 1):
        for number in ("", "-2"):
            launch = f"shell {restart} {number}"
            dead = claim(0, launch, slurm_restarts=restart, pid=dead_pid, world_size=1)
            assert name(take(tmp_path, sharing, dead)) == f"job{number}:0:{restart}"


def test_restarts_of_both_kinds_are_attempts_in_their_order(tmp_path: Path, dead_pid: int) -> None:
    found = [
        take(tmp_path, Sharing.STEP, claim(0, slurm_restarts=s, elastic_restarts=e, pid=dead_pid))
        for s, e in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0)]
    ]
    assert [place.attempt for place in found] == [0, 1, 2, 3, 4, 5]
    assert {place.run_dir.name for place in found} == {"job"}


def test_children_without_ranks_are_numbered_while_a_sibling_lives(
    tmp_path: Path, dead_pid: int
) -> None:
    found = [take(tmp_path, Sharing.LAUNCH, claim(0, pid=dead_pid), is_child=True)]
    found += [
        take(tmp_path, Sharing.LAUNCH, replace(claim(0, world_size=1), hostname=str(n)), True)
        for n in range(3)
    ]
    assert [name(place) for place in found] == ["job:0:0", "job-2:0:0", "job-2:1:0", "job-2:2:0"]


def test_a_process_that_replaces_itself_by_exec_stays_in_its_place(tmp_path: Path) -> None:
    own = claim(1)
    places = [take(tmp_path, sharing, own) for sharing in (Sharing.LAUNCH, Sharing.SHARED) * 2]
    assert {name(place) for place in places} == {"job:1:0"}


def test_of_many_that_ask_at_one_time_each_gets_a_place_of_its_own(tmp_path: Path) -> None:
    claims = [claim(rank, launch, pid=1_000_000 + n)
              for n, launch in enumerate("abcd") for rank in range(4)]  # fmt: skip
    with ThreadPoolExecutor(16) as pool:
        places = list(pool.map(partial(take, tmp_path, Sharing.LAUNCH), claims))
    by_launch = {
        launch: {p.run_dir.name for p, c in zip(places, claims, strict=True) if c.launch == launch}
        for launch in "abcd"
    }
    assert all(len(found) == 1 for found in by_launch.values()), by_launch
    assert len(set.union(*by_launch.values())) == 4


def test_a_run_that_the_user_names_is_joined_again_as_it_is(tmp_path: Path) -> None:
    assert {name(take(tmp_path, Sharing.GIVEN, claim(0, by))) for by in "ab"} == {"job:0:0"}
