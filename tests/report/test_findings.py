"""Findings: ranked by what they cost, with ids that people can name."""

import json

from tests.report.synthetic_run import rank_header, run_of, steps
from traceml_agent.report.findings import behind, ranked, seconds_lost
from traceml_agent.report.fold import fold


def issue(kind, severity="warn", run_s=None, section="step_time", score=None):
    cost = None if run_s is None else {"ms_per_step": 1.0, "share": 0.1, "run_s": run_s}
    return {
        "kind": kind,
        "severity": severity,
        "section": section,
        "score": score,
        "cost": cost,
        "saving": None,
        "evidence": {},
        "action": f"mend {kind}",
    }


def kinds(found):
    return [finding["kind"] for finding in found]


def test_findings_are_ranked_by_the_seconds_they_cost():
    found = ranked([issue("A", run_s=1.0), issue("B", "crit", run_s=3.0), issue("C", run_s=2.0)])
    assert kinds(found) == ["B", "C", "A"]


def test_what_is_critical_and_has_no_cost_comes_first_and_warnings_without_cost_last():
    found = ranked([issue("WARN"), issue("COSTS", run_s=5.0), issue("RUN", "crit", section="run")])
    assert kinds(found) == ["RUN", "COSTS", "WARN"]


def test_ids_are_kinds_and_numbered_from_the_second_on():
    found = ranked([issue("A", run_s=1.0), issue("A", run_s=9.0), issue("B", run_s=5.0)])
    assert [finding["id"] for finding in found] == ["A", "B", "A-2"]
    assert seconds_lost(found[0]) == 9.0


def test_why_the_training_waits_for_input_follows_the_finding_that_it_does():
    issues = [
        issue("WORKER_BOUND", run_s=9.0, section="input_pipeline"),
        issue("GC_PAUSES", run_s=8.0, section="causes"),
        issue("INPUT_BOUND", run_s=9.0),
    ]
    found = ranked(issues)
    assert kinds(found) == ["INPUT_BOUND", "WORKER_BOUND", "GC_PAUSES"]
    assert [finding["explains"] for finding in found] == [None, "INPUT_BOUND", None]
    assert found[0]["action"] == "mend WORKER_BOUND"
    assert kinds(ranked(issues[:2])) == ["WORKER_BOUND", "GC_PAUSES"]


def test_one_cause_is_one_finding_and_what_tells_more_of_it():
    residual = issue("RESIDUAL_HEAVY", "crit", run_s=10.0) | {"evidence": {"residual_ms": 50.0}}
    gc = issue("GC_PAUSES", run_s=8.0, section="causes") | {"metric": "gc", "phase": None}
    periodic = issue("PERIODIC_SPIKES", run_s=9.0, section="causes") | {"metric": "gc"}
    other = issue("PERIODIC_SPIKES", run_s=1.0, section="causes") | {"metric": "checkpoint"}

    def told(cost_ms, phase=None):
        cost = gc["cost"] | {"ms_per_step": cost_ms}
        found = ranked([residual, gc | {"cost": cost, "phase": phase}, periodic, other])
        return [(finding["id"], finding["explains"]) for finding in found]

    assert told(40.0) == [
        ("RESIDUAL_HEAVY", None),
        ("GC_PAUSES", "RESIDUAL_HEAVY"),
        ("PERIODIC_SPIKES", "GC_PAUSES"),
        ("PERIODIC_SPIKES-2", None),
    ]
    apart = [
        ("RESIDUAL_HEAVY", None),
        ("GC_PAUSES", None),
        ("PERIODIC_SPIKES", "GC_PAUSES"),
        ("PERIODIC_SPIKES-2", None),
    ]
    assert told(20.0) == told(40.0, "forward") == apart


def test_the_primary_diagnosis_points_to_its_finding():
    found = ranked([issue("A", run_s=1.0), issue("INPUT_BOUND", run_s=9.0)])
    severity = found[0]["severity"]
    primary = {
        "kind": "INPUT_BOUND", "section": "step_time", "severity": severity, "evidence": {}
    }  # fmt: skip
    assert behind(primary, found) == "INPUT_BOUND"
    assert behind({**primary, "severity": "info"}, found) is None
    assert behind({**primary, "kind": "BALANCED"}, found) is None


def test_a_run_that_waits_for_input_says_what_it_costs_and_what_fixing_it_saves(tmp_path):
    run_of(tmp_path / "run", steps(100, input_wait=[6.0] * 100, durations=[16.0] * 100))
    payload = fold(tmp_path / "run").payload
    assert payload["primary_diagnosis"]["finding"] == "INPUT_BOUND"
    finding = payload["findings"][0]
    assert finding["id"] == "INPUT_BOUND"
    assert finding["cost"] == {"ms_per_step": 6.0, "share": 0.375, "run_s": 0.6}
    assert finding["saving"]["step_low_ms"] == finding["saving"]["step_high_ms"] == 10.0
    assert "Gain: without the wait for input 16.0 ms -> 10.0 ms a step (-38 %)" in payload["text"]
    json.dumps(payload)


def test_with_a_price_the_gain_is_also_money(tmp_path):
    columns = {"input_wait": [6.0] * 100, "durations": [16.0] * 100}
    for rank in range(2):
        header = rank_header(rank, 2, cost_per_hour=3600.0)
        run_of(tmp_path / "run", steps(100, **columns), header=header)
    payload = fold(tmp_path / "run").payload
    saving = payload["findings"][0]["saving"]
    # 0.6 s less, of two ranks at 3,600 an hour each.
    assert (round(saving["money_low"], 6), round(saving["money_high"], 6)) == (1.2, 1.2)
    assert "1.20 less to pay" in payload["text"]


def test_the_parts_of_the_ledger_sum_to_the_wall_time_in_detail_too(tmp_path):
    run_of(tmp_path / "run", steps(50, input_wait=[40.0] + [0.5] * 49, durations=[50.0] * 50))
    entry = fold(tmp_path / "run").payload["ledger"]["ranks"][0]
    for part in ("startup", "training"):
        total = sum(entry["detail"][part].values())
        assert abs(total - entry["parts"][part]["seconds"]) < 1e-9
    assert entry["detail"]["training"]["first_batch"] == 0.04
