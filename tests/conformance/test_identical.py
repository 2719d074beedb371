"""A corpus of trainings, each run with the agent off and on: nothing of it may differ."""

import hashlib
import re

import pytest

from tests.conformance.cases import CASES, SLOW, script
from tests.e2e.harness import HERE, run, write
from traceml_agent.spool.digested import read_spool

PROBE = str(HERE.parent / "conformance")
UNRECORDED = {"compile_step"}
"""Whole steps that are compiled cannot be seen, as the agent says."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in sorted(CASES)]
)
def test_a_training_is_the_same_with_the_agent_on(tmp_path, name):
    off = outcome(tmp_path / "off", name, enabled=False)
    on = outcome(tmp_path / "on", name, enabled=True)
    for what in off:
        assert on[what] == off[what], what


def outcome(directory, name, enabled):
    """All that a run shows to the world, by name. With the agent on it has to have recorded."""
    directory.mkdir()
    path = write(directory, script(name))
    extra = {"PYTHONPATH": PROBE, "TRACEML_TEST_RAISE": "1"}
    if "multiprocessing" in script(name):
        extra["TMPDIR"] = "/tmp"  # sockets there, and their paths have a limit
    result = run(directory, path, enabled=enabled, **extra)
    assert not any("/runs" in line and "recorded" in line for line in result.own_lines)
    if enabled and name not in UNRECORDED:
        spools = [read_spool(path) for run in result.run_dirs for path in run.glob("*.jsonl")]
        assert any(spool.end is not None and spool.end.steps for spool in spools)
    return {
        "stdout": comparable(result.stdout, directory),
        "exit code": result.returncode,
        "stderr": comparable(result.other_stderr, directory),
        "files": files_below(directory),
    }


def comparable(text, directory):
    """Objects and directories have other addresses in every run, and torch logs with the time."""
    text = re.sub(r"0x[0-9a-f]+|(?<=PTR', ')\d+", "0x", text.replace(str(directory), "DIRECTORY"))
    return re.sub(r"^[IWE]\d{4} [\d:.]+ \d+ (\S+) \[\d+/\d+\]", r"\1", text, flags=re.M)


def files_below(directory):
    """Every file that the program wrote, with a hash of its bytes.

    Not the cache of inductor: its binaries differ between any two runs.
    """
    found = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_file() and not re.match(r"runs/|torchinductor_|.*__pycache__", name):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
