"""The pages on formats name what the code writes."""

import dataclasses
import re
from pathlib import Path

import pytest

from traceml_agent.schema.phases import PHASES
from traceml_agent.schema.records import (
    RECORD_TYPES,
    SPOOL_SCHEMA,
    DeviceMemory,
    Identity,
    Record,
)
from traceml_agent.schema.retained import RetainedTensors
from traceml_agent.schema.snapshots import Figures, TensorFigures
from traceml_agent.schema.spans import MarkSums, ScopeSums
from traceml_agent.schema.stacks import CodeLine, StackRow
from traceml_agent.schema.stalls import Operation, ProcessGroup, ThreadStack
from traceml_agent.spool.layout import HEADER_SIZE, RECORD_SIZE
from traceml_agent.spool.ring import MAGIC

DOCS = Path(__file__).parents[2] / "docs"
SPOOL = (DOCS / "spool-format.md").read_text(encoding="utf-8")


def section(page: str, kind: str) -> str:
    """The text below the heading of a record."""
    found = re.search(rf"^### `{kind}`.*?(?=^##)", page, re.MULTILINE | re.DOTALL)
    assert found, f"docs/spool-format.md has no section on `{kind}`"
    return found[0]


@pytest.mark.parametrize("kind", RECORD_TYPES)
def test_each_record_has_a_section_that_names_each_field(kind: str) -> None:
    record: type[Record] = RECORD_TYPES[kind]
    text = section(SPOOL, kind)
    missing = [f.name for f in dataclasses.fields(record) if f"`{f.name}`" not in text]
    assert missing == []


@pytest.mark.parametrize(
    "part",
    [
        Identity,
        DeviceMemory,
        ThreadStack,
        ProcessGroup,
        Operation,
        CodeLine,
        StackRow,
        RetainedTensors,
        ScopeSums,
        MarkSums,
        TensorFigures,
        Figures,
    ],
)
def test_nested_parts_are_named_too(part: type) -> None:
    assert [f.name for f in dataclasses.fields(part) if f"`{f.name}`" not in SPOOL] == []


def test_schema_phases_and_ring_are_those_of_the_code() -> None:
    assert f"`{SPOOL_SCHEMA}`" in SPOOL
    listed = re.findall(r"`(\w+)`", SPOOL[SPOOL.index("The phases are") :])[: len(PHASES)]
    assert tuple(listed) == PHASES
    assert f"`{MAGIC.decode()}`" in SPOOL
    assert f"| {HEADER_SIZE} | records, {RECORD_SIZE} bytes each" in SPOOL


def test_links_between_the_pages_lead_somewhere() -> None:
    pages = [*DOCS.glob("*.md"), DOCS.parent / "README.md"]
    broken = [
        f"{page.name}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert broken == []
