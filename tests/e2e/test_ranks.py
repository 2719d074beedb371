"""Two ranks of one job: one run directory, one summary, printed once."""

import json
import subprocess
import sys

from tests.e2e.harness import environment, runs_in, write

TRAINING = """
import os, pathlib, time
import torch
from torch import nn
torch.set_num_threads(1)
model = nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(25):
    optimizer.zero_grad()
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
here = pathlib.Path(os.environ["TRACEML_RUN_ID"])
here.mkdir(exist_ok=True)
(here / os.environ["RANK"]).touch()
while len(list(here.iterdir())) < 2:  # as the last collective of a job
    time.sleep(0.001)
"""
ROUNDS = 3


def test_ranks_that_leave_together_write_one_summary_and_print_it_once(tmp_path):
    script = write(tmp_path, TRAINING)
    for number in range(ROUNDS):
        identity = {"WORLD_SIZE": "2", "TRACEML_RUN_ID": f"job-{number}"}
        ranks = [
            subprocess.Popen(
                [sys.executable, script],
                env=environment(tmp_path, True, RANK=rank, LOCAL_RANK=rank, **identity),
                stderr=subprocess.PIPE,
                cwd=tmp_path,
                text=True,
            )
            for rank in ("0", "1")
        ]
        errors = [rank.communicate(timeout=120)[1] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0, 0]
        printed = [line for text in errors for line in text.splitlines() if ": Run  " in line]
        assert len(printed) == 1, errors
        run_dir = runs_in(tmp_path)[number]
        summary = json.loads((run_dir / "final_summary.json").read_text())
        assert sorted(summary["step_time"]["groups"]["rows"]) == ["0", "1"]
