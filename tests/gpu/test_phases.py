"""Times of CUDA events against times taken with a synchronisation before and after."""

import json
from pathlib import Path
from statistics import median

import pytest

from tests.e2e.harness import Result
from tests.gpu.conftest import assert_clean, device_steps, train

pytestmark = pytest.mark.gpu

SHARE = 0.02
FLOOR_NS = 300_000
"""Two clocks may differ by 2 %, or by this: a synchronised time includes the way to the device and
back, and on a busy host the time until the thread runs again."""
STEPS = 25
SKIPPED = 5
"""First steps, in which kernels are loaded and memory is allocated."""

WORK = """
import json, math, sys, time
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

DEVICE = "cuda"
SIDE, PHASE_S = 2048, 0.025
torch.manual_seed(0)
times = {}

def synced(name, call):
    torch.cuda.synchronize()
    begun = time.perf_counter_ns()
    result = call()
    torch.cuda.synchronize()
    times.setdefault(name, []).append(time.perf_counter_ns() - begun)
    return result

def repetitions():
    # Bare products, not a module: the agent must not take this for training.
    a = torch.randn(SIDE, SIDE, device=DEVICE)
    a @ a
    synced("product", lambda: [a @ a for _ in range(20)])
    return math.ceil(PHASE_S / (times.pop("product")[0] / 20e9))

class Products(nn.Module):
    def __init__(self, repeat):
        super().__init__()
        self.repeat = repeat
        self.weight = nn.Parameter(torch.randn(SIDE, SIDE) / SIDE**0.5)

    def forward(self, x):
        for _ in range(self.repeat):
            x = torch.tanh(x @ self.weight)
        return x

class SlowUpdate(torch.optim.Optimizer):
    def __init__(self, params, repeat):
        super().__init__(params, {})
        self.repeat = repeat

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            for _ in range(self.repeat):
                p.add_(p.grad @ p.grad, alpha=-1e-9)

class Endless(Dataset):
    def __len__(self):
        return 10**9

    def __getitem__(self, index):
        return index

def loader_of(batch):
    def fetch(_):
        time.sleep(PHASE_S)
        return batch
    return iter(DataLoader(Endless(), batch_size=1, collate_fn=fetch))
"""

PHASES = (
    WORK
    + """
repeat = repetitions()
model = Products(repeat).to(DEVICE)
optimizer = SlowUpdate(model.parameters(), repeat)
batch = torch.randn(2**27).pin_memory()  # 512 MiB
loader = loader_of(batch)
for _ in range(25):
    batch = synced("input_wait", lambda: next(loader))
    data = synced("h2d", lambda: batch.to(DEVICE, non_blocking=True))
    x = data[: SIDE * SIDE].view(SIDE, SIDE)
    loss = synced("forward", lambda: model(x)).square().mean()
    synced("backward", loss.backward)
    synced("optimizer", optimizer.step)
    optimizer.zero_grad()
    with torch.no_grad():
        synced("eval", lambda: model(x))
torch.cuda.synchronize()
print(json.dumps(times))
"""
)

COPIES = (
    WORK
    + """
model = Products(1).to(DEVICE)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
batch = torch.randn(2**27)
if sys.argv[1:] == ["pinned"]:
    batch = batch.pin_memory()
loader = loader_of(batch)
for _ in range(25):
    batch = next(loader)
    data = synced("h2d", lambda: batch.to(DEVICE, non_blocking=True))
    model(data[: SIDE * SIDE].view(SIDE, SIDE)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
assert torch.equal(data.cpu(), batch)
print(json.dumps(times))
"""
)


def is_near(found_ns: float, wanted_ns: float) -> bool:
    return abs(found_ns - wanted_ns) <= max(SHARE * wanted_ns, FLOOR_NS)


def synced_times(result: Result) -> dict[str, float]:
    """Median of each phase as the script measured it, in nanoseconds."""
    times = json.loads(result.stdout.splitlines()[-1])
    return {name: median(values[SKIPPED:]) for name, values in times.items()}


def device_times(result: Result) -> dict[str, float]:
    """The same as the agent measured it."""
    found = device_steps(result)
    steps = [step for step in sorted(found) if step > SKIPPED and found[step][0] is not None]
    assert len(steps) >= 15, f"device times of {len(steps)} steps alone"
    return {
        name: median(found[step][1][name] or 0 for step in steps) for name in found[steps[0]][1]
    }


@pytest.fixture(scope="module")
def synchronised_run(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A training that waits for the device before and after each phase."""
    return train(tmp_path_factory.mktemp("phases"), PHASES)


def test_each_phase_takes_on_the_device_what_it_takes_when_synchronised(
    synchronised_run: Result,
) -> None:
    assert_clean(synchronised_run)
    wanted, found = synced_times(synchronised_run), device_times(synchronised_run)
    wrong = {
        name: f"{found[name] / 1e6:.3f} ms, synchronised {time_ns / 1e6:.3f} ms"
        for name, time_ns in wanted.items()
        if not is_near(found[name], time_ns)
    }
    assert wrong == {}
    assert sorted(wanted) == ["backward", "eval", "forward", "h2d", "input_wait", "optimizer"]


def test_a_step_takes_on_the_device_what_it_takes_on_the_host_that_waits(
    synchronised_run: Result,
) -> None:
    (spool,) = synchronised_run.spools
    assert spool.end is not None
    assert spool.end.steps == STEPS
    host = [ns for batch in spool.batches for ns in batch.duration_ns]
    device = [ns for ns, _ in device_steps(synchronised_run).values() if ns is not None]
    assert is_near(median(device[SKIPPED:]), median(host[SKIPPED:]))


def test_the_summary_of_such_a_run_is_on_the_clock_of_the_device(synchronised_run: Result) -> None:
    section = synchronised_run.summary["step_time"]
    assert section["global"]["window"]["diagnosis_clock"] == "gpu"
    assert section["groups"]["rows"]["0"]["metrics"]["step_time_gpu_ms"] > 100
    assert "device clock" in synchronised_run.summary["text"]


@pytest.mark.parametrize("memory", ["pinned", "pageable"])
def test_a_copy_to_the_device_is_measured_from_both_kinds_of_memory(
    tmp_path: Path, memory: str
) -> None:
    script = COPIES.replace("sys.argv[1:]", f"[{memory!r}]")
    result = train(tmp_path, script)
    assert_clean(result)
    wanted = synced_times(result)["h2d"]
    assert is_near(device_times(result)["h2d"], wanted)
    (spool,) = result.spools
    host = median([ns for batch in spool.batches for ns in batch.phase_ns["h2d"]][SKIPPED:])
    if memory == "pinned":
        assert host < wanted / 2  # the call comes back at once, and goes on doing so
    else:
        assert is_near(host, wanted)
