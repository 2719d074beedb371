"""The agent never waits for the device: not by torch's own check, not by any call."""

import json
from pathlib import Path

import pytest

from tests.gpu.conftest import assert_clean, device_steps, off_and_on, train

pytestmark = pytest.mark.gpu

STEPS = 60
LOOP = """
import hashlib, json, time
from collections import Counter
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

DEVICE = "cuda"
torch.manual_seed(0)
torch.use_deterministic_algorithms(True)
model = nn.Sequential(nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 2048)).to(DEVICE)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
batch = torch.randn(4096, 2048).pin_memory()

class Endless(Dataset):
    def __len__(self):
        return 10**9

    def __getitem__(self, index):
        return index

loader = iter(DataLoader(Endless(), batch_size=1, collate_fn=lambda _: batch))

def train(count):
    # Nothing in here waits for the device: the host runs ahead of it.
    for _ in range(count):
        x = next(loader).to(DEVICE, non_blocking=True)
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

def parameters():
    data = b"".join(p.detach().cpu().numpy().tobytes() for p in model.parameters())
    return hashlib.sha256(data).hexdigest()

train(10)
torch.cuda.synchronize()
"""

UNDER_CHECK = (
    LOOP
    + """
torch.cuda.set_sync_debug_mode("error")
train(50)
time.sleep(1)  # the agent takes samples meanwhile
train(50)
torch.cuda.set_sync_debug_mode("default")
torch.cuda.synchronize()
print(parameters())
"""
)

CALLS = (
    LOOP
    + """
calls = Counter()

def counted(owner, name):
    original = getattr(owner, name)
    def call(*args, **kwargs):
        calls[f"{owner.__name__}.{name}"] += 1
        return original(*args, **kwargs)
    setattr(owner, name, call)

for name in ("synchronize", "set_device", "empty_cache", "ipc_collect", "init"):
    counted(torch.cuda, name)
for name in ("synchronize", "wait", "wait_event"):
    for owner in (torch.cuda.Event, torch.cuda.Stream):
        if hasattr(owner, name):
            counted(owner, name)
for name in ("item", "tolist", "numpy", "__bool__", "__float__", "__int__"):
    counted(torch.Tensor, name)
train(50)
time.sleep(1)
train(50)
print(json.dumps(calls))
"""
)

RUNTIME = (
    LOOP
    + """
from torch.profiler import ProfilerActivity, profile
with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
    train(50)
    torch.cuda.synchronize()
names = Counter(event.name for event in profiler.events() if event.name.startswith("cu"))
print(json.dumps({
    "launches": sum(count for name, count in names.items() if "Launch" in name),
    "waits": {name: n for name, n in sorted(names.items()) if "ynchroniz" in name},
    "copies": sum(count for name, count in names.items() if "Memcpy" in name),
    "blocking copies": names["cudaMemcpy"],
}))
"""
)


def test_a_loop_that_does_not_wait_passes_the_check_of_torch_with_the_agent_too(
    tmp_path: Path,
) -> None:
    off, on = off_and_on(tmp_path, UNDER_CHECK, TRACEML_SAMPLE_INTERVAL_S="0.1")
    assert on.stdout == off.stdout
    assert_clean(on)
    (spool,) = on.spools
    assert spool.end is not None
    assert spool.end.steps == 110
    assert len(spool.process_samples) > 5
    measured = [ns for ns, _ in device_steps(on).values() if ns is not None]
    assert len(measured) >= 105


def test_no_function_of_torch_that_waits_is_called_by_the_agent(tmp_path: Path) -> None:
    off, on = off_and_on(tmp_path, CALLS, TRACEML_SAMPLE_INTERVAL_S="0.1")
    calls = json.loads(on.stdout)
    assert calls == json.loads(off.stdout)
    assert not any(name.endswith("synchronize") for name in calls)
    assert_clean(on)


def test_the_cuda_runtime_sees_no_further_wait_copy_or_launch(tmp_path: Path) -> None:
    off, on = off_and_on(tmp_path, RUNTIME)
    without = json.loads(off.stdout.splitlines()[-1])
    if not without["launches"]:
        pytest.skip("the profiler of torch sees no calls of the CUDA runtime here")
    assert json.loads(on.stdout.splitlines()[-1]) == without


def test_the_check_of_torch_would_have_seen_a_wait(tmp_path: Path) -> None:
    waits = UNDER_CHECK.replace("time.sleep(1)", "model[0].weight.sum().item()")
    with pytest.raises(AssertionError, match="called a synchronizing CUDA operation"):
        train(tmp_path, waits)
