"""Every loop shape: steps and micro-batches are counted exactly, the results are the same."""

import json
import re

import pytest

from tests.e2e.harness import HERE, run
from tests.e2e.loops import LOOPS

SCRIPT = str(HERE / "loops.py")


@pytest.mark.parametrize("name", sorted(LOOPS))
def test_a_loop_is_counted_exactly_and_computes_the_same(tmp_path, name):
    off = run(tmp_path, SCRIPT, name, enabled=False)
    on = run(tmp_path, SCRIPT, name, TRACEML_TEST_RAISE="1")
    assert (on.returncode, on.stdout) == (off.returncode, off.stdout), on.stderr
    assert without_log_stamps(on.other_stderr) == without_log_stamps(off.other_stderr)
    truth = json.loads(on.stdout.splitlines()[-1])
    (spool,) = on.spools
    assert spool.end is not None
    assert spool.end.steps == truth["steps"]
    if truth["micro_batches"] is not None:
        assert spool.end.micro_batches == truth["micro_batches"]
    assert spool.faults == []


def without_log_stamps(text):
    """Torch's own log lines carry the time, the process id and the number of the frame.

    A compiled step that calls backward breaks there into one frame more with the agent on, which
    traps.md allows for this case alone.
    """
    return re.sub(r"^W\d{4} [\d:.]+ \d+ (.*?) \[\d+/\d+\]", r"\1", text, flags=re.MULTILINE)
