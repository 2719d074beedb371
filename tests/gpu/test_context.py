"""The agent creates no CUDA context: that is left to the program, and to its forked children."""

from pathlib import Path

import pytest

from tests.gpu.conftest import assert_clean, device_steps, off_and_on

pytestmark = pytest.mark.gpu

SCRIPT = """
import os, time
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

def state(when):
    with open("/proc/self/maps") as maps:
        print(when, torch.cuda.is_initialized(), "libcuda.so" in maps.read(), flush=True)

def train(device):
    model = nn.Linear(8, 4).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for (x,) in DataLoader(TensorDataset(torch.randn(80, 8)), batch_size=4):
        model(x.to(device)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

state("imported")
train("cpu")
time.sleep(1.5)  # the agent takes samples meanwhile, of the GPUs too
train("cpu")
state("trained on the CPU")
pid = os.fork()
if pid == 0:
    print("child", torch.ones(4, device="cuda").sum().item(), flush=True)
    os._exit(7)
print("child left with", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
state("forked")
train("cuda")
state("trained on the GPU")
torch.cuda.synchronize()
"""
WITHOUT_CONTEXT = ("imported False", "trained on the CPU False", "child 4.0", "child left with 7",
                   "forked False", "trained on the GPU True")  # fmt: skip


def test_the_first_cuda_context_is_that_of_the_program_and_a_forked_child_may_have_one(
    tmp_path: Path,
) -> None:
    off, on = off_and_on(tmp_path, SCRIPT, TRACEML_SAMPLE_INTERVAL_S="0.1")
    assert on.stdout == off.stdout
    lines = on.stdout.splitlines()
    assert [a.startswith(b) for a, b in zip(lines, WITHOUT_CONTEXT, strict=True)] == [True] * 6
    assert_clean(on)
    (spool,) = on.spools
    assert spool.end is not None
    assert spool.end.steps == 60
    assert len(spool.gpu_samples) >= 10
    times = device_steps(on)
    assert not any(times.get(step, (None,))[0] for step in range(1, 41))
    assert sum(times[step][0] is not None for step in times if step > 41) >= 17
