"""The scripts of examples/ that need torch alone have the verdict that they are known for.

The others run with their frameworks, in tests/engines.
"""

import time

import pytest

from tests.e2e.harness import ROOT, run

pytestmark = pytest.mark.slow
LONGEST_S = 60
"""A promise of the examples, on two cores at rest."""
BUSY = 2
"""How much longer they may take on a machine that other tests keep busy."""
HEALTHY = {"COMPUTE_BOUND", "BALANCED"}
EXAMPLES = {
    "digits_cnn": HEALTHY,
    "slow_input": {"INPUT_BOUND"},
    "char_lm": HEALTHY,
    "memory_growth": {"CREEP_EARLY", "CREEP_CONFIRMED"},
    "slow_logging": {"RESIDUAL_HEAVY"},
    "gan": None,  # what counts are its steps
    "no_loader": None,
}


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_an_example_has_its_verdict_and_its_steps(tmp_path, name):
    begun = time.monotonic()
    result = run(tmp_path, str(ROOT / "examples" / f"{name}.py"))
    assert time.monotonic() - begun < BUSY * LONGEST_S
    assert result.returncode == 0, result.stderr
    if (kinds := EXAMPLES[name]) is not None:
        assert result.summary["primary_diagnosis"]["kind"] in kinds
    (spool,) = result.spools
    assert spool.end.steps == int(result.stdout.splitlines()[-1].split()[0])  # updates, iterations
