"""Percentiles are about what the averages are about: the steps of all ranks."""

import pytest

from tests.report import synthetic_run as made
from traceml_agent.report.fold import fold
from traceml_agent.report.sections import distribution


def section_of(run_dir, *durations):
    for rank, column in enumerate(durations):
        batch = made.steps(len(column), durations=column, phases={"forward": 1.0 + rank})
        made.run_of(run_dir, batch, header=made.rank_header(rank, len(durations)))
    summary = fold(run_dir)
    return summary.payload["step_time"], summary.text


def test_average_and_percentiles_of_the_table_are_over_all_ranks(tmp_path):
    found, text = section_of(tmp_path, [10.0] * 60, [30.0] * 60, [30.0] * 60)
    assert found["global"]["average"]["step_time_ms"] == pytest.approx(70 / 3)
    spread = found["distribution"]["step_time"]
    assert spread == {"p50": 30.0, "p90": 30.0, "p95": 30.0, "p99": 30.0, "max": 30.0}
    assert found["distribution"]["forward"]["p50"] == 2.0
    (line,) = [line for line in text.splitlines() if line.startswith("step ")]
    assert line.split() == ["step", "23.3", "ms", "30.0", "ms", "30.0", "ms", "100", "%"]


def test_of_very_many_steps_a_part_gives_the_percentiles_and_all_give_the_maximum(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(distribution, "MOST_VALUES", 400)
    # Every tenth step is long: a stride of ten would see all of them or none.
    column = [50.0 if step % 10 == 9 else 10.0 + step % 7 for step in range(1_000)]
    column[501] = 99.0
    found, _ = section_of(tmp_path, *([column] * 4))
    spread = found["distribution"]["step_time"]
    assert spread["p50"] == pytest.approx(13.0, abs=1.0)
    assert spread["p95"] == 50.0
    assert spread["max"] == 99.0
