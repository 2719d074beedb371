"""Jobs of several ranks whose first step does not come, or comes late."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.harness import Result, run, runs_in, write
from tests.e2e.test_hangs import Job, Start, line_of, start  # noqa: F401  # a fixture
from tests.slurm.cluster import free_port

RANKS = """
import os, sys, time
import torch, torch.distributed as dist
torch.set_num_threads(1)
HOW = sys.argv[1]
rank = int(os.environ["RANK"])

def prepare():
    time.sleep(600)  # the line of the one who is late

if HOW == "init" and rank == 1:
    prepare()
dist.init_process_group("gloo")  # the line of the meeting
if HOW == "barrier":
    if rank == 1:
        prepare()
    dist.barrier()  # the line of the barrier
"""

ALONE = """
import sys, time
import torch, torch.distributed as dist
from torch.utils.data import DataLoader, Dataset
torch.set_num_threads(1)
HOW = sys.argv[1]

class Data(Dataset):
    def __len__(self):
        return 120
    def __getitem__(self, index):
        if HOW == "input":
            time.sleep(600)  # the line of the sleep
        return torch.randn(4)

dist.init_process_group("gloo")
if HOW in ("late", "server"):
    time.sleep(4)
if HOW != "server":
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in DataLoader(Data(), batch_size=4):
        optimizer.zero_grad()
        model(batch).sum().backward()
        optimizer.step()
print("done")
dist.destroy_process_group()
"""


def alone(port: int) -> dict[str, str]:
    """The variables of a job of one rank."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", **meeting}


def summary_of(job: Job) -> dict:
    summary = job.summary()
    assert summary["run_context"]["run"]["status"] == "running"
    assert summary["primary_diagnosis"]["severity"] == "warn"  # a start may take long
    assert "No step has closed yet" in summary["primary_diagnosis"]["summary"]
    return summary


def stand_in(job: Job, *functions: str) -> Callable[[], bool]:
    """Whether the last word of the ranks (in the order of their names) is that they stand there,
    and have for so long that they are not at work."""

    def look() -> bool:
        last = {record["spool"]: record for record in job.records("stall")}
        if any(record["quiet_ns"] < record["limit_ns"] for record in last.values()):
            return False  # on a busy machine what goes before takes long too
        stacks = [record["threads"][0]["stack"] for _, record in sorted(last.items())]
        return len(stacks) == len(functions) and all(
            function in stack for function, stack in zip(functions, stacks, strict=True)
        )

    return look


@pytest.mark.slow
@pytest.mark.parametrize("how", ["barrier", "init"])
def test_view_shows_where_the_ranks_are_before_the_first_step(
    tmp_path: Path,
    start: Start,  # noqa: F811
    how: str,
) -> None:
    command = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    job = start(*command, write(tmp_path, RANKS), how)
    where = ("barrier", "prepare") if how == "barrier" else ("init_process_group",)
    job.wait_until(stand_in(job, *where))
    (hang,) = summary_of(job)["hangs"]
    assert (hang["kind"], hang["culprits"]) == ("HANG", [1])
    places = {place["ranks"]: place["at"] for place in hang["places"]}
    if how == "barrier":
        assert places == {
            "1": f"prepare at train.py:{line_of('the one who is late', RANKS)}",
            "0": f"barrier at train.py:{line_of('the line of the barrier', RANKS)}",
        }
    else:
        line = line_of("the line of the meeting", RANKS)
        assert places["0"] == f"init_process_group at train.py:{line}"
        assert places["1"].startswith("never seen here (it has not come to init_process_group")


def test_the_first_batch_that_does_not_come_is_a_stall_at_its_line(
    tmp_path: Path,
    start: Start,  # noqa: F811
) -> None:
    job = start(write(tmp_path, ALONE), "input", **alone(free_port(1)))
    job.wait_until(stand_in(job, "__getitem__"))
    (hang,) = summary_of(job)["hangs"]
    assert (hang["kind"], hang["places"][0]["phase"]) == ("STALL", "input_wait")
    line = line_of("the line of the sleep", ALONE)
    assert hang["places"][0]["at"] == f"Data.__getitem__ at train.py:{line}"


def on_and_off(tmp_path: Path, how: str) -> Result:
    script, variables = write(tmp_path, ALONE), alone(free_port(1))
    off = run(tmp_path, script, how, enabled=False, **variables)
    on = run(tmp_path, script, how, TRACEML_HANG_S="1", **variables)
    assert (on.returncode, on.stdout, on.other_stderr) == (0, off.stdout, off.stderr)
    return on


def test_a_start_that_takes_long_is_no_finding_and_no_step_is_missed(tmp_path: Path) -> None:
    on = on_and_off(tmp_path, "late")
    (spool,) = on.spools
    assert (spool.header.identity.rank, spool.end.steps) == (0, 30)
    assert [stall.step for stall in spool.stalls][:1] == [0]
    summary = on.summary
    assert [f for f in summary["findings"] if f["section"] == "hangs"] == []
    assert {(hang["kind"], hang["ended"]) for hang in summary["hangs"]} == {("LONG_PHASE", True)}
    assert "stall" not in summary["events"]["counts"]


def test_a_server_that_never_trains_says_one_line(tmp_path: Path) -> None:
    on = on_and_off(tmp_path, "server")
    told = [line for line in on.own_lines if not line.startswith("traceml: recording to")]
    assert len(told) == 1
    assert told[0].startswith("traceml: nothing was recorded: ")
    assert len(runs_in(tmp_path)) == 1
