"""Losses, parameters, graphs and compilations are the same with the agent on."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from tests.e2e.harness import Result
from tests.gpu.conftest import assert_clean, device_steps, off_and_on

pytestmark = pytest.mark.gpu

PROLOGUE = """
import hashlib, json, os
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

DEVICE = "cuda"
torch.use_deterministic_algorithms(True)
loss_of = nn.functional.cross_entropy

def begin():
    global model, data, optimizer
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 8)).to(DEVICE)
    data = TensorDataset(torch.randn(96, 64), torch.randint(0, 8, (96,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

def parameters():
    data = b"".join(p.detach().cpu().numpy().tobytes() for p in model.parameters())
    return hashlib.sha256(data).hexdigest()

def update(loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(loss.item())

begin()
"""
LOOP = """
for x, y in DataLoader(data, batch_size=4):
    update(loss_of(model(x.to(DEVICE)), y.to(DEVICE)))
"""
CASES = {
    "single precision": LOOP,
    "fused AdamW": "optimizer = torch.optim.AdamW(model.parameters(), fused=True)" + LOOP,
    "bfloat16 autocast": """
for x, y in DataLoader(data, batch_size=4):
    with torch.autocast(DEVICE, torch.bfloat16):
        loss = loss_of(model(x.to(DEVICE)), y.to(DEVICE))
    update(loss)
""",
    "float16 with GradScaler": """
scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**40)  # the first updates are skipped
for x, y in DataLoader(data, batch_size=4):
    optimizer.zero_grad()
    with torch.autocast(DEVICE, torch.float16):
        loss = loss_of(model(x.to(DEVICE)), y.to(DEVICE))
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    print(loss.item(), scaler.get_scale())
""",
    "workers and pinned memory": """
for x, y in DataLoader(data, batch_size=4, num_workers=2, pin_memory=True):
    x, y = x.to(DEVICE, non_blocking=True), y.to(DEVICE, non_blocking=True)
    update(loss_of(model(x), y))
""",
    "copies on a stream of their own": """
side = torch.cuda.Stream()

def prefetched():
    for x, y in DataLoader(data, batch_size=4, pin_memory=True):
        with torch.cuda.stream(side):
            x, y = x.to(DEVICE, non_blocking=True), y.to(DEVICE, non_blocking=True)
        torch.cuda.current_stream().wait_stream(side)
        x.record_stream(torch.cuda.current_stream())
        y.record_stream(torch.cuda.current_stream())
        yield x, y

for x, y in prefetched():
    update(loss_of(model(x), y))
""",
    "checkpointed activations": """
from torch.utils.checkpoint import checkpoint
for x, y in DataLoader(data, batch_size=4):
    x = x.to(DEVICE).requires_grad_()
    update(loss_of(checkpoint(model, x, use_reentrant=False), y.to(DEVICE)))
""",
}
STEPS = 24


@pytest.fixture(scope="module")
def all_cases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Result]:
    """Every case one after the other in one process, without and with the agent."""
    parts = [
        f"begin()\nprint({name!r})\n{case}\nprint(parameters())" for name, case in CASES.items()
    ]
    script = "\n".join((PROLOGUE, *parts, "torch.cuda.synchronize()"))
    return off_and_on(tmp_path_factory.mktemp("cases"), script)


@pytest.mark.parametrize("name", CASES)
def test_losses_and_parameters_are_equal_to_the_last_bit(
    all_cases: tuple[Result, Result], name: str
) -> None:
    off, on = (part_of(result.stdout, name) for result in all_cases)
    assert len(off) == 1 + STEPS + 1
    assert on == off


def part_of(stdout: str, name: str) -> list[str]:
    """The lines that one case printed."""
    lines = stdout.splitlines()
    start = lines.index(name)
    return lines[start : start + STEPS + 2]


def test_each_step_of_these_cases_is_timed_on_the_device(all_cases: tuple[Result, Result]) -> None:
    off, on = all_cases
    assert on.other_stderr == off.other_stderr
    assert_clean(on)
    (spool,) = on.spools
    assert spool.end is not None
    assert spool.end.steps == STEPS * len(CASES)
    measured = sum(ns is not None for ns, _ in device_steps(on).values())
    # The copy that ends on another stream than it began on may leave a step without a time.
    assert measured >= STEPS * (len(CASES) - 1) - 2


WHOLE_STEP = """
x, y = torch.randn(4, 64, device=DEVICE), torch.randint(0, 8, (4,), device=DEVICE)

def step():
    optimizer.zero_grad(set_to_none=True)
    loss = loss_of(model(x), y)
    loss.backward()
    optimizer.step()
    return loss

side = torch.cuda.Stream()
side.wait_stream(torch.cuda.current_stream())
with torch.cuda.stream(side):
    for _ in range(3):
        step()
torch.cuda.current_stream().wait_stream(side)
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    loss = step()
for _ in range(20):
    x.normal_()
    graph.replay()
    print(loss.item())
for _ in range(8):
    print(step().item())
"""

CALLABLE = """
sample = torch.randn(4, 64, device=DEVICE)
model = torch.cuda.make_graphed_callables(model, (sample,))
for x, y in DataLoader(data, batch_size=4):
    update(loss_of(model(x.to(DEVICE)), y.to(DEVICE)))
"""


def trained_alike(tmp_path: Path, training: str) -> tuple[Result, int]:
    """The run with the agent, after a look that all is as without it; and its steps."""
    script = f"{PROLOGUE}{training}\nprint(parameters())\ntorch.cuda.synchronize()\n"
    off, on = off_and_on(tmp_path, script)
    assert on.stdout == off.stdout
    assert on.other_stderr == off.other_stderr
    assert_clean(on)
    (spool,) = on.spools
    assert spool.end is not None
    return on, spool.end.steps


def test_a_whole_step_is_captured_and_replayed_as_without_the_agent(tmp_path: Path) -> None:
    on, steps = trained_alike(tmp_path, WHOLE_STEP)
    assert steps == 3 + 1 + 8  # a replay runs no Python and cannot be seen
    times = device_steps(on)
    assert times[4][0] is None  # captured, not run
    assert all(times[step][0] is not None for step in range(6, 11))  # and eager again


def test_a_graphed_callable_trains_as_without_the_agent(tmp_path: Path) -> None:
    on, steps = trained_alike(tmp_path, CALLABLE)
    assert steps == STEPS
    assert sum(ns is not None for ns, _ in device_steps(on).values()) >= STEPS - 3


COMPILED = """
from torch._dynamo.utils import counters
from torch._inductor.cudagraph_trees import get_manager
torch.use_deterministic_algorithms(False)
compiled = torch.compile(model, mode="reduce-overhead")
for x, y in DataLoader(data, batch_size=4):
    torch.compiler.cudagraph_mark_step_begin()
    update(loss_of(compiled(x.to(DEVICE)), y.to(DEVICE)))
print(parameters())
manager = get_manager(torch.cuda.current_device(), create_if_none_exists=False)
print(json.dumps({
    "graphs": counters["stats"]["unique_graphs"],
    "breaks": sum(counters["graph_break"].values()),
    "recompiles": sum(counters["recompiles"].values()),
    "skipped": counters["inductor"]["cudagraph_skips"],
    "recorded": 0 if manager is None else sum(map(len, manager.roots.values())),
}))
torch.cuda.synchronize()
"""


def test_a_model_compiled_to_cuda_graphs_is_compiled_and_recorded_as_without_the_agent(
    tmp_path: Path,
) -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("torch.compile needs triton here")
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    off, on = off_and_on(tmp_path, PROLOGUE + COMPILED, **cache)
    assert on.stdout == off.stdout
    without_times = [re.sub(r"[\d.:]+", "", r.other_stderr) for r in (off, on)]
    assert without_times[0] == without_times[1]
    found = json.loads(on.stdout.splitlines()[-1])
    assert found["recorded"] > 0  # else this showed nothing
    assert (found["breaks"], found["recompiles"], found["skipped"]) == (0, 0, 0)
    assert_clean(on)
    (spool,) = on.spools
    assert spool.end is not None
    assert spool.end.steps == STEPS
