"""Measures what the agent costs on this GPU. The goals are reported, not asserted."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.e2e.harness import ROOT, run
from tests.gpu.conftest import RESULTS_NOTE

pytestmark = pytest.mark.gpu

RESULTS = Path(os.environ.get("GPU_RESULTS", ROOT / "build" / "gpu"))
"""Where the figures go; `overhead.md` there is the block for docs/overhead.md."""


def test_the_cost_at_each_length_of_a_step_is_measured_and_written_down(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    script = Path(__file__).with_name("overhead.py")
    result = run(tmp_path, str(script), str(tmp_path / "results"), TRACEML_MAX_OVERHEAD="0")
    assert result.returncode == 0, result.stderr
    assert result.summary["traceml_agent"]["faults"] == []
    measured = json.loads((tmp_path / "results" / "overhead.json").read_text())
    assert [row["asked_ms"] for row in measured["steps"]] == [1, 5, 20, 100]
    assert all(row["off_ms"] > 0 and row["on_ms"] > 0 for row in measured["steps"])
    shutil.copytree(tmp_path / "results", RESULTS, dirs_exist_ok=True)
    table = (RESULTS / "overhead.md").read_text()
    request.config.stash[RESULTS_NOTE] = [*table.splitlines(), "", f"written to {RESULTS}"]
