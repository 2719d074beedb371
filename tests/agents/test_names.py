"""Names of who works in the process beside us, and what the summary says of it."""

import subprocess
from pathlib import Path

import pytest

from tests.boot.conftest import PYTHONS
from tests.e2e.harness import Result, run, write

TRAINING = """
import torch
weights = torch.zeros(8, requires_grad=True)
optimizer = torch.optim.SGD([weights], lr=0.1)
for _ in range(5):
    (weights - 1).pow(2).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
print(weights.sum().item())
"""
OWN_FUNCTION = "import sys\nsys.settrace(lambda frame, event, argument: None)\n" + TRAINING
UNREADABLE = """
import sys
class Tracer:
    def __getattribute__(self, name):
        raise RuntimeError(name)
    def __call__(self, frame, event, argument):
        return None
sys.settrace(Tracer())
"""
SRC = Path(__file__).parents[2] / "src"
OF_MONITORING = """
import sys
from traceml_agent.capture.other_agents import other_agents
before = other_agents()
sys.monitoring.use_tool_id(sys.monitoring.COVERAGE_ID, "coverage.py")
sys.monitoring.use_tool_id(4, "another " * 10)
print(before.tracers, other_agents().tracers)
"""


def tracers_of(result: Result) -> list[str]:
    assert result.returncode == 0, result.stderr
    (spool,) = result.spools
    assert spool.header.tracers is not None
    assert result.summary["provenance"]["tracers"] == list(spool.header.tracers)
    assert result.summary["provenance"]["other_agents"] == list(spool.header.other_agents or ())
    assert result.summary["traceml_agent"]["faults"] == []
    return list(spool.header.tracers)


def test_alone_nobody_is_named_and_nothing_is_noted(tmp_path: Path) -> None:
    result = run(tmp_path, write(tmp_path, TRAINING))
    assert tracers_of(result) == []
    assert "tracer" not in result.summary["text"]


@pytest.mark.parametrize(
    ("command", "name"),
    [(("-m", "cProfile", "-o", "profile"), "cProfile"),
     (("-m", "debugpy", "--listen", "127.0.0.1:0"), "pydevd")],
    ids=["cProfile", "debugpy"],
)  # fmt: skip
def test_a_profiler_and_a_debugger_are_named(
    tmp_path: Path, command: tuple[str, ...], name: str
) -> None:
    if name == "pydevd":
        pytest.importorskip("debugpy")
    result = run(tmp_path, *command, write(tmp_path, TRAINING))
    assert tracers_of(result) == [name]
    assert f"a tracer was active ({name}): times include its cost" in result.summary["text"]


def test_a_trace_function_of_the_program_goes_by_its_module(tmp_path: Path) -> None:
    assert tracers_of(run(tmp_path, write(tmp_path, OWN_FUNCTION))) == ["__main__"]


def test_a_tracer_that_cannot_be_looked_at_is_unknown_and_not_disturbed(tmp_path: Path) -> None:
    assert tracers_of(run(tmp_path, write(tmp_path, UNREADABLE + TRAINING))) == ["unknown"]


@pytest.mark.parametrize("minor", ["3.12", "3.13", "3.14"])
def test_a_tool_of_sys_monitoring_is_named(minor: str) -> None:
    if minor not in PYTHONS:
        pytest.skip(f"no Python {minor} on this machine")
    done = subprocess.run(
        [str(PYTHONS[minor]), "-c", OF_MONITORING],
        env={"PYTHONPATH": str(SRC)}, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == f"() {(('another ' * 10)[:40], 'coverage')}"
