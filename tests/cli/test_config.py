"""`traceml-agent config`: values, origins, problems, and the generated reference."""

from pathlib import Path

from tests.cli.conftest import Cli
from traceml_agent.cli.config import reference

REFERENCE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_reference_in_the_documentation_is_the_generated_one() -> None:
    assert REFERENCE.read_text(encoding="utf-8") == reference(), "run `make docs`"


def test_each_value_stands_with_its_origin(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "traceml.toml").write_text("sample_interval_s = 5\n")
    lines = cli("config", TRACEML_RUN_NAME="try 2", TRACEML_ENABLE="1").stdout.splitlines()
    assert "TRACEML_ENABLE = 1  [environment]" in lines
    assert "TRACEML_DISABLE  [not set]" in lines
    assert "TRACEML_RUN_NAME = try 2  [TRACEML_RUN_NAME]" in lines
    assert f"TRACEML_SAMPLE_INTERVAL_S = 5  [{tmp_path / 'traceml.toml'}]" in lines
    assert "TRACEML_FLUSH_INTERVAL_S = 0.5  [default]" in lines
    assert f"TRACEML_DIR = {tmp_path / 'runs'}  [TRACEML_DIR]" in lines


def test_a_value_that_cannot_be_used_is_named_and_the_default_shown(cli: Cli) -> None:
    done = cli("config", TRACEML_SAMPLE_INTERVAL_S="often", TRACEML_SPEED="9")
    assert done.returncode == 0
    problems = [line for line in done.stdout.splitlines() if line.startswith("problem: ")]
    assert len(problems) == 2
    assert "TRACEML_SAMPLE_INTERVAL_S='often'" in problems[0]
    assert "TRACEML_SPEED" in problems[1]
    assert "TRACEML_SAMPLE_INTERVAL_S = 1  [default]" in done.stdout
