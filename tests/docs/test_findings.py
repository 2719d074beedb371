"""docs/findings.md has one entry for each kind, and says truly which are raised."""

import ast
import re
from pathlib import Path

import pytest

from traceml_agent.capture.gc_watch import NOTED_NS
from traceml_agent.capture.samplers import stall
from traceml_agent.report import chance, series, spikes, trend, whatif
from traceml_agent.report.account import FAULT_MOST_MS
from traceml_agent.report.diagnose import (
    causes,
    gpu,
    hangs,
    host_causes,
    issue,
    lines,
    process,
    ranks,
    run,
    seen,
    step_memory,
    step_time,
    system,
)
from traceml_agent.report.diagnose import spikes as spike_rules

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "findings.md").read_text(encoding="utf-8")
DIAGNOSE = REPOSITORY / "src" / "traceml_agent" / "report" / "diagnose"
KIND = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")
NOT_RAISED = "Not raised by this version"

_FORMAT_KINDS = """
NO_DATA WARMUP INCOMPLETE_DATA BALANCED STRAGGLER INPUT_STRAGGLER COMPUTE_STRAGGLER H2D_STRAGGLER
INPUT_BOUND H2D_BOUND COMPUTE_BOUND RESIDUAL_HEAVY
NORMAL VERY_HIGH_GPU_MEMORY HIGH_GPU_MEMORY HIGH_GPU_TEMPERATURE HIGH_GPU_POWER HIGH_HOST_MEMORY
HIGH_CPU LOW_GPU_UTILIZATION MODERATE_GPU_UTILIZATION
VERY_HIGH_PROCESS_GPU_MEMORY HIGH_PROCESS_GPU_MEMORY GPU_MEMORY_RESERVED_OVERHANG
RANK_GPU_MEMORY_IMBALANCE HIGH_PROCESS_RSS HIGH_PROCESS_CPU
NO_GPU HIGH_PRESSURE IMBALANCE CREEP_EARLY CREEP_CONFIRMED
LOW_GPU_UTILIZATION_UNEXPLAINED NO_CLEAR_PERFORMANCE_BOTTLENECK INSUFFICIENT_STEP_TIME_DATA
"""
FORMAT_KINDS = frozenset(_FORMAT_KINDS.split())
"""Every kind of the public format that the summary is a superset of."""


def entries() -> dict[str, str]:
    """Kind -> text of its entry."""
    parts = re.split(r"^### `(\w+)`$", PAGE, flags=re.MULTILINE)[1:]
    texts = [text.split("\n## ")[0].strip() for text in parts[1::2]]
    return dict(zip(parts[0::2], texts, strict=True))


def kinds_in_code() -> set[str]:
    """Every string of the diagnosis that looks like a kind."""
    found = set()
    for path in DIAGNOSE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            value = node.value if isinstance(node, ast.Constant) else None
            if isinstance(value, str) and KIND.fullmatch(value) and len(value) > 3:
                found.add(value)
    return found


def test_each_kind_of_the_format_has_exactly_one_entry() -> None:
    headings = re.findall(r"^### `(\w+)`$", PAGE, re.MULTILINE)
    assert len(headings) == len(set(headings))
    assert sorted(headings) == sorted({*FORMAT_KINDS, *kinds_in_code()})


@pytest.mark.parametrize("kind", sorted(entries()))
def test_each_entry_says_something_and_whether_the_kind_is_raised(kind: str) -> None:
    text = entries()[kind]
    assert len(text) > 60
    assert (NOT_RAISED in text) == (kind not in kinds_in_code())


def test_thresholds_on_the_page_are_those_of_the_code() -> None:
    found = entries()

    def names(kind: str, *numbers: float) -> None:
        text = found[kind]
        assert all(re.search(rf"\b{number:g}\b", text) for number in numbers), (kind, numbers)

    shares = (100 * step_time.SHARE_WARN, 100 * step_time.SHARE_CRIT)
    for kind in ("INPUT_BOUND", "H2D_BOUND", "RESIDUAL_HEAVY"):
        names(kind, *shares)
    names("COMPUTE_BOUND", 100 * step_time.COMPUTE_SHARE)
    names(
        "STRAGGLER",
        100 * ranks.SCORE_WARN,
        100 * ranks.SCORE_CRIT,
        100 * ranks.CAUSE_COVERAGE,
        chance.BLOCK_STEPS,
        100 * whatif.CONFIDENCE,
        100 * whatif.MODEL_ERROR_MOST,
    )
    assert "1 of 1,000 tries" in found["STRAGGLER"] and ranks.CHANCE_MOST == 1 / 1000
    for kind in ("INPUT_STRAGGLER", "COMPUTE_STRAGGLER", "H2D_STRAGGLER"):
        names(kind, 100 * ranks.CAUSE_COVERAGE)
    names("HIGH_PRESSURE", 100 * step_memory.PRESSURE_WARN, 100 * step_memory.PRESSURE_CRIT)
    names("IMBALANCE", 100 * step_memory.SKEW_WARN, 100 * step_memory.SKEW_CRIT)
    names(
        "CREEP_EARLY",
        step_memory.CREEP_LEAST_SAMPLES,
        step_memory.LEAST_STEPS,
        step_memory.CREEP_LEAST_BYTES / 1024**2,
        100 * step_memory.CREEP_LEAST_RATIO,
    )
    names(
        "CREEP_CONFIRMED",
        step_memory.CREEP_CONFIRMED_BYTES / 1024**2,
        100 * step_memory.CREEP_CONFIRMED_RATIO,
    )
    names("LOW_GPU_UTILIZATION", system.LOW_UTIL_PERCENT)
    names("MODERATE_GPU_UTILIZATION", system.LOW_UTIL_PERCENT, system.MODERATE_UTIL_PERCENT)
    names("HIGH_GPU_TEMPERATURE", system.HOT_C)
    names("HIGH_GPU_POWER", system.HIGH_POWER_PERCENT)
    names("VERY_HIGH_GPU_MEMORY", system.VERY_HIGH_PERCENT)
    for kind in ("HIGH_GPU_MEMORY", "HIGH_CPU", "HIGH_HOST_MEMORY"):
        names(kind, system.HIGH_PERCENT)
    names("VERY_HIGH_PROCESS_GPU_MEMORY", process.VERY_HIGH_PERCENT)
    for kind in ("HIGH_PROCESS_GPU_MEMORY", "HIGH_PROCESS_RSS", "HIGH_PROCESS_CPU"):
        names(kind, process.HIGH_PERCENT)
    names("GPU_MEMORY_RESERVED_OVERHANG", process.OVERHANG_LEAST_PERCENT)
    names(
        "RANK_GPU_MEMORY_IMBALANCE", process.IMBALANCE_WARN_PERCENT, process.IMBALANCE_CRIT_PERCENT
    )
    names("STALL", 100 * hangs.STALLED_WARN, stall.STEPS_RATIO)
    names("LONG_PHASE", hangs.LONG_S / 60)
    names("CLOCK_OFFSET", run.CLOCK_LIMIT_S)
    names("LOST_WORK", 100 * run.LOST_WARN, 100 * run.LOST_CRIT)
    for kind in ("SLOW_LINE", "HOST_SYNC"):
        names(kind, 100 * lines.LINE_WARN, 100 * lines.LINE_CRIT)
    names("SLOW_LINE", lines.NAMED_SAMPLES, 100 * lines.LINE_INFO)
    names("INPUT_WITHOUT_LOADER", *shares)
    assert f"names one if it takes {100 * lines.NAMED_SHARE:g} % of the phase" in PAGE
    gc_limits = (100 * causes.GC_WARN, 100 * seen.CRIT, NOTED_NS / 1e6, causes.LEAST_COLLECTED)
    names("GC_PAUSES", *gc_limits)
    names(
        "ALLOCATION_CHURN",
        100 * host_causes.CHURN_WARN,
        100 * seen.CRIT,
        1e3 * FAULT_MOST_MS,
    )
    for kind in ("CPU_THROTTLED", "CPU_CONTENTION"):
        names(kind, 100 * host_causes.CORE_WARN, 100 * seen.CRIT)
    for kind in ("CHECKPOINT_COST", "EVAL_COST"):
        names(kind, 100 * causes.LONG_PHASE_WARN, 100 * seen.CRIT)
    names("LOGGING_COST", 100 * causes.LOGGING_WARN, 100 * seen.CRIT)
    names("PROCESS_STOPPED", 100 * causes.STOPPED_WARN, 100 * seen.CRIT)
    names("RECOMPILES", 100 * causes.RECOMPILE_WARN, causes.RECOMPILES_LEAST)
    names(
        "PERIODIC_SPIKES",
        100 * spike_rules.PERIODIC_WARN,
        100 * spikes.LEAST_RATIO,
        spikes.BLOCK,
        spikes.PERIODIC_LEAST,
        100 * spikes.PERIODIC_SHARE,
    )
    names("SPIKES", 100 * spike_rules.SPIKES_WARN, 100 * seen.CRIT)
    names(
        "STEP_DRIFT",
        100 * trend.CHANGE_WARN,
        trend.MOST_STRETCHES,
        trend.LEAST_STEPS,
        100 * trend.STEADY_SHARE,
    )
    names(
        "GIL_CONTENTION",
        host_causes.LOCK_WAIT_NS / 1e6,
        100 * host_causes.LOCK_SHARE,
        100 * host_causes.LOCK_WARN,
    )
    names("MEMORY_PRESSURE", host_causes.FAULTS_PER_STEP, host_causes.PRESSURE_PERCENT)
    names("GPU_THROTTLED", 100 * gpu.REASON_SHARE, 100 * gpu.CLOCK_DROP)
    names("GPU_SHARED", 100 * gpu.SHARED_SHARE)
    names("ALLOCATOR_RETRIES", process.ALLOC_RETRIES_LEAST)
    for number in (issue.CONFIDENT_STEPS, issue.LEAST_STEPS, series.WARMUP_MOST_STEPS):
        assert f"{number} steps" in PAGE
