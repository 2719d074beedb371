"""Handlers of signals that raise: it is the program's error, wherever the agent is at work."""

import json

import pytest

from tests.e2e.harness import run, write

ALARMS = """
import json, signal, sys, time
import torch
from torch import nn
from torch.utils.data import DataLoader

torch.manual_seed(0)
model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(3)])
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
data = [torch.randn(4, 8) for _ in range(50)]
raised = caught = 0
armed = False
ignored = []  # it came in a destructor, where Python ignores errors
sys.unraisablehook = lambda told: ignored.append(told.exc_type.__name__)

def epoch():
    for x in DataLoader(data, batch_size=None):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

class Late:
    def __call__(self, number, frame):
        global raised, armed
        if armed:
            armed = False
            raised += 1
            raise TimeoutError("late")

epoch()
signal.signal(signal.SIGALRM, Late())
signal.setitimer(signal.ITIMER_REAL, 0.002, 0.0023)
end = time.monotonic() + 5
while time.monotonic() < end:
    try:
        armed = True
        epoch()
        armed = False
    except TimeoutError:
        caught += 1
        torch.set_grad_enabled(True)  # it may have interrupted a `no_grad`
signal.setitimer(signal.ITIMER_REAL, 0)
print(json.dumps([raised, caught, ignored.count("TimeoutError")]))
"""


@pytest.mark.slow
def test_an_alarm_that_raises_while_the_agent_is_at_work_reaches_the_program(tmp_path):
    result = run(tmp_path, write(tmp_path, ALARMS), TRACEML_MAX_OVERHEAD="100")
    assert result.returncode == 0, result.stderr
    raised, caught, ignored = json.loads(result.stdout)
    assert raised == caught + ignored
    assert caught > 100 * ignored
    assert result.summary["traceml_agent"]["faults"] == []


AT_EXIT = """
import atexit, signal, sys
atexit.register(lambda: sys.stderr.write(f"after that {signal.getsignal(signal.SIGALRM)!r}\\n"))
import torch

count = 0

def died(number, frame):
    global count
    count += 1
    if count == 5:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        sys.stderr.write("died 5 times with a frame\\n" if frame is not None else "")
    raise {error}

signal.signal(signal.SIGALRM, died)
atexit.register(signal.setitimer, signal.ITIMER_REAL, 0.001, 0.001)  # just before the agent's
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(10):
    optimizer.zero_grad()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
"""


@pytest.mark.parametrize(
    "error", ["RuntimeError", "TimeoutError", "KeyboardInterrupt", "SystemExit(3)"]
)
def test_a_handler_that_raises_while_the_last_records_are_written_waits(tmp_path, error):
    result = run(tmp_path, write(tmp_path, AT_EXIT.replace("{error}", error)))
    assert result.returncode == 0
    assert result.summary["run_context"]["run"]["status"] == "finished"
    assert result.summary["traceml_agent"]["faults"] == []
    assert "died 5 times with a frame" in result.stderr
    assert "Traceback" not in result.stderr  # nobody is left to catch it
    assert "after that <Handlers.SIG_IGN: 1>" in result.stderr  # what it set stays
