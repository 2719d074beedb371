"""Healthy jobs, one after the other: none of them names a straggler. `make healthy`: 20 of them."""

import os

import pytest

from tests.e2e.harness import run, write
from tests.ranks.job import stragglers
from tests.ranks.trainings import DDP

RUNS = int(os.environ.get("HEALTHY_RUNS", "5"))
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.mark.slow
@pytest.mark.timeout(120 * RUNS)
def test_no_healthy_job_of_many_names_a_straggler(tmp_path):
    found = []
    for number in range(RUNS):
        directory = tmp_path / str(number)
        directory.mkdir()
        result = run(directory, *TORCHRUN, write(directory, DDP), "healthy", "60")
        assert result.returncode == 0, result.stderr
        balance = result.summary["step_time"]["rank_balance"]
        assert len(balance["rows"]) == 2  # else nothing was compared
        found += stragglers(result.summary)
        print(f"{number + 1}: step {result.summary['step_time']['global']['average']}")
    assert found == []
