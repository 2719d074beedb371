"""docs/summary-format.md names what a summary holds."""

from pathlib import Path

from tests.cli.conftest import MakeRun
from traceml_agent.report.fold import fold
from traceml_agent.schema.summary import (
    PROCESS_METRICS,
    STEP_MEMORY_METRICS,
    STEP_TIME_METRICS,
    SUMMARY_SCHEMA,
    SYSTEM_METRICS,
)

PAGE = (Path(__file__).parents[2] / "docs" / "summary-format.md").read_text(encoding="utf-8")


def test_each_field_at_the_top_and_each_part_of_the_recording_is_named(make_run: MakeRun) -> None:
    payload = fold(make_run("one")).payload
    missing = [name for name in payload if f"`{name}`" not in PAGE]
    missing += [name for name in payload["traceml_agent"] if f"`{name}`" not in PAGE]
    missing += [name for name in payload["ledger"]["ranks"][0]["parts"] if f"`{name}`" not in PAGE]
    missing += [name for name in payload["step_time"] if f"`{name}`" not in PAGE]
    assert missing == []


def test_each_metric_of_each_section_is_named() -> None:
    names = {*SYSTEM_METRICS, *PROCESS_METRICS, *STEP_TIME_METRICS, *STEP_MEMORY_METRICS}
    assert [name for name in sorted(names) if f"`{name}`" not in PAGE] == []
    assert f"`{SUMMARY_SCHEMA}`" in PAGE
