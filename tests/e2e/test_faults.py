"""Errors of the agent's own: the training does not notice, the summary says so."""

import pytest

from tests.e2e.harness import run, write

TRAINING = """
import sys
import torch
from torch import nn
from torch.utils.data import DataLoader
torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for number, inputs in enumerate(DataLoader(torch.randn(120, 4), batch_size=3)):
    if number == 10 and "traceml_agent.capture.session" in sys.modules:
        tracker = sys.modules["traceml_agent.capture.session"].SESSION.tracker
        {sabotage}
    optimizer.zero_grad()
    loss = model(inputs).square().mean()
    loss.backward()
    optimizer.step()
    print(loss.item())
"""

SABOTAGE = {
    "closing a step": "tracker.on_close = None",
    "a lasting defect": "type(tracker)._begin_segment = None",
    "a broken step": "tracker.segment = None",
    "a broken device": "tracker.device = object()",
    "a broken probe": "tracker.probe = None",
}


@pytest.mark.parametrize("name", SABOTAGE)
def test_an_error_of_the_agent_never_reaches_the_training(tmp_path, name):
    script = write(tmp_path, TRAINING.format(sabotage=SABOTAGE[name]))
    off = run(tmp_path, script, enabled=False)
    on = run(tmp_path, script)
    assert (on.returncode, on.stdout, on.other_stderr) == (0, off.stdout, off.stderr)
    (spool,) = on.spools
    assert spool.faults
    assert spool.end.steps >= 9


def test_a_patch_that_fails_three_times_passes_through_and_the_summary_says_so(tmp_path):
    script = write(tmp_path, TRAINING.format(sabotage=SABOTAGE["closing a step"]))
    on = run(tmp_path, script)
    (spool,) = on.spools
    # A fault is written again when it is counted again; the last record of a place counts.
    counts = {fault.where: fault.count for fault in spool.faults}
    assert set(counts.values()) == {3}
    assert spool.statuses["dataloader"] == "switched off after 3 errors of its own"
    assert any("switched off after 3 errors" in line for line in on.own_lines)


def test_one_error_costs_one_step_and_not_the_recording(tmp_path):
    script = write(tmp_path, TRAINING.format(sabotage=SABOTAGE["a broken step"]))
    (spool,) = run(tmp_path, script).spools
    assert spool.end.steps >= 38
    assert {fault.where: fault.count for fault in spool.faults} == {spool.faults[0].where: 1}
