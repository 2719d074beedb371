"""Runs a scenario with the agent on and judges what it said."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import fake_nvml
from tests.e2e.harness import Result, run, write
from tests.truth.scenario import SCRIPT, Scenario, fault_place
from traceml_agent.report.fold import fold

TORCHRUN = ("-m", "torch.distributed.run", "--standalone")
ATTENTION = ("warn", "crit")
WIDTH = 1.5
"""A wider interval, in what can be saved, says little. Source: the goals of the bench."""
AMBIENT = (
    "HIGH_CPU", "HIGH_PROCESS_CPU", "CPU_CONTENTION", "CPU_OVERSUBSCRIBED", "CPU_THROTTLED",
    "ALLOCATION_CHURN",
)  # fmt: skip
"""What the machine, and the allocator of its C library, may do to any script: true of it, and no
fault of the script's, unless the scenario is about it. With the variables that ALLOCATION_CHURN
advises, healthy-jitter went from 28 to 23 ms a step."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run of a scenario: what was true and what was found."""

    primary: str
    cause: str | None  # the kind of the finding that the verdict gives as its cause
    kinds: tuple[str, ...]  # of all findings, the costliest first
    found: str | None  # the one that names the cause
    place: tuple[str, int] | None  # name of the file, line
    share: float | None  # of the time in steps, that the finding claims
    true_share: float | None
    step_ms: float
    low_ms: float | None  # the step without the cause
    high_ms: float | None
    seconds: float  # of training


def observe(scenario: Scenario, directory: Path, mode: str) -> Outcome:
    """Runs `train.py MODE`, "fault" or "clean", and reads its summary."""
    result, truth = _run(scenario, directory, mode)
    return outcome_of(scenario, _summary(result), truth)


def observe_both(
    scenario: Scenario, directory: Path, fault: Outcome
) -> tuple[Outcome, list[float]]:
    """Runs `train.py both`. Returns the run whose interval is to be judged, and what the script
    measured of a step without the fault, from and to, in milliseconds.

    A fault that is a tenth of the step is a twentieth of this run, and may be no finding of it:
    then it is that of the run with the fault, where a step without takes the same share.
    """
    result, truth = _run(scenario, directory, "both")
    clean, error = truth["clean_ms"], truth["error_ms"]
    rated, scale = outcome_of(scenario, _summary(result), truth), 1.0
    if rated.low_ms is None:
        rated, scale = fault, fault.step_ms / truth["fault_ms"]
    return rated, [scale * (clean - error), scale * (clean + error)]


def _summary(result: Result) -> dict[str, Any]:
    """As it was written; or folded now, where the process had to leave before (a thread that holds
    the interpreter lock)."""
    is_written = (result.run_dir / "final_summary.json").exists()
    return result.summary if is_written else fold(result.run_dir).payload


def _run(scenario: Scenario, directory: Path, mode: str) -> tuple[Result, dict[str, float]]:
    directory.mkdir(parents=True)
    script = write(directory, scenario.text, SCRIPT)
    for name, text in scenario.files.items():
        write(directory, text, name)
    launcher, arguments = scenario.command, [script, mode]
    if scenario.ranks > 1:
        arguments = [*TORCHRUN, f"--nproc-per-node={scenario.ranks}", *arguments]
    # A short path: that of a socket, by which workers send tensors, has 108 bytes.
    variables = {"TMPDIR": "/tmp"} | scenario.variables
    if scenario.gpus:
        library = directory / "nvml"
        library.mkdir()
        variables |= fake_nvml.variables(fake_nvml.build(library), scenario.gpus)
    result = run(directory, *arguments, prefix=launcher, **variables)
    assert result.returncode == 0, f"{scenario.name}: {result.stderr[-2000:]}"
    return result, json.loads(result.stdout.splitlines()[-1])


def outcome_of(scenario: Scenario, summary: dict[str, Any], truth: dict[str, float]) -> Outcome:
    """What was found, beside what is true."""
    findings = [
        f
        for f in summary["findings"]
        if (f["severity"] in ATTENTION or scenario.is_small)
        and (f["kind"] not in AMBIENT or f["kind"] in scenario.kinds)
    ]
    of_cause = [f for f in findings if f["kind"] in scenario.kinds]
    named = next((f for f in of_cause if f["place"]), next(iter(of_cause), None))
    saving, place = ((named or {}).get(key) for key in ("saving", "place"))
    steps_s = summary["ledger"]["ranks"][0]["steps"] and _in_steps(summary)
    claimed = None if named is None else _claimed_s(named, of_cause)
    return Outcome(
        primary=summary["primary_diagnosis"]["kind"],
        cause=summary["primary_diagnosis"]["evidence"].get("cause"),
        kinds=tuple(f["kind"] for f in findings),
        found=None if named is None else named["kind"],
        place=None if place is None else (Path(place["file"]).name, place["line"]),
        share=claimed / steps_s if claimed is not None and steps_s else None,
        true_share=truth["lost_s"] / steps_s if scenario.has_share and steps_s else None,
        step_ms=summary["step_time"]["global"]["average"]["step_time_ms"],
        low_ms=None if saving is None else saving["step_low_ms"],
        high_ms=None if saving is None else saving["step_high_ms"],
        seconds=truth["train_s"],
    )


def _claimed_s(named: dict[str, Any], of_cause: Sequence[dict[str, Any]]) -> float | None:
    """Seconds of the run: of the cause that was found behind it, where there is one; else of the
    line that it names in its phase; else all of it."""
    finding = named
    if named["kind"] == "RESIDUAL_HEAVY":
        finding = next((f for f in of_cause if f["explains"] == named["id"]), named)
    cost = finding["cost"]
    if cost is None or cost["run_s"] is None:
        return None
    is_phase = finding["kind"] in ("RESIDUAL_HEAVY", "INPUT_BOUND")
    part = finding["evidence"].get("line_share") if is_phase and finding["place"] else None
    return float(cost["run_s"] * (1.0 if part is None else part))


def is_right_cause(scenario: Scenario, outcome: Outcome) -> bool:
    """Whether the verdict or the costliest finding names the cause; nothing, where nothing is."""
    if not scenario.kinds:
        return not false_alarms(outcome)
    if scenario.is_small:
        return outcome.found is not None
    told = {outcome.primary, outcome.cause} & set(scenario.kinds)
    return bool(told) or outcome.kinds[:1] == (outcome.found,) != (None,)


def false_alarms(outcome: Outcome) -> tuple[str, ...]:
    """Findings that ask for action in a run in which nothing is wrong."""
    return outcome.kinds


def is_right_line(scenario: Scenario, outcome: Outcome) -> bool:
    """Whether the finding points to the line with the fault."""
    return outcome.place is not None and outcome.place == fault_place(scenario)


def holds_clean_twin(fault: Outcome, clean_ms: Sequence[float]) -> bool | None:
    """Whether the interval holds the step without the fault, or a part of what it was measured to
    be. None: no interval, or nothing measured."""
    if fault.low_ms is None or fault.high_ms is None or not clean_ms:
        return None
    return fault.low_ms <= max(clean_ms) and min(clean_ms) <= fault.high_ms


def is_narrow(fault: Outcome, clean_ms: Sequence[float]) -> bool | None:
    """Whether the interval is at most one and a half times as wide as what the step would save.
    None: no interval, nothing measured, or nothing to save."""
    if fault.low_ms is None or fault.high_ms is None or not clean_ms:
        return None
    saved_ms = fault.step_ms - sum(clean_ms) / len(clean_ms)
    return fault.high_ms - fault.low_ms <= WIDTH * saved_ms if saved_ms > 0 else None


def _in_steps(summary: dict[str, Any]) -> float:
    parts = summary["ledger"]["ranks"][0]["parts"]
    return float(sum(parts[n]["seconds"] for n in ("training", "compile", "eval", "checkpoint")))
