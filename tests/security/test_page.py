"""docs/security.md promises what the code does."""

import re
import sys

from tests.boot.conftest import REPOSITORY
from traceml_agent.redact import KEPT_LIMIT, SECRET_LENGTH
from traceml_agent.schema.records import RECORD_TYPES

PAGE = (REPOSITORY / "docs" / "security.md").read_text(encoding="utf-8")


def test_each_kind_of_record_has_its_row() -> None:
    rows = re.findall(r"^\| ((?:`\w+` ?)+)\|", PAGE, re.MULTILINE)
    assert [kind for row in rows for kind in re.findall(r"`(\w+)`", row)] == list(RECORD_TYPES)


def test_the_file_that_forbids_is_the_one_that_the_startup_module_looks_for() -> None:
    sys.path.insert(0, str(REPOSITORY / "agent"))
    try:
        import _traceml_boot
    finally:
        sys.path.pop(0)
    assert f"touch /{_traceml_boot._KILL_FILE}`" in PAGE
    assert f"touch <sys.prefix>/{_traceml_boot._KILL_FILE}`" in PAGE


def test_limits_are_those_of_the_code() -> None:
    assert f"{KEPT_LIMIT} characters at most" in PAGE
    assert SECRET_LENGTH == 6
    assert "six characters and more" in PAGE
