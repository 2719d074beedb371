"""Trainings that stand still: real ranks under torchrun, real debuggers, real sleeps."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.harness import environment, run, runs_in, write
from traceml_agent.report.hangs import SILENT_NS

PATIENCE_S = 120
RANKS = 3

JOB = """
import ctypes, os, sys, time
import torch, torch.distributed as dist
torch.set_num_threads(1)
HOW = sys.argv[1]
dist.init_process_group("gloo")
rank = dist.get_rank()
model = torch.nn.Linear(4, 2)
if HOW != "other":
    model = torch.nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
total = torch.zeros(1)

def load_batch(step):
    if rank == 1 and step == 25:
        if HOW == "sleep":
            time.sleep(600)  # the line of the sleep
        if HOW == "lock":
            ctypes.PyDLL(None).sleep(600)  # the line of the lock
        if HOW == "wait":
            open(sys.argv[2], "w").close()
    time.sleep(0.01)
    return torch.randn(3, 4)

for step in range(200 if HOW == "wait" else 60):
    batch = load_batch(step)
    optimizer.zero_grad()
    model(batch).sum().backward()
    optimizer.step()
    if HOW == "other":
        if rank == 1 and step == 25:
            dist.broadcast(total, 1)
        else:
            dist.all_reduce(total)  # the line of the others
print("done")
dist.destroy_process_group()
"""


def in_training(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The hangs of a summary, less a start-up that took longer than the limit of these tests."""
    return [h for h in summary["hangs"] if (h["kind"], h["ended"]) != ("LONG_PHASE", True)]


def line_of(text: str, source: str = JOB) -> int:
    return next(n for n, line in enumerate(source.splitlines(), 1) if text in line)


class Job:
    """Processes that do not end by themselves; all of them are ended by the test."""

    def __init__(self, tmp_path: Path, *command: str, **extra: str) -> None:
        self.tmp_path = tmp_path
        settings = {"TRACEML_HANG_S": "1", "TRACEML_RUN_ID": "job", **extra}
        self.process = subprocess.Popen(
            [sys.executable, *command],
            env=environment(tmp_path, True, **settings),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=tmp_path,
            text=True,
        )

    @property
    def run_dir(self) -> Path:
        return self.tmp_path / "runs" / "job"

    def records(self, kind: str) -> list[dict[str, Any]]:
        found = []
        for spool in sorted(self.run_dir.glob("*.jsonl")):
            for line in spool.read_bytes().split(b"\n")[:-1]:
                record = json.loads(line)
                if record["kind"] == kind:
                    found.append({**record, "spool": spool.name})
        return found

    def told(self, kind: str) -> list[dict[str, Any]]:
        """The same once a step was closed: on a busy machine the start-up is a stall too."""
        return [record for record in self.records(kind) if record["step"]]

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, "nothing happened"
            if self.process.poll() is not None:
                raise AssertionError(self.process.communicate()[0])
            time.sleep(0.2)

    def pid_of(self, rank: int) -> int:
        return next(r["pid"] for r in self.records("header") if r["identity"]["rank"] == rank)

    def view(self, *options: str) -> str:
        """What another process says of the run, as one on a login node does."""
        command = [sys.executable, "-m", "traceml_agent", "view", str(self.run_dir), *options]
        done = subprocess.run(
            command,
            env=environment(self.tmp_path, False),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.view("--json"))
        return found

    def end(self) -> None:
        if self.process.poll() is None:
            children = psutil.Process(self.process.pid).children(recursive=True)
            for process in (*children, psutil.Process(self.process.pid)):
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
        self.process.communicate()


Start = Callable[..., Job]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    jobs: list[Job] = []

    def begin(*command: str, **extra: str) -> Job:
        jobs.append(Job(tmp_path, *command, **extra))
        return jobs[-1]

    yield begin
    for job in jobs:
        job.end()


@pytest.fixture
def start_ranks(tmp_path: Path, start: Start) -> Start:
    script = write(tmp_path, JOB)

    def begin(*arguments: str) -> Job:
        command = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}")
        return start(*command, script, *arguments)

    return begin


def stalled(job: Job, ranks: int) -> Callable[[], bool]:
    return lambda: len({r["spool"] for r in job.told("stall")}) >= ranks


@pytest.mark.slow
def test_view_names_the_rank_that_sleeps_and_its_line_while_the_others_wait(
    start_ranks: Start,
) -> None:
    job = start_ranks("sleep")
    job.wait_until(stalled(job, RANKS))
    job.wait_until(lambda: len(job.told("process_groups")) == RANKS)
    place = f"load_batch at train.py:{line_of('line of the sleep')}"
    assert f"rank 1: {place}" in job.view()
    summary = job.summary()
    (hang,) = in_training(summary)
    assert summary["primary_diagnosis"]["kind"] == "HANG"
    assert hang["culprits"] == [1]
    assert "rank 1 never entered collective" in hang["cause"]
    backward = line_of("backward()")
    assert [(p["ranks"], p["at"]) for p in hang["places"]] == [
        ("1", place),
        ("0,2", f"Tensor.backward at train.py:{backward}"),
    ]
    # The watch looks; the process is as it was.
    assert summary["run_context"]["run"]["status"] == "running"
    job.process.send_signal(signal.SIGTERM)
    job.process.wait(60)
    after = job.summary()
    assert after["primary_diagnosis"]["kind"] == "HANG"
    assert after["run_context"]["run"]["status"] == "terminated"


@pytest.mark.slow
def test_a_rank_in_another_collective_is_named_by_the_flight_recorder(start_ranks: Start) -> None:
    job = start_ranks("other")
    job.wait_until(stalled(job, RANKS))
    job.wait_until(lambda: len(job.told("process_groups")) == RANKS)
    (hang,) = in_training(job.summary())
    assert hang["culprits"] == [1]
    assert hang["collectives"][0]["mismatch"] == (
        "all_reduce of 1 on 2 ranks (0,2), broadcast of 1 on rank 1"
    )
    assert hang["places"][1]["at"] == f"all_reduce at train.py:{line_of('line of the others')}"


@pytest.mark.slow
def test_a_stopped_rank_is_no_hang_of_its_own_and_the_job_goes_on(
    tmp_path: Path, start_ranks: Start
) -> None:
    job = start_ranks("wait", str(tmp_path / "now"))
    job.wait_until((tmp_path / "now").exists)
    job.wait_until(lambda: len(job.records("header")) == RANKS)
    pid = job.pid_of(1)
    psutil.Process(pid).suspend()
    job.wait_until(stalled(job, RANKS - 1))
    time.sleep(SILENT_NS / 1e9 + 3)
    (hang,) = in_training(job.summary())
    assert hang["culprits"] == [1]
    assert hang["places"][0]["at"].startswith("stopped by a signal (state T)")
    psutil.Process(pid).resume()
    output, _ = job.process.communicate(timeout=PATIENCE_S)
    assert (job.process.returncode, output.count("done")) == (0, RANKS)
    own = [r for r in job.told("stall") + job.told("event") if "rank00001" in r["spool"]]
    names = [r.get("name", r["kind"]) for r in own]
    assert [name for name in names if name not in ("gc", "threads")] == ["strategy", "pause"]
    summary = job.summary()
    assert [hang["ended"] for hang in in_training(summary)] == [True]
    assert summary["primary_diagnosis"]["kind"] not in ("HANG", "STALL")


@pytest.mark.slow
def test_a_rank_that_holds_the_interpreter_lock_is_silent_and_sigterm_shows_its_line(
    start_ranks: Start,
) -> None:
    job = start_ranks("lock")
    job.wait_until(stalled(job, RANKS - 1))
    time.sleep(SILENT_NS / 1e9 + 3)
    (hang,) = in_training(job.summary())
    assert (hang["culprits"], hang["places"][0]["state"]) == ([1], "silent")
    psutil.Process(job.pid_of(1)).terminate()
    job.process.wait(PATIENCE_S)
    stack = job.summary()["run_context"]["exit"]["1"]["stack"]
    assert f"line {line_of('line of the lock')} in load_batch" in stack


ALONE = """
import sys, time
import torch
from torch.utils.data import DataLoader, Dataset
torch.set_num_threads(1)
HOW = sys.argv[1]

class Data(Dataset):
    def __len__(self):
        return 4000
    def __getitem__(self, index):
        if HOW == "worker" and index >= 120:
            time.sleep(600)
        return torch.randn(4)

class Slow:
    def __reduce__(self):
        time.sleep(3)
        return int, (1,)

def backend(graph, examples):
    time.sleep(3)
    return graph.forward

def pause():
    time.sleep(6)  # the line of the pause

model = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = DataLoader(Data(), batch_size=4, num_workers=1 if HOW == "worker" else 0)
for step, batch in enumerate(loader):
    optimizer.zero_grad()
    model(batch).sum().backward()
    optimizer.step()
    time.sleep(0.01)
    if step == 60 and HOW != "worker":
        break
    if step != 25:
        continue
    if HOW == "pause":
        pause()
    if HOW == "input":
        input("? ")
    if HOW == "pdb":
        import pdb; pdb.set_trace()
    if HOW == "long":
        torch.save(Slow(), "/dev/null")
        torch.compile(lambda x: x + 1, backend=backend)(batch)
        model.eval()
        with torch.no_grad():
            for _ in range(60):
                model(batch)
                time.sleep(0.05)
        model.train()
print("done")
"""


def test_a_deadlocked_worker_is_a_stall_at_the_line_of_the_loop(
    tmp_path: Path, start: Start
) -> None:
    job = start(write(tmp_path, ALONE), "worker")
    job.wait_until(stalled(job, 1))
    summary = job.summary()
    line = line_of("enumerate(loader)", ALONE)
    assert summary["primary_diagnosis"]["kind"] == "STALL"
    assert summary["hangs"][0]["places"][0]["at"] == f"DataLoader.__next__ at train.py:{line}"
    assert summary["hangs"][0]["places"][0]["phase"] == "input_wait"
    assert "what its workers do" in summary["primary_diagnosis"]["action"]


@pytest.mark.parametrize(
    ("how", "options", "awaited"),
    [("input", (), "stdin"), ("pdb", (), "debugger"), ("none", ("-i",), "prompt")],
)
def test_a_process_that_waits_for_a_person_does_not_hang(
    tmp_path: Path, start: Start, how: str, options: tuple[str, ...], awaited: str
) -> None:
    job = start(*options, write(tmp_path, ALONE), how)
    job.wait_until(stalled(job, 1))
    summary = job.summary()
    (hang,) = summary["hangs"]
    assert hang["kind"] == "WAITING_FOR_INPUT"
    assert f"(waits for a person: {awaited})" in job.view()
    assert summary["primary_diagnosis"]["kind"] not in ("HANG", "STALL", "WAITING_FOR_INPUT")
    output, _ = job.process.communicate("" if awaited == "prompt" else "c\n", timeout=60)
    assert (job.process.returncode, "done" in output) == (0, True)


def test_a_long_checkpoint_compilation_and_evaluation_raise_no_alarm(tmp_path: Path) -> None:
    result = run(tmp_path, write(tmp_path, ALONE), "long", TRACEML_HANG_S="1")
    summary = result.summary
    assert [f for f in summary["findings"] if f["section"] == "hangs"] == []
    assert {hang["kind"] for hang in summary["hangs"]} == {"LONG_PHASE"}
    assert "stall" not in summary["events"]["counts"]


def test_a_stall_that_ends_is_told_with_its_line_and_changes_nothing(tmp_path: Path) -> None:
    script = write(tmp_path, ALONE)
    off = run(tmp_path, script, "pause", enabled=False)
    on = run(tmp_path, script, "pause", TRACEML_HANG_S="1")
    assert (on.returncode, on.stdout, on.other_stderr) == (
        off.returncode,
        off.stdout,
        off.other_stderr,
    )
    (hang,) = on.summary["hangs"]
    assert (hang["kind"], hang["ended"]) == ("STALL", True)
    line = line_of("line of the pause", ALONE)
    assert [place["at"] for place in hang["places"]] == [f"pause at train.py:{line}"]
    assert 5 < hang["duration_s"] < 20  # 6 s of sleep, on a busy machine
    assert on.summary["events"]["counts"]["stall"] == 1
    assert len(runs_in(tmp_path)) == 1
