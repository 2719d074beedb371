"""The last step ends when the program does: its events complete while the process leaves."""

from pathlib import Path

import pytest

from tests.e2e.harness import run, write

# A device that needs LATENCY_S to reach what it was told; no call of it waits.
SCRIPT = """
import sys, time
import torch
from traceml_agent.capture.session import SESSION

class Event:
    def __init__(self, enable_timing):
        pass
    def record(self):
        self.at = time.perf_counter()
    def query(self):
        return time.perf_counter() - self.at > LATENCY_S
    def elapsed_time(self, other):
        return 1e3 * (other.at - self.at)

torch.version.cuda = "13.0"
torch.cuda.Event = Event
torch.cuda.is_initialized = lambda: True
torch.cuda.is_current_stream_capturing = lambda: False
torch.cuda.device_count = lambda: 0
SESSION.arm(torch)
weights = torch.zeros(8, requires_grad=True)
optimizer = torch.optim.SGD([weights], lr=0.1)
for _ in range(12):
    (weights - 1).pow(2).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
"""


@pytest.mark.parametrize(("latency_s", "clock"), [("0.0003", "gpu"), ("60.0", "cpu")])
def test_a_last_step_that_the_device_ends_while_the_process_leaves_has_its_time(
    tmp_path: Path, latency_s: str, clock: str
) -> None:
    result = run(tmp_path, write(tmp_path, SCRIPT.replace("LATENCY_S", latency_s)))
    window = result.summary["step_time"]["global"]["window"]
    assert window["diagnosis_clock"] == clock, result.stderr
    assert result.summary["traceml_agent"]["faults"] == []
