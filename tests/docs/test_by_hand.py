"""The example of docs/by-hand.md runs, and records what it says."""

from pathlib import Path

from tests.e2e.harness import run, write

PAGE = Path(__file__).parents[2] / "docs" / "by-hand.md"


def test_the_example_runs_as_it_stands(tmp_path):
    (source,) = PAGE.read_text().split("```python\n")[1:]
    script = write(tmp_path, source.partition("```")[0])
    result = run(tmp_path, script, enabled=False, TRACEML_DIR=str(tmp_path / "runs"))
    assert result.returncode == 0, result.stderr
    (spool,) = result.spools
    assert (spool.end.steps, spool.header.run_name) == (256 // 16, "by hand")
    assert "'mode': 'manual'" in result.stdout
