"""`trace_step` in every mix with automatic steps: counted exactly, and the results are the same."""

import json

import pytest

from tests.e2e.harness import HERE, run

SCRIPT = str(HERE / "bracketed_loops.py")


def told(result):
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def off(tmp_path_factory):
    result = run(tmp_path_factory.mktemp("off"), SCRIPT, enabled=False)
    assert result.own_lines == []
    return told(result)


def test_without_the_agent_a_bracket_is_nothing(off):
    assert {counted for _, counted in off["loops"].values()} == {None}


BY_EVIDENCE = {"every_second", "the_first_half", "some_without_a_loader", "fetched_inside"}
"""Loops whose count takes more than their brackets: some steps have none, one is empty."""


@pytest.mark.parametrize("mode", [None, "manual"])
def test_each_bracket_is_one_step_and_the_others_are_found_as_ever(tmp_path, off, mode):
    words = [] if mode is None else [json.dumps({"mode": mode, "dir": str(tmp_path / "runs")})]
    result = run(tmp_path, SCRIPT, *words, enabled=mode is None, TRACEML_TEST_RAISE="1")
    found = told(result)
    assert found["parameters"] == off["parameters"]
    loops = {name for name in found["loops"] if mode is None or name not in BY_EVIDENCE}
    counts = {name: found["loops"][name] for name in loops}
    assert {name: pair for name, pair in counts.items() if pair[0] != pair[1]} == {}
    (spool,) = result.spools
    assert (spool.faults, spool.end.status) == ([], "finished")
