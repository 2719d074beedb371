"""What a framework logs: a loss, a finding, and the cause of a residual that it is most of."""

import pytest

from tests.report.synthetic_run import FIRST_STEP_NS, MS, run_of, steps
from traceml_agent.report.fold import fold
from traceml_agent.schema.records import FRAMEWORK_EVENT, LOGGING_EVENT, Event

COUNT, STEP_MS = 200, 10


def run_that_logs(tmp_path, took_ms, *more):
    """Steps of 10 ms, and at the end of each second one something is logged."""
    events = [
        Event(
            LOGGING_EVENT,
            FIRST_STEP_NS + ((index + 1) * STEP_MS - took_ms) * MS,
            took_ms * MS,
            index + 1,
            {"call": "Trainer.log"},
        )
        for index in range(1, COUNT, 2)
    ]
    batch = steps(COUNT, durations=[STEP_MS] * COUNT, forward=[2.0] * COUNT, backward=[1.0] * COUNT)
    run_of(tmp_path, batch, more=[*events, *more])
    return fold(tmp_path).payload


def test_logging_is_a_loss_a_finding_and_what_the_residual_is_of(tmp_path):
    payload = run_that_logs(tmp_path, 6)
    loss = payload["causes"]["losses"]["logging"]
    assert loss["ms_per_step"] == pytest.approx(3.0, rel=0.02)
    assert (loss["within"], loss["steps"]) == (None, pytest.approx(COUNT / 2, abs=1))
    (issue,) = [i for i in payload["causes"]["issues"] if i["kind"] == "LOGGING_COST"]
    assert issue["severity"] == "crit" and "Trainer.log" in issue["summary"]
    assert issue["saving"]["step_high_ms"] == pytest.approx(7.0, rel=0.05)
    primary = payload["primary_diagnosis"]
    assert (primary["kind"], primary["evidence"]["cause"]) == ("RESIDUAL_HEAVY", "LOGGING_COST")
    assert "Trainer.log" in primary["summary"]


def test_a_little_logging_is_no_finding(tmp_path):
    events = [Event(LOGGING_EVENT, FIRST_STEP_NS + 9 * MS, MS // 10, 1, {"call": "Trainer.log"})]
    batch = steps(COUNT, durations=[STEP_MS] * COUNT, forward=[9.0] * COUNT)
    run_of(tmp_path, batch, more=events)
    kinds = {issue["kind"] for issue in fold(tmp_path).payload["causes"]["issues"]}
    assert "LOGGING_COST" not in kinds


def test_what_was_logged_within_an_evaluation_is_no_loss_of_logging(tmp_path):
    detail = {"call": "log", "in_phases_ns": 4 * MS}
    events = [Event(LOGGING_EVENT, FIRST_STEP_NS + 100 * MS, 6 * MS, 11, detail)]
    run_of(tmp_path, steps(COUNT, durations=[STEP_MS] * COUNT), more=events)
    loss = fold(tmp_path).payload["causes"]["losses"]["logging"]
    assert loss["run_s"] == pytest.approx(0.002)


def test_the_last_word_of_a_framework_stands_in_the_summary_and_its_text(tmp_path):
    said = [
        {"framework": "transformers", "version": "5.0", "evaluations": 1},
        {"framework": "accelerate", "version": "1.0"},
        {
            "framework": "transformers", "version": "5.0", "evaluations": 2, "trainings": 1,
            "epochs": 1.5, "steps": 200,
        },
    ]  # fmt: skip
    facts = [Event(FRAMEWORK_EVENT, FIRST_STEP_NS, None, 1, detail) for detail in said]
    payload = run_that_logs(tmp_path, 1, *facts)
    transformers, accelerate = payload["run_context"]["frameworks"]
    assert transformers == {
        "name": "transformers", "version": "5.0", "epochs": 1.5, "steps": 200, "trainings": 1,
        "evaluations": 2, "predictions": 0, "checkpoints": 0, "logs": 0,
    }  # fmt: skip
    assert (accelerate["name"], accelerate["steps"], accelerate["logs"]) == ("accelerate", None, 0)
    assert "transformers 5.0: 200 steps in 1.5 epochs, 2 evaluations" in payload["text"]
    assert "accelerate" not in payload["text"]  # it did nothing of its own
    assert "framework" not in payload["events"]["counts"]
