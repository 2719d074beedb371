"""A healthy run says what would hold it back next."""

import pytest

from tests.report.synthetic_run import run_of, steps
from traceml_agent.report.fold import fold
from traceml_agent.report.next_limit import with_next_limit

CALM = {"kind": "COMPUTE_BOUND", "summary": "All is well.", "evidence": {}}


def loader(busy, role="train", workers=2):
    return {"role": role, "num_workers": workers, "busy_share": busy}


def limit_of(around_ms, loaders=(), kind="COMPUTE_BOUND"):
    middle = {"forward": 4.0, "backward": 5.0, "optimizer": 1.0, **around_ms}
    distribution = {name: {"p50": value} for name, value in middle.items()}
    return with_next_limit(CALM | {"kind": kind}, distribution, loaders)


def test_the_nearer_limit_is_named():
    around = {"input_wait": 0.5, "residual": 2.0}
    found = limit_of(around, [loader(0.1), loader(0.9, "eval"), loader(0.9, workers=0)])
    limit = found["evidence"]["next_limit"]
    assert (limit["what"], limit["factor"]) == ("residual", pytest.approx(5.0))
    assert found["summary"].startswith("All is well. The next limit: what no phase claims.")
    assert "2.50 ms of 12.5 ms" in found["summary"]
    limit = limit_of(around, [loader(0.3), loader(0.5)])["evidence"]["next_limit"]
    assert limit == {"what": "workers", "factor": 2.0}


def test_a_limit_that_nobody_will_meet_is_not_named():
    found = limit_of({"residual": 0.5}, [loader(0.05), loader(None)])
    assert found["evidence"]["next_limit"] == {"what": None, "factor": None}


@pytest.mark.parametrize("kind", ["INPUT_BOUND", "INSUFFICIENT_STEP_TIME_DATA"])
def test_another_verdict_stays_what_it_is(kind):
    assert "next_limit" not in limit_of({"residual": 2.0}, kind=kind)["evidence"]


def test_without_times_nothing_is_said():
    assert with_next_limit(CALM, {}, []) == CALM


def test_a_summary_has_it(tmp_path):
    columns = {"forward": [8.0] * 100, "durations": [10.0] * 100}
    run_of(tmp_path, steps(100, **columns))
    primary = fold(tmp_path).payload["primary_diagnosis"]
    assert primary["kind"] in ("NO_CLEAR_PERFORMANCE_BOTTLENECK", "COMPUTE_BOUND"), primary
    assert "next_limit" in primary["evidence"]
