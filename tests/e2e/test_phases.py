"""Sleeps of known length at known places: each phase gets its own, to 5 % or 0.3 ms."""

import json

import pytest

from tests.e2e.harness import run, write

SLEEP_MS = 8.0
STEPS = 40

SCRIPT = """
import json, sys, time
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

where, sleep_s = sys.argv[1], float(sys.argv[2]) / 1e3
torch.set_num_threads(1)
torch.manual_seed(0)

took = {name: [] for name in (
    "input_wait", "forward", "backward", "optimizer", "eval", "checkpoint", "residual", "step_time"
)}

def pause(place):
    if where == place:
        time.sleep(sleep_s)

class timed:
    def __init__(self, name):
        self.name = name
    def __enter__(self):
        self.begun = time.perf_counter()
    def __exit__(self, *error):
        took[self.name].append(1e3 * (time.perf_counter() - self.begun))

class Data(Dataset):
    def __len__(self):
        return 40
    def __getitem__(self, index):
        pause("input_wait")
        return torch.randn(8), index % 3

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 3)
    def forward(self, inputs):
        pause("forward")
        return self.layer(inputs)

class Slow(torch.optim.SGD):
    def step(self, closure=None):
        pause("optimizer")
        return super().step(closure)

class Saved:
    def __reduce__(self):
        pause("checkpoint")
        return (Saved, ())

model = Net()
optimizer = Slow(model.parameters(), lr=0.1)
class Other(nn.Linear):
    def forward(self, inputs):
        pause("eval")
        return super().forward(inputs)

other = Other(8, 8)
batches = iter(DataLoader(Data(), batch_size=1))
begun = time.perf_counter()
for _ in range(40):
    with timed("input_wait"):
        inputs, labels = next(batches)
    with timed("forward"):
        output = model(inputs)
    output.register_hook(lambda grad: pause("backward"))
    loss = nn.functional.cross_entropy(output, labels)
    optimizer.zero_grad()
    with timed("backward"):
        loss.backward()
    with timed("optimizer"):
        optimizer.step()
    with timed("eval"), torch.no_grad():
        other(inputs)
    with timed("checkpoint"):
        torch.save(Saved(), "/dev/null")
    pause("residual")
    ended = time.perf_counter()
    took["step_time"].append(1e3 * (ended - begun))
    begun = ended
    parts = [took[name][-1] for name in took if name not in ("step_time", "residual")]
    took["residual"].append(took["step_time"][-1] - sum(parts))
print(json.dumps({name: sorted(values)[20] for name, values in took.items()}))
"""


@pytest.mark.parametrize(
    "phase",
    ["input_wait", "forward", "backward", "optimizer", "eval", "checkpoint", "residual"],
)
def test_a_sleep_of_known_length_lands_in_its_phase_alone(tmp_path, phase):
    result = run(tmp_path, write(tmp_path, SCRIPT), phase, str(SLEEP_MS), TRACEML_TEST_RAISE="1")
    assert result.returncode == 0, result.stderr
    step_time = result.summary["step_time"]
    assert step_time["global"]["window"]["end_step"] == STEPS
    # What the script itself took around each part: a busy machine lengthens both.
    truth = json.loads(result.stdout)
    assert truth[phase] >= SLEEP_MS
    recorded = {name: step_time["distribution"][name]["p50"] for name in truth}
    # The script's watch around a part also runs while a patch is entered and left: what a part was
    # recorded shorter for that is left over in the step, so the residual is compared with it added.
    parts = truth.keys() - {"residual", "step_time"}
    truth["residual"] += sum(truth[name] - recorded[name] for name in parts)
    for name, expected in truth.items():
        assert recorded[name] == pytest.approx(expected, abs=max(0.05 * expected, 0.3)), name
