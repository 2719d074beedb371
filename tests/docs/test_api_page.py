"""docs/api.md is what the docstrings say."""

import runpy
from pathlib import Path

import traceml_agent

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_up_to_date():
    made = runpy.run_path(str(DOCS / "make_api.py"))["page"]()
    assert (DOCS / "api.md").read_text() == made, "run `make docs`"


def test_every_public_name_has_an_entry_with_words():
    parts = (DOCS / "api.md").read_text().split("\n## `")[1:]
    entries = {part.partition("`")[0]: part for part in parts}
    assert entries.keys() == {name for name in traceml_agent.__all__ if not name.startswith("_")}
    assert all(len(part.split("```")[2].split()) > 10 for part in entries.values())
