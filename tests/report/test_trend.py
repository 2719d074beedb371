"""The verdict and the trend rest on the steady state, and not on single steps."""

import random

import pytest

from tests.report.synthetic_run import run_of, steps
from traceml_agent.report.fold import fold
from traceml_agent.report.series import series_of
from traceml_agent.report.trend import trend_of
from traceml_agent.spool.digested import read_spool

HEALTHY = "NO_CLEAR_PERFORMANCE_BOTTLENECK"


def waits(count, long_waits, wait_ms=3000.0):
    """Steps of 10 ms of which some wait for their batch."""
    durations, waited = [10.0] * count, [0.5] * count
    for index in long_waits:
        durations[index] += wait_ms
        waited[index] += wait_ms
    return steps(count, durations=durations, input_wait=waited)


@pytest.mark.parametrize("index", [0, 1, 50, 99])
def test_one_step_of_3_s_among_100_does_not_decide_the_verdict(tmp_path, index):
    run_of(tmp_path, waits(100, [index]))
    payload = fold(tmp_path).payload
    healthy = payload["primary_diagnosis"]["kind"]
    assert healthy in (HEALTHY, "COMPUTE_BOUND")


def test_a_long_wait_in_every_tenth_step_does(tmp_path):
    run_of(tmp_path, waits(100, range(5, 100, 10), wait_ms=150.0))
    payload = fold(tmp_path).payload
    assert payload["primary_diagnosis"]["kind"] == "INPUT_BOUND"
    assert payload["step_time"]["outliers_set_aside"] == 0


def test_averages_hold_what_has_no_say_in_the_verdict(tmp_path):
    run_of(tmp_path, waits(100, [50]))
    section = fold(tmp_path).payload["step_time"]
    assert section["outliers_set_aside"] == 1
    assert section["global"]["average"]["input_wait_ms"] == pytest.approx(30.5)


def series(tmp_path, durations):
    path = run_of(tmp_path, steps(len(durations), durations=durations))
    return series_of(read_spool(path))


def noise(seed, count, spread=0.05):
    source = random.Random(seed)
    return [1 + source.gauss(0, spread) for _ in range(count)]


def test_a_change_is_found_where_it_is(tmp_path):
    durations = [10 * x for x in noise(1, 4100)] + [11.8 * x for x in noise(2, 2000)]
    found = trend_of(s := series(tmp_path, durations), s.duration_ns)
    assert found is not None and found.kind == "step"
    assert found.at_step == pytest.approx(4100, abs=60)
    assert found.ratio == pytest.approx(0.18, abs=0.02)


def test_a_slow_drift_is_found_with_its_slope(tmp_path):
    durations = [10 * x * (1 + i / 5000) for i, x in enumerate(noise(3, 2000))]
    found = trend_of(s := series(tmp_path, durations), s.duration_ns)
    assert found is not None and found.kind == "drift"
    assert found.slope_ms_per_1000 == pytest.approx(2.0, rel=0.1)
    assert found.ratio == pytest.approx(0.4, abs=0.05)


def test_a_drift_is_a_finding_in_words(tmp_path):
    run_of(tmp_path, steps(200, durations=[10.0] * 100 + [13.0] * 100))
    (finding,) = [f for f in fold(tmp_path).payload["findings"] if f["kind"] == "STEP_DRIFT"]
    assert finding["summary"].startswith("From step 101 on steps take 30% longer")


def test_steps_that_become_shorter_are_no_finding(tmp_path):
    run_of(tmp_path, steps(200, durations=[13.0] * 100 + [10.0] * 100))
    payload = fold(tmp_path).payload
    assert payload["causes"]["trend"]["change_percent"] < 0
    assert [f for f in payload["findings"] if f["kind"] == "STEP_DRIFT"] == []


def test_noise_spikes_and_slow_stretches_are_no_trend(tmp_path):
    """Of 60 healthy runs none has one: white noise of 30 %, spikes, a load that comes and goes."""
    found = []
    for seed in range(60):
        durations = [10 * max(0.1, x) for x in noise(seed, 600, spread=0.3)]
        source = random.Random(seed)
        if seed % 3 == 1:
            durations = [ms + (200 if source.random() < 0.05 else 0) for ms in durations]
        if seed % 3 == 2:
            durations = [ms * (1.3 if i // 40 % 3 == 1 else 1) for i, ms in enumerate(durations)]
        rank = series(tmp_path / str(seed), durations)
        found.append(trend_of(rank, rank.duration_ns))
    assert [trend for trend in found if trend is not None] == []


def test_a_machine_that_is_busy_more_often_later_is_no_trend(tmp_path):
    source = random.Random(4)
    durations = []
    for stretch in range(100):
        is_slow = source.random() < (0.2 if stretch < 50 else 0.65)
        durations += [10 * x * (1.3 if is_slow else 1) for x in noise(stretch, 10, spread=0.01)]
    rank = series(tmp_path, durations)
    assert trend_of(rank, rank.duration_ns) is None


def test_too_few_steps_say_nothing(tmp_path):
    rank = series(tmp_path, [10.0] * 20 + [20.0] * 20)
    assert trend_of(rank, rank.duration_ns) is None


def test_what_is_no_part_of_a_typical_step_is_no_trend(tmp_path):
    saved = [0.0] * 100 + [5.0] * 100
    durations = [10 + ms for ms in saved]
    run_of(tmp_path, steps(200, durations=durations, checkpoint=saved))
    assert fold(tmp_path).payload["causes"]["trend"] is None
