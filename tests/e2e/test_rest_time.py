"""The time of steps that were only counted, against that of a run that looks into each step."""

import pytest

from tests.e2e.harness import run, write
from tests.e2e.test_rest import END, RESTING, SET_UP
from traceml_agent.report.series import totals

BUSY = """
class Busy(nn.Module):
    def forward(self, inputs):
        end = time.perf_counter() + 0.0006
        while time.perf_counter() < end: pass
        return inputs
model.append(Busy())
"""


@pytest.mark.slow
def test_time_is_shared_out_as_in_the_steps_that_were_looked_into(tmp_path):
    """More than half of a step is in the forward pass, and the rest adds up to the clock. On a busy
    machine the shares of two processes differ by 5 points; of time that was not shared out, forward
    would have a fifth."""
    script = write(tmp_path, SET_UP + BUSY + RESTING["evaluations"] + END)
    found = {}
    for limit in ("0", "1"):
        directory = tmp_path / limit
        directory.mkdir()
        done = run(directory, script, TRACEML_MAX_OVERHEAD=limit)
        found[limit] = totals(done.spools[0])
        assert ("Sampled" in done.stderr) == (limit == "1")
    seen, sampled = found["0"], found["1"]
    for name in ("forward", "backward", "optimizer", "input_wait"):
        share = sampled.phase_ns[name] / sampled.duration_ns
        assert share == pytest.approx(seen.phase_ns[name] / seen.duration_ns, abs=0.1), name
    assert sampled.phase_ns["forward"] > 0.4 * sampled.duration_ns
    assert sampled.phase_ns["eval"] == pytest.approx(seen.phase_ns["eval"], rel=0.5)
    assert sum(sampled.phase_ns.values()) <= sampled.duration_ns


@pytest.mark.slow
def test_steps_that_are_looked_into_for_a_line_stand_for_no_others(tmp_path):
    """The thread that takes the sample delays them; there are many more than of other steps."""
    done = run(tmp_path, write(tmp_path, SET_UP + BUSY + RESTING["no loader"] + END))
    (spool,) = done.spools
    assert "Sampled" in done.stderr
    known = sum(batch.count for batch in spool.batches)
    assert 512 < known < 512 + 5 * 32  # before the first rest, and between rests
    assert spool.stacks.samples > 15
