"""Ranks are joined by step numbers; what one lacks is left out for all. Lists and arrays agree."""

import random
import sys

import pytest

from tests.report import synthetic_run as made
from traceml_agent.report import align, chance, stats
from traceml_agent.report.align import add_rows, middle_per_step, per_step
from traceml_agent.report.chance import chance_of
from traceml_agent.report.sections.step_time import analysis_window
from traceml_agent.report.view import load_run
from traceml_agent.schema.records import DeviceSteps


def aligned(run_dir):
    view = load_run(run_dir)
    window = analysis_window(view)
    return align.align(view.ranks, window.start_step, window.end_step, on_device=False)


def write(run_dir, rank, *batches):
    made.run_of(run_dir, *batches, header=made.rank_header(rank, 3))


def test_ranks_of_different_length_meet_on_the_steps_that_both_have(tmp_path):
    write(tmp_path, 0, made.steps(30))
    write(tmp_path, 1, made.steps(20, first=5, step_ms=12.0))
    found = aligned(tmp_path)
    assert list(found.steps) == list(range(5, 25))
    assert found.ranks == (0, 1)
    assert set(found.step_ns[1]) == {12 * made.MS}


def test_steps_that_one_rank_lost_or_thinned_out_are_left_out_for_all(tmp_path):
    gap = [made.steps(10), made.steps(10, first=21, step_ms=11.0)]
    write(tmp_path, 0, *gap)
    numbers = [10.0 + i for i in range(30)]
    write(tmp_path, 1, made.steps(30, durations=numbers))
    found = aligned(tmp_path)
    assert list(found.steps) == [*range(1, 11), *range(21, 31)]
    assert [ns / made.MS for ns in found.step_ns[1]] == numbers[:10] + numbers[20:]
    assert [ns / made.MS for ns in found.step_ns[0]] == [10.0] * 10 + [11.0] * 10


def test_the_warm_up_of_each_rank_is_cut_for_all(tmp_path):
    write(tmp_path, 0, made.steps(30))
    write(tmp_path, 1, made.steps(30, durations=[500.0] * 3 + [10.0] * 27))
    assert list(aligned(tmp_path).steps) == list(range(4, 31))


def test_ranks_without_a_common_step_are_not_aligned(tmp_path):
    write(tmp_path, 0, made.steps(10))
    write(tmp_path, 1, made.steps(10, first=50))
    assert aligned(tmp_path) is None


def test_a_phase_that_one_rank_did_not_measure_is_none_for_all(tmp_path):
    write(tmp_path, 0, made.steps(10))
    statuses = {**made.ACTIVE, "transfer": "not in: x"}
    made.run_of(tmp_path, made.steps(10), header=made.rank_header(1, 3), statuses=statuses)
    found = aligned(tmp_path)
    assert found.rows("h2d") is None
    assert found.rows("residual") is None
    assert len(found.rows("forward")) == 2


def test_on_the_device_clock_the_step_without_a_device_time_is_left_out(tmp_path):
    for rank in (0, 1):
        times = DeviceSteps(2, 9, [7 * made.MS] * 9, {"backward": [3 * made.MS] * 9})
        made.run_of(tmp_path, made.steps(10), header=made.rank_header(rank, 2), more=[times])
    view = load_run(tmp_path)
    found = align.align(view.ranks, 1, 10, on_device=True)
    assert list(found.steps) == list(range(2, 11))
    assert set(found.step_ns[0]) == {7 * made.MS}
    assert set(found.rows("backward")[1]) == {3 * made.MS}
    assert set(found.rows("residual")[1]) == {4 * made.MS}


def test_arrays_and_lists_give_the_same(monkeypatch):
    pytest.importorskip("numpy")
    monkeypatch.setattr(stats, "NUMPY_FROM", 1)
    monkeypatch.setattr(stats, "NUMPY_LOADED_FROM", 1)
    monkeypatch.setattr(chance, "NUMPY_FROM_RANKS", 2)
    numbers = random.Random(4)
    rows = [[numbers.randrange(1000) for _ in range(100)] for _ in range(5)]

    def results():
        return per_step(rows), middle_per_step(rows), add_rows([rows, rows]), chance_of(rows)

    def as_lists(found):
        slowest, middle, sums, chance = found
        columns = (slowest.lowest, slowest.highest, slowest.highest_at, middle, *sums)
        return [list(column) for column in columns], chance

    by_arrays = results()
    monkeypatch.setitem(sys.modules, "numpy", None)  # not installed
    assert as_lists(results()) == as_lists(by_arrays)
    extremes = by_arrays[0]
    assert list(extremes.lowest) == [min(values) for values in zip(*rows, strict=True)]
    assert [rows[at][i] for i, at in enumerate(extremes.highest_at)] == list(extremes.highest)
    assert list(by_arrays[1]) == [sorted(values)[2] for values in zip(*rows, strict=True)]
