"""Each trap of docs/traps.md names tests that exist."""

import ast
import re

from tests.e2e.harness import ROOT

TRAPS = 61


def rows() -> dict[int, list[tuple[str, str]]]:
    text = (ROOT / "docs" / "traps.md").read_text()
    found = {}
    for line in text.splitlines():
        match = re.match(r"\| (\d+) \|", line)
        if match:
            found[int(match[1])] = re.findall(r"`([\w/]+\.py)::(\w+)`", line)
    return found


def test_every_trap_has_a_test_that_exists():
    assert list(rows()) == list(range(1, TRAPS + 1))
    for number, tests in rows().items():
        assert tests, f"trap {number} names no test"
        for file_name, function in tests:
            tree = ast.parse((ROOT / "tests" / file_name).read_text())
            names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert function in names, f"trap {number}: {file_name} has no {function}"
