"""Attempts of one run, by real processes: what was lost, what belongs together, what does not."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.e2e.harness import environment, run, runs_in, write

RESUMED = """
import json, os, pickle, signal, sys, time
import torch
torch.set_num_threads(1)
kind = sys.argv[1]
model = torch.nn.Linear(4, 2)
if kind == "adam":
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
else:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
begin = 0
again = os.path.exists("last.pt")
if again and kind == "json":
    with open("last.pt") as file:
        begin, weights = json.load(file)
    model.load_state_dict({name: torch.tensor(values) for name, values in weights.items()})
elif again:
    with open("last.pt", "rb") as file:
        found = pickle.load(file) if kind == "pickle" else torch.load(file)
    begin = found["step"]
    model.load_state_dict(found["model"])
    optimizer.load_state_dict(found["optimizer"])
for step in range(begin + 1, 51):
    optimizer.zero_grad()
    model(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()
    time.sleep(0.03)
    state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    if step % 10 == 0 and kind == "json":
        with open("last.pt", "w") as file:
            json.dump((step, {name: t.tolist() for name, t in model.state_dict().items()}), file)
    elif step % 10 == 0 and kind == "pickle":
        with open("last.pt", "wb") as file:
            pickle.dump(state, file)
    elif step % 10 == 0:
        torch.save(state, "new.pt")
        os.replace("new.pt", "last.pt")
    if step == int(sys.argv[2]) and not again:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def run_twice(tmp_path, kind, last):
    """A training that is killed after step `last`, and resumed by hand under the same name.

    Killed right after a checkpoint, it takes the record of it along.
    """
    script = write(tmp_path, RESUMED)
    first = run(tmp_path, script, kind, str(last), TRACEML_RUN_ID="by-hand")
    assert first.returncode == -signal.SIGKILL, first.stderr
    pause_s = 1.5
    time.sleep(pause_s)
    begun = time.time()
    second = run(tmp_path, script, kind, str(last), TRACEML_RUN_ID="by-hand")
    assert second.returncode == 0, second.stderr
    return second, begun


@pytest.mark.parametrize(
    ("kind", "last", "by"),
    [
        ("adam", 37, "optimizer"),
        ("momentum", 37, "checkpoint file"),
        ("momentum", 40, None),
        ("pickle", 37, "last checkpoint"),
    ],
)
def test_a_resumption_by_hand_after_sigkill_tells_the_lost_steps(tmp_path, kind, last, by):
    done, begun = run_twice(tmp_path, kind, last)
    first, second = done.summary["ledger"]["attempts"]
    resumed_at = last // 10 * 10
    # The step whose update was the last act of the process never closed.
    assert (first["status"], first["steps"]) == ("killed", last - 1)
    assert first["steps_lost"] == max(0, last - 1 - resumed_at)
    assert second["resumed_at_step"] == pytest.approx(resumed_at, abs=0 if by else 1)
    assert second["steps"] == 50 - resumed_at
    if by:
        assert second["resumed_by"] == by
    goodput = done.summary["ledger"]["goodput"]
    ended = first["start_ts_s"] + first["wall_s"]
    assert second["restart_gap_s"] == pytest.approx(begun - ended, abs=1.0)
    parts = sum(part["seconds"] for part in goodput["parts"].values())
    assert parts == pytest.approx(goodput["wall_s"], rel=0.01)
    lasted = second["start_ts_s"] + second["wall_s"] - first["start_ts_s"]
    assert goodput["wall_s"] == pytest.approx(lasted, rel=0.01)
    assert "Goodput" in done.stderr


def test_a_resumption_in_a_format_of_its_own_is_unknown_and_not_zero(tmp_path):
    done, _ = run_twice(tmp_path, "json", 37)
    first, second = done.summary["ledger"]["attempts"]
    assert (first["steps_lost"], second["resumed_by"]) == (None, "unknown")
    assert done.summary["ledger"]["goodput"]["goodput_percent"] is None


ELASTIC = """
import os, signal, sys, time
import torch
import torch.distributed as dist
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, again = dist.get_rank(), os.environ["TORCHELASTIC_RESTART_COUNT"] != "0"
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
begin = 0
if again:
    found = torch.load("last.pt")
    begin = found["step"]
    model.load_state_dict(found["model"])
for step in range(begin + 1, 61):
    optimizer.zero_grad()
    model(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()
    time.sleep(0.02)
    if step % 20 == 0 and rank == 0:
        torch.save({"step": step, "model": model.state_dict()}, "last.pt")
    if step == 47 and rank == 1 and not again:
        os.kill(os.getpid(), signal.SIGKILL)
dist.destroy_process_group()
"""


def cli(tmp_path, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "traceml_agent", *arguments],
        env=environment(tmp_path, False, TRACEML_DIR=str(tmp_path / "runs")),
        capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_an_elastic_restart_is_stitched_and_its_nodes_merge_to_the_same_bytes(tmp_path):
    script = write(tmp_path, ELASTIC)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    begun = time.time()
    done = run(
        tmp_path, *torchrun, "--max-restarts", "1", script, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1"
    )
    took_s = time.time() - begun
    assert done.returncode == 0, done.stderr
    ledger = done.summary["ledger"]
    first, second = ledger["attempts"]
    assert (first["ranks"], second["ranks"]) == (2, 2)
    assert first["status"] in ("killed", "failed")
    assert second["resumed_at_step"] == 40
    assert first["steps"] in (46, 47)  # whether the survivor closed the step with its neighbour
    assert first["steps_lost"] == first["steps"] - 40
    assert (second["steps"], second["status"]) == (20, "finished")
    goodput = ledger["goodput"]
    parts = {name: part["seconds"] for name, part in goodput["parts"].items()}
    assert sum(parts.values()) == pytest.approx(goodput["wall_s"], rel=0.01)
    assert goodput["wall_s"] <= took_s  # the launcher starts before and ends after
    assert parts["lost"] == pytest.approx(first["steps_lost"] * 0.022, rel=0.6)
    merges_to_the_same_bytes(tmp_path, done.run_dir)


def merges_to_the_same_bytes(tmp_path, shared):
    """Parts the files of a run by rank into two directories, and folds these."""
    target = tmp_path / "shared" / "run"
    parts = [tmp_path / name / "run" for name in ("node-a", "node-b")]
    shutil.copytree(shared, target)
    for rank, part in enumerate(parts):
        part.mkdir(parents=True)
        for path in shared.glob(f"rank{rank:05d}-*"):
            shutil.copy2(path, part)
    assert cli(tmp_path, "fold", str(target)).returncode == 0
    folded = [(target / f"final_summary.{end}").read_bytes() for end in ("json", "txt")]
    shutil.rmtree(target)
    merged = cli(tmp_path, "fold", *map(str, parts), "--output", str(target))
    assert merged.returncode == 0, merged.stderr
    again = [(target / f"final_summary.{end}").read_bytes() for end in ("json", "txt")]
    assert again[1] == folded[1]
    stamps = [json.loads(data)["generated_at"].encode() for data in (folded[0], again[0])]
    assert again[0] == folded[0].replace(*stamps)
    shown = cli(tmp_path, "view", *map(str, reversed(parts)), "--json")
    assert json.loads(shown.stdout)["ledger"] == json.loads(folded[0])["ledger"]


JOB = """
import os, sys, time
import torch
torch.set_num_threads(1)
model = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
def step():
    optimizer.zero_grad()
    model(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()
    time.sleep(0.02)
for _ in range(3):
    step()
open(f"ready.{sys.argv[1]}", "w").close()
while not os.path.exists(f"ready.{1 - int(sys.argv[1])}"):  # both train at the same time
    step()
for _ in range(20 + 20 * int(sys.argv[1])):
    step()
"""


def test_two_jobs_that_write_into_one_run_at_once_are_told_apart(tmp_path):
    script = write(tmp_path, JOB)
    jobs = [
        subprocess.Popen(
            [sys.executable, script, number],
            env=environment(tmp_path, True, TRACEML_RUN_ID="shared"),
            stderr=subprocess.PIPE, cwd=tmp_path, text=True,
        )
        for number in ("0", "1")
    ]  # fmt: skip
    errors = [job.communicate(timeout=150)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], errors
    (run_dir,) = runs_in(tmp_path)
    payload = json.loads((run_dir / "final_summary.json").read_text())
    (finding,) = [f for f in payload["findings"] if f["section"] == "run"]
    assert (finding["kind"], finding["severity"]) == ("DUPLICATE_RANKS", "crit")
    (attempt,) = payload["ledger"]["attempts"]
    assert attempt["processes_left_out"] == 1
    assert any("DUPLICATE RANKS" in text for text in errors)
