"""Launchers and the processes that they and torch start: ranks are recorded, the rest is not."""

import pytest

from tests.e2e.harness import run, runs_in, write

DDP = """
import os, sys
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

torch.set_num_threads(1)
torch.manual_seed(0)
dist.init_process_group("gloo")
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
if sys.argv[1] == "ddp":
    model = nn.parallel.DistributedDataParallel(model)
else:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.device_mesh import init_device_mesh
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
data = torch.randn(48, 4)
losses = []
for inputs in DataLoader(data, batch_size=2, sampler=DistributedSampler(data)):
    optimizer.zero_grad()
    loss = model(inputs).square().mean()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
open(f"losses.{os.environ['RANK']}", "a").write(repr(losses))
dist.destroy_process_group()
"""
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_torchrun_records_its_ranks_and_not_itself_and_losses_are_the_same(tmp_path, kind):
    losses = {}
    for enabled in (False, True):
        script = write(tmp_path, DDP)
        done = run(tmp_path, *TORCHRUN, script, kind, enabled=enabled)
        assert done.returncode == 0, done.stderr
        losses[enabled] = [(tmp_path / f"losses.{rank}").read_text() for rank in (0, 1)]
        for rank in (0, 1):
            (tmp_path / f"losses.{rank}").unlink()
    assert losses[True] == losses[False]
    assert sorted(spool.header.identity.rank for spool in done.spools) == [0, 1]
    assert {spool.header.identity.world_size for spool in done.spools} == {2}
    assert [spool.end.steps for spool in done.spools] == [12, 12]
    assert len([line for line in done.own_lines if ": Run  " in line]) == 1


RESTARTED = """
import os, sys
import torch
torch.set_num_threads(1)
model = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(10):
    optimizer.zero_grad()
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    if step == 4 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        sys.exit(7)
"""


@pytest.mark.slow
def test_a_restart_by_torchrun_is_an_attempt_of_its_own(tmp_path):
    script = write(tmp_path, RESTARTED)
    command = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1")
    done = run(
        tmp_path, *command, "--max-restarts", "1", script, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1"
    )
    assert done.returncode == 0, done.stderr
    attempts = {spool.header.identity.attempt: spool.end for spool in done.spools}
    assert sorted(attempts) == [0, 1]
    assert (attempts[0].status, attempts[0].exit_code, attempts[0].steps) == ("failed", 7, 5)
    assert (attempts[1].status, attempts[1].steps) == ("finished", 10)


STARTED = """
import os, sys
import torch
import torch.multiprocessing as mp

def train(rank):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(10):
        optimizer.zero_grad()
        model(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()
    print(rank, model.weight.sum().item(), flush=True)

if __name__ == "__main__":
    mp.start_processes(train, nprocs=2, start_method=sys.argv[1])
"""


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_ranks_that_multiprocessing_starts_are_recorded_to_their_end(tmp_path, method):
    script = write(tmp_path, STARTED)
    off = run(tmp_path, script, method, enabled=False)
    on = run(tmp_path, script, method, TRACEML_RUN_ID="started")
    assert (on.returncode, sorted(on.stdout.splitlines())) == (
        0,
        sorted(off.stdout.splitlines()),
    ), on.stderr
    assert on.other_stderr == off.stderr
    found = sorted((s.header.identity.rank, s.end.status, s.end.steps) for s in on.spools)
    assert found == [(0, "finished", 10), (1, "finished", 10)]


COMPILED = """
import torch
torch.set_num_threads(1)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
step = torch.compile(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(8):
    optimizer.zero_grad()
    step(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()
"""


@pytest.mark.slow
def test_the_helpers_of_inductor_write_no_file(tmp_path):
    cache = str(tmp_path / "inductor")
    on = run(tmp_path, write(tmp_path, COMPILED), TORCHINDUCTOR_CACHE_DIR=cache)
    assert on.returncode == 0, on.stderr
    assert [spool.end.steps for spool in on.spools] == [8]
    assert on.spools[0].end.phase_ns["compile"] > 0


@pytest.mark.parametrize(
    "command",
    [
        ("-m", "torch.utils.collect_env"),
        ("-m", "pip", "--version"),
        ("-m", "torch.distributed.run", "--help"),
        ("-c", "from multiprocessing import resource_tracker as r; r.ensure_running()"),
    ],
    ids=["collect_env", "pip", "torchrun --help", "resource_tracker"],
)
def test_programs_that_do_not_train_write_no_file(tmp_path, command):
    on = run(tmp_path, *command)
    off = run(tmp_path, *command, enabled=False)
    assert on.returncode == off.returncode
    assert runs_in(tmp_path) == []
    assert len(on.own_lines) <= 1
