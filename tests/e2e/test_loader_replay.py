"""What the replay predicts for other settings, against runs that really have them."""

import statistics

import pytest

from tests.e2e.harness import HERE, run
from traceml_agent.report.loader_replay import replay_inputs
from traceml_agent.report.replay import replay
from traceml_agent.report.view import load_run

SCRIPT = str(HERE / "pipelines.py")
TOLERANCE = 0.25
TOLERANCE_MS = 3.0
"""Of the step. Chosen: of a step of 20 ms the way from the worker and a busy machine take some;
without the replay one would be wrong by 100 %."""
FILLING = 16


def trained(path, *arguments):
    """The one rank of a run."""
    path.mkdir()
    # A short path: that of a socket, by which workers send tensors, has 108 bytes.
    (rank,) = load_run(run(path, SCRIPT, *arguments, TMPDIR="/tmp").run_dir).ranks
    return rank


def typical_ms(steps, period):
    """The mean step of a typical stretch: a machine that stands still once is in few of them."""
    steps = steps[FILLING:]
    stretches = [sum(steps[at : at + period]) for at in range(len(steps) - period)]
    return statistics.median(stretches) / period / 1e6


def predicted_ms(rank, period, workers, in_order):
    """The typical step that the rank would have with these settings."""
    inputs = replay_inputs(rank)
    columns = inputs.batch_ns, inputs.main_ns
    now = replay(*columns, inputs.workers, inputs.prefetch, inputs.in_order)
    new = replay(*columns, workers, inputs.prefetch, in_order)
    saved = typical_ms(now, period) - typical_ms(new, period)
    return typical_ms(rank.series.duration_ns, period) - saved


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "order"), [(2, "in order"), (4, "in order"), (4, "as it is")])
def test_other_numbers_of_workers_take_the_time_that_the_replay_predicts(tmp_path, workers, order):
    period = 7  # of the costs in the data set
    now = trained(tmp_path / "now", "uneven", "1", "in order")
    then = trained(tmp_path / "then", "uneven", str(workers), order)
    found = predicted_ms(now, period, workers, order == "in order")
    truth = typical_ms(then.series.duration_ns, period)
    assert found == pytest.approx(truth, rel=TOLERANCE, abs=TOLERANCE_MS)
    assert typical_ms(now.series.duration_ns, period) > 1.5 * truth


@pytest.mark.slow
def test_the_gain_of_letting_batches_pass_each_other_is_predicted(tmp_path):
    period = 16  # one of so many batches is slow
    now = trained(tmp_path / "now", "one slow item")
    then = trained(tmp_path / "then", "one slow item passed")
    found = predicted_ms(now, period, 4, in_order=False)
    truth = typical_ms(then.series.duration_ns, period)
    assert found == pytest.approx(truth, rel=TOLERANCE, abs=TOLERANCE_MS)
    assert typical_ms(now.series.duration_ns, period) > 1.5 * truth
