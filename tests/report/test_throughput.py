"""What a training gets done: tokens by the sampled batches, energy by the counters of the GPUs."""

import pytest

from tests.report.synthetic_run import FIRST_STEP_NS, MS, rank_header, run_of, steps
from traceml_agent.report.fold import fold
from traceml_agent.schema.loaders import Loader
from traceml_agent.schema.records import GpuSample


def loader(**changes):
    return Loader(FIRST_STEP_NS, 0, "Text", False, 0, "active", "train", batches=100, **changes)


def energy(watts, seconds=10, index=0):
    """A reading a second."""
    return [
        GpuSample(FIRST_STEP_NS + s * 1000 * MS, index, energy_mj=7_000 + round(s * watts * 1000))
        for s in range(seconds + 1)
    ]


def throughput(tmp_path, *more, count=1000, ranks=1):
    for rank in range(ranks):
        run_of(tmp_path / "run", steps(count), more=more, header=rank_header(rank, ranks))
    return fold(tmp_path / "run").payload["step_time"]["throughput"]


def test_tokens_are_those_of_the_sampled_batches_times_all_batches(tmp_path):
    found = throughput(tmp_path, loader(tokens=7 * 4096, token_batches=7))
    assert found["tokens_per_s"] == pytest.approx(4096 * 100)


def test_tokens_of_all_ranks_count(tmp_path):
    found = throughput(tmp_path, loader(tokens=4096, token_batches=1), ranks=2)
    assert found["tokens_per_s"] == pytest.approx(2 * 4096 * 100)


def test_batches_without_token_sequences_have_no_tokens(tmp_path):
    assert throughput(tmp_path, loader())["tokens_per_s"] is None


def test_energy_a_step_is_the_power_of_all_gpus_times_the_step(tmp_path):
    found = throughput(tmp_path, *energy(300), *energy(100, index=1), ranks=2)
    assert found["joules_per_step"] == pytest.approx(400 * 0.010)
    assert found["joules_per_sample"] == pytest.approx(400 * 0.010 / 64)


def test_gpus_that_may_be_of_another_job_are_not_billed(tmp_path):
    found = throughput(tmp_path, *energy(300), *energy(100, index=1))
    assert found["joules_per_step"] is None


def test_a_second_of_readings_is_too_little(tmp_path):
    assert throughput(tmp_path, *energy(300, seconds=0))["joules_per_step"] is None


def test_without_a_counter_energy_is_not_measured(tmp_path):
    assert throughput(tmp_path)["joules_per_sample"] is None
