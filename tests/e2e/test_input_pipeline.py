"""Which cause is named for pipelines with a known defect, in real runs."""

import json
import os
import re
import sys

import pytest

from tests.e2e.harness import HERE, run, write

INHERITED_FILES = 32
"""What the agent has open in the training process: a forked worker has it too."""
SCRIPT = str(HERE / "pipelines.py")
EXACT = sys.version_info >= (3, 11)
"""Before, `collate_fn` is not timed in workers: the frame of a wrapper would show."""


def trained(tmp_path, name, *arguments):
    """The summary of a run of this pipeline, and its training loader."""
    result = run(tmp_path, SCRIPT, name, *arguments)
    assert result.returncode == 0, result.stderr
    loaders = result.summary["input_pipeline"]["loaders"]
    return result.summary, next(found for found in loaders if found["role"] == "train")


def causes(summary):
    return [issue["kind"] for issue in summary["input_pipeline"]["issues"]]


def test_a_slow_line_of_the_dataset_is_found_in_the_workers(tmp_path):
    summary, loader = trained(tmp_path, "slow line")
    assert causes(summary)[0] == "WORKER_BOUND"
    assert summary["primary_diagnosis"]["kind"] == "INPUT_BOUND"
    assert "pipelines.py" in summary["primary_diagnosis"]["summary"]
    assert "`Images.decode`" in summary["primary_diagnosis"]["summary"]
    # 40 of the 45 ms or so that a batch takes are slept in one line.
    assert loader["busy_share"] > 0.8
    assert 38 < loader["fetch_p50_ms"] < 60
    assert loader["cpu_share"] < 0.3
    assert loader["hotspots"][0]["function"] == "Images.decode"
    assert loader["hotspots"][0]["share"] > 0.7


def test_a_slow_collate_is_told_apart_from_the_items(tmp_path):
    summary, loader = trained(tmp_path, "slow collate")
    assert causes(summary)[0] == "WORKER_BOUND"
    assert loader["hotspots"][0]["function"] == "slow_collate"
    if EXACT:
        assert loader["collate_share"] > 0.8


def test_one_slow_item_that_others_wait_behind_is_head_of_line(tmp_path):
    summary, loader = trained(tmp_path, "one slow item")
    assert causes(summary)[0] == "HEAD_OF_LINE"
    assert loader["head_of_line_s"] > 0.6 * loader["made_wait_s"]
    assert loader["fetch_p99_ms"] > 500 > 50 > loader["fetch_p50_ms"]
    assert "in_order=False" in summary["primary_diagnosis"]["action"]


def test_batches_that_are_dear_to_send_are_transfer(tmp_path):
    summary, loader = trained(tmp_path, "many objects")
    assert "TRANSFER_BOUND" in causes(summary)
    assert loader["transfer_s"] > loader["made_wait_s"]
    assert loader["sending_share"] > 0


def test_a_training_process_that_loads_by_itself_is_named(tmp_path):
    summary, loader = trained(tmp_path, "main process")
    assert causes(summary) == ["MAIN_PROCESS_LOADING"]
    assert loader["num_workers"] == 0
    assert 19 < loader["fetch_p50_ms"] < 40
    assert "num_workers" in summary["primary_diagnosis"]["action"]


@pytest.mark.skipif(not EXACT, reason="collate_fn is not timed before Python 3.11")
def test_collate_is_told_apart_in_the_training_process_too(tmp_path):
    _, loader = trained(tmp_path, "main collate")
    assert loader["collate_share"] > 0.8


def test_workers_that_start_again_with_each_epoch_are_named(tmp_path):
    summary, loader = trained(tmp_path, "restarts")
    assert causes(summary)[0] == "EPOCH_RESTART"
    assert loader["epochs"] == 6
    # Five further epochs of 300 ms each in which no worker answers.
    assert 1.5 < loader["restart_s"] < 4.5
    assert "persistent_workers=True" in summary["primary_diagnosis"]["action"]


def test_a_loader_that_is_fast_enough_has_no_finding(tmp_path):
    summary, loader = trained(tmp_path, "healthy")
    # A machine on which other tests run may truly be short of cores.
    assert set(causes(summary)) <= {"WORKERS_OVERSUBSCRIBED"}
    assert loader["ready_share"] > 0.8
    assert loader["busy_share"] < 0.6


def test_workers_that_share_one_core_wait_for_it(tmp_path):
    summary, loader = trained(tmp_path, "starved")
    assert causes(summary)[0] == "WORKERS_OVERSUBSCRIBED"
    assert loader["waiting_for_core_share"] > 0.3


def test_reading_from_a_disk_is_seen_in_the_workers(tmp_path):
    path = tmp_path / "data.bin"
    with path.open("wb") as file:
        for _ in range(12):
            file.write(b"\x01" * (8 << 20))
        file.flush()
        os.fsync(file.fileno())
    _, loader = trained(tmp_path, "storage", str(path))
    if not loader["read_bytes"]:
        pytest.skip("this file system is memory, or counts no reads")
    assert loader["read_bytes"] >= 8 << 20


# Every way to start workers


@pytest.mark.parametrize(
    ("name", "context", "persistent"),
    [
        ("fork", "fork", False),
        ("persistent", "fork", True),
        ("spawn", "spawn", True),
        ("forkserver", "forkserver", True),
        ("out of order", "fork", False),
    ],
)
def test_workers_are_seen_however_they_are_started(tmp_path, name, context, persistent):
    _, loader = trained(tmp_path, name)
    assert (loader["context"], loader["persistent_workers"]) == (context, persistent)
    assert (loader["workers_seen"], loader["epochs"]) == ("active", 3)
    batches = [worker["batches"] for worker in loader["workers"]]
    if name == "out of order":  # whichever worker is first gets the next one
        assert len(batches) == 2 and sum(batches) == 30 and min(batches) > 5
    else:
        assert batches in ([15, 15], [14, 16], [16, 14])
    assert loader["batches"] == 27  # the first of each epoch stands for itself
    assert loader["ready_share"] is not None
    assert loader["fetch_p50_ms"] > 15


def test_no_worker_leaves_a_file(tmp_path):
    for name in ("fork", "spawn"):
        run(tmp_path, SCRIPT, name)
    for run_dir in (tmp_path / "runs").iterdir():
        assert len(list(run_dir.glob("*.jsonl"))) == 1


def test_workers_with_unequal_shares_of_a_stream_are_joined_to_their_batches(tmp_path):
    _, loader = trained(tmp_path, "stream")
    assert loader["kind"] == "iterable"
    assert [worker["batches"] for worker in loader["workers"]] == [9, 10]
    assert loader["batches"] == 18


def test_evaluation_is_told_apart_from_training(tmp_path):
    result = run(tmp_path, SCRIPT, "evaluation")
    loaders = {found["role"]: found for found in result.summary["input_pipeline"]["loaders"]}
    assert (loaders["train"]["batches"], loaders["eval"]["batches"]) == (18, 6)
    assert loaders["eval"]["fetch_p50_ms"] > 38
    assert 15 < loaders["train"]["fetch_p50_ms"] < loaders["eval"]["fetch_p50_ms"]
    assert "eval" not in str(causes(result.summary))


# The program does not notice


@pytest.mark.parametrize(
    "name",
    ["raising", "raising collate", "raising in main", "raising collate in main", "dying"],
)
def test_what_fails_in_a_worker_fails_with_the_same_words(tmp_path, name):
    off = run(tmp_path, SCRIPT, name, enabled=False)
    on = run(tmp_path, SCRIPT, name)

    def words(text):
        return re.sub(r"pid(\(s\))?:? ?\d+", "pid N", text)

    assert (on.returncode, on.stdout) == (off.returncode, off.stdout)
    assert on.returncode == 1
    # Of a killed worker torch tells by its signal or by a broken connection, whichever comes first.
    if EXACT and name != "dying":
        assert words(on.other_stderr) == words(off.stderr)
    assert on.summary["run_context"]["run"]["status"] == "failed"


SAME = """
import json, os, random, sys, threading, warnings
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
warnings.simplefilter("always")
class Noise(Dataset):
    def __len__(self):
        return 24
    def __getitem__(self, index):
        # Of torch and multiprocessing: the feeder of the queue, and who hands out descriptors.
        names = [thread.name for thread in threading.enumerate() if "_serve" not in thread.name]
        further = set(names) - {"MainThread", "QueueFeederThread"}
        state = [len(os.listdir("/proc/self/fd")), len(further)]
        return torch.randn(4), random.random(), torch.initial_seed(), torch.tensor(state)
def main(workers):
    torch.set_num_threads(1)
    torch.manual_seed(1)
    random.seed(2)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(2):
        for noise, numbers, seeds, states in DataLoader(Noise(), 4, True, num_workers=workers):
            optimizer.zero_grad()
            model(noise).square().mean().backward()
            optimizer.step()
            batch = [noise.tolist(), numbers.tolist(), seeds.tolist()]
            print(json.dumps({"batch": batch, "states": states.tolist()}))
    print(json.dumps({"end": [torch.rand(1).item(), random.random()]}))
if __name__ == "__main__":
    main(int(sys.argv[1]))
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_random_numbers_open_files_and_threads_are_the_same(tmp_path, workers):
    script = write(tmp_path, SAME)
    off = run(tmp_path, script, str(workers), enabled=False)
    on = run(tmp_path, script, str(workers))
    assert on.returncode == off.returncode == 0
    assert on.other_stderr == off.stderr
    lines = [[json.loads(line) for line in r.stdout.splitlines()] for r in (on, off)]
    states = [[state for line in found for state in line.pop("states", ())] for found in lines]
    assert lines[0] == lines[1]
    if workers:
        assert {state[1] for found in states for state in found} == {0}
        files = [max(state[0] for state in found) for found in states]
        assert files[0] - files[1] <= INHERITED_FILES
