"""The breaker: what costs the training too much passes through, and the summary says so."""

import pytest

from tests.e2e.harness import run, write

TRAINING = """
import sys, time
import torch
from torch import nn
from torch.utils.data import DataLoader
torch.set_num_threads(1)
torch.manual_seed(0)
calls = [0]

def slowed(method):
    def slow(*args):
        calls[0] += 1
        time.sleep(0.002)
        return method(*args)
    return slow

model = nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for number, inputs in enumerate(DataLoader(torch.randn(600, 4), batch_size=3)):
    if number == 5 and "traceml_agent.capture.session" in sys.modules:
        session = sys.modules["traceml_agent.capture.session"].SESSION
        tracker, recorder = session.tracker, session.recorder
        {injection}
    optimizer.zero_grad()
    loss = model(inputs).square().mean()
    loss.backward()
    optimizer.step()
    print(loss.item())
print(calls[0], file=open("calls", "w"))
"""

SLOW_METHOD = "cls = type(tracker); cls.{0} = slowed(cls.{0})"
AUDITED_BY = 70
"""The audit begins at the tenth step recorded and lasts fifty."""


@pytest.fixture(scope="module")
def off(tmp_path_factory):
    """The training without the agent, where nothing is injected."""
    directory = tmp_path_factory.mktemp("off")
    return run(directory, write(directory, TRAINING.format(injection="pass")), enabled=False)


def calls_in(tmp_path) -> int:
    return int((tmp_path / "calls").read_text())


@pytest.mark.parametrize(
    ("method", "patch", "phase"),
    [
        ("end_fetch", "dataloader", "input_wait"),
        ("end_forward", "forward", "forward"),
        ("begin_backward", "backward", "backward"),
        ("begin_update", "optimizer", "optimizer"),
        ("end_update", "optimizer", "optimizer"),
    ],
)
def test_a_patch_over_its_budget_passes_through_and_the_summary_says_so(
    tmp_path, off, method, patch, phase
):
    # A limit that the patches left alone do not reach even on a machine with too much to do.
    script = write(tmp_path, TRAINING.format(injection=SLOW_METHOD.format(method)))
    on = run(tmp_path, script, TRACEML_MAX_OVERHEAD="20")
    assert (on.returncode, on.stdout, on.other_stderr) == (0, off.stdout, off.stderr)
    assert 50 <= calls_in(tmp_path) <= AUDITED_BY
    statuses = on.summary["traceml_agent"]["patches"]
    assert statuses[patch].startswith("switched off at step ")
    assert "(limit 20 %, TRACEML_MAX_OVERHEAD)" in statuses[patch]
    assert [name for name, status in statuses.items() if "switched off" in status] == [patch]
    assert any(f"{patch}: switched off at step" in line for line in on.own_lines), on.stderr
    # Half measured is not measured, and the steps go on being counted.
    step_time = on.summary["step_time"]
    assert step_time["global"]["average"][f"{phase}_ms"] is None
    assert step_time["global"]["average"]["residual_ms"] is None
    assert step_time["diagnosis"]["kind"] == "INCOMPLETE_DATA"
    assert on.spools[0].end.steps == 200
    assert not on.spools[0].faults


def test_when_recording_a_step_costs_too_much_nothing_is_recorded_any_more(tmp_path):
    injection = "tracker.on_close = recorder.close_step = slowed(recorder.close_step)"
    on = run(tmp_path, write(tmp_path, TRAINING.format(injection=injection)))
    assert 50 <= calls_in(tmp_path) <= AUDITED_BY
    (spool,) = on.spools
    assert 50 <= spool.end.steps <= AUDITED_BY
    assert all("switched off at step" in spool.statuses[name] for name in ("forward", "dataloader"))
    assert any("switched off at step" in line for line in on.own_lines)


def test_without_a_limit_nothing_is_switched_off(tmp_path):
    script = write(tmp_path, TRAINING.format(injection=SLOW_METHOD.format("end_forward")))
    on = run(tmp_path, script, TRACEML_MAX_OVERHEAD="0")
    assert set(on.summary["traceml_agent"]["patches"].values()) <= {"active"} | {
        status
        for status in on.summary["traceml_agent"]["patches"].values()
        if "switched" not in status
    }
    assert calls_in(tmp_path) >= 190
    # The 2 ms of each call are the agent's cost, and are told as such.
    assert on.summary["traceml_agent"]["self_overhead"]["per_step_us"] >= 2000
