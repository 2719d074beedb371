"""Sleeps of known length at known places: each phase gets its own, to 5 % or 0.3 ms."""

import pytest

from tests.e2e.harness import run, write

SLEEP_MS = 8.0
STEPS = 40

SCRIPT = """
import sys, time
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

where, sleep_s = sys.argv[1], float(sys.argv[2]) / 1e3
torch.set_num_threads(1)
torch.manual_seed(0)

slept = []

def pause(place):
    if where == place and sleep_s:
        begun = time.perf_counter()
        time.sleep(sleep_s)
        slept.append(time.perf_counter() - begun)

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
other = nn.Linear(8, 8)
for inputs, labels in DataLoader(Data(), batch_size=1):
    output = model(inputs)
    output.register_hook(lambda grad: pause("backward"))
    loss = nn.functional.cross_entropy(output, labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if where == "eval":
        with torch.no_grad():
            other(inputs)
            where = "forward"
            model(inputs)
            where = "eval"
    if where == "checkpoint":
        torch.save(Saved(), "/dev/null")
    pause("residual")
slept.sort()
print(1e3 * slept[len(slept) // 2] if slept else 0.0)
"""


def mean_ms(tmp_path, phase, sleep_ms):
    tmp_path.mkdir()
    script = write(tmp_path, SCRIPT)
    result = run(tmp_path, script, phase, str(sleep_ms), TRACEML_TEST_RAISE="1")
    assert result.returncode == 0, result.stderr
    window = result.summary["step_time"]["global"]["window"]
    assert window["end_step"] == STEPS
    return result.summary["step_time"]["distribution"], float(result.stdout)


@pytest.mark.parametrize(
    "phase",
    ["input_wait", "forward", "backward", "optimizer", "eval", "checkpoint", "residual"],
)
def test_a_sleep_of_known_length_lands_in_its_phase_alone(tmp_path, phase):
    without, _ = mean_ms(tmp_path / "without", phase, 0)
    with_sleep, slept_ms = mean_ms(tmp_path / "with", phase, SLEEP_MS)
    assert slept_ms >= SLEEP_MS
    for name in without:
        # Medians: another process on the machine must not decide a test of attribution.
        grown = with_sleep[name]["p50"] - without[name]["p50"]
        if name == phase:
            assert grown == pytest.approx(slept_ms, abs=max(0.05 * slept_ms, 0.3)), name
        elif name != "step_time":
            # After a sleep the caches are cold and the others take a little longer.
            assert grown < 0.15 * slept_ms, name
    assert with_sleep["step_time"]["p50"] >= slept_ms
