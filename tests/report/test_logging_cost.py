"""What is logged: a phase, a loss, a finding, and the verdict where it is most of the step."""

import pytest

from tests.report.synthetic_run import FIRST_STEP_NS, MS, run_of, steps
from traceml_agent.report.fold import fold
from traceml_agent.schema.records import FRAMEWORK_EVENT, Event

COUNT, STEP_MS = 200, 10


def run_that_logs(tmp_path, took_ms, *more, **phases):
    """Steps of 10 ms; every second one is longer, by something that is logged."""
    events = [
        Event(
            "logging",
            FIRST_STEP_NS + ((index + 1) * STEP_MS + index // 2 * took_ms) * MS,
            took_ms * MS,
            index + 1,
            {"call": "Trainer.log", "at": "/home/u/train.py:7"},
        )
        for index in range(1, COUNT, 2)
    ]
    known = {
        name: [ms] * COUNT for name, ms in ({"forward": 2.0, "backward": 1.0} | phases).items()
    }
    logged = [took_ms * (index % 2) for index in range(COUNT)]
    batch = steps(COUNT, durations=[STEP_MS + ms for ms in logged], logging=logged, **known)
    run_of(tmp_path, batch, more=[*events, *more])
    return fold(tmp_path).payload


def test_logging_is_a_phase_a_loss_a_finding_and_the_verdict(tmp_path):
    payload = run_that_logs(tmp_path, 6, optimizer=1.0, input_wait=0.5)
    average = payload["step_time"]["global"]["average"]
    assert average["logging_ms"] == pytest.approx(3.0)
    assert average["residual_ms"] == pytest.approx(10 - 2 - 1 - 1 - 0.5)
    loss = payload["causes"]["losses"]["logging"]
    assert loss["ms_per_step"] == pytest.approx(3.0)
    assert (loss["within"], loss["steps"]) == ("logging", COUNT / 2)
    (cost,) = [i for i in payload["causes"]["issues"] if i["kind"] == "LOGGING_COST"]
    assert cost["severity"] == "crit" and "(Trainer.log at train.py:7)" in cost["summary"]
    assert cost["saving"]["step_high_ms"] == pytest.approx(10.0, rel=0.05)
    assert cost["place"]["line"] == 7
    assert payload["ledger"]["ranks"][0]["detail"]["training"]["logging"] == pytest.approx(0.6)


def test_logging_alone_is_the_verdict_with_the_call_and_the_price(tmp_path):
    payload = run_that_logs(tmp_path, 6, forward=5.0, backward=4.0, optimizer=0.8)
    primary = payload["primary_diagnosis"]
    assert (primary["kind"], primary["evidence"]["cause"]) == ("RESIDUAL_HEAVY", "LOGGING_COST")
    assert primary["summary"].startswith("Logging (Trainer.log at train.py:7) takes 23% ")
    verdict = next(f for f in payload["findings"] if f["id"] == primary["finding"])
    assert (verdict["metric"], verdict["place"]["line"]) == ("logging", 7)
    assert verdict["cost"]["ms_per_step"] == pytest.approx(3.0)
    cost = next(f for f in payload["findings"] if f["kind"] == "LOGGING_COST")
    assert cost["explains"] == verdict["id"]


def test_of_two_the_larger_one_is_the_verdict(tmp_path):
    payload = run_that_logs(tmp_path, 12, optimizer=2.5)
    kinds = [(f["kind"], f["metric"]) for f in payload["findings"] if f["section"] == "step_time"]
    assert ("RESIDUAL_HEAVY", "logging") in kinds
    primary = payload["primary_diagnosis"]
    verdict = next(f for f in payload["findings"] if f["id"] == primary["finding"])
    average = payload["step_time"]["global"]["average"]
    assert average["logging_ms"] > average["residual_ms"]
    assert verdict["metric"] == "logging"


def test_a_little_logging_is_no_finding(tmp_path):
    payload = run_that_logs(tmp_path, 0.1, forward=8.0)
    assert "LOGGING_COST" not in {issue["kind"] for issue in payload["causes"]["issues"]}


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
