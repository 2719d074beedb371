"""docs/api.md is what the docstrings say, and its example runs."""

import re
import runpy
from pathlib import Path

import traceml_agent
from tests.e2e.harness import run, write

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_up_to_date():
    made = runpy.run_path(str(DOCS / "make_api.py"))["page"]()
    assert (DOCS / "api.md").read_text() == made, "run `make docs`"


def test_every_public_name_has_an_entry_with_words():
    parts = (DOCS / "api.md").read_text().split("\n## `")[1:]
    entries = {part.partition("`")[0]: part for part in parts}
    assert entries.keys() == {name for name in traceml_agent.__all__ if not name.startswith("_")}
    assert all(len(part.split("```")[2].split()) > 10 for part in entries.values())


def test_the_example_runs_with_the_agent_and_without(tmp_path):
    (example,) = re.findall(
        r"^```python\n(import torch\n.*?)^```", (DOCS / "api.md").read_text(), re.M | re.S
    )
    script = write(tmp_path, example)
    off = run(tmp_path, script, enabled=False)
    assert (off.returncode, off.stdout) == (0, "(no spans)\n")
    on = run(tmp_path, script)
    assert on.returncode == 0, on.stderr
    lines = on.stdout.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["8", "16", "24"]
    assert len(lines) == 3 + 4
    assert lines[3].startswith("epoch[2] - ")
    assert "batch[7]" in on.stdout
    (spool,) = on.spools
    assert spool.end.steps == 24
