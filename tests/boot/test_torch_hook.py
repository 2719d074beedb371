"""A fault where torch is hooked leaves `import torch` and the program as they are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.boot.conftest import CHILD_TIMEOUT_S

pytest.importorskip("torch")

TRAIN = """
import torch
torch.manual_seed(0)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(5):
    optimizer.zero_grad()
    loss = model(torch.ones(2, 4)).pow(2).sum()
    loss.backward()
    optimizer.step()
print(loss.item())
"""


def train(tmp_path: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """A short training in the Python that runs the tests."""
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    return subprocess.run(
        [sys.executable, str(script)],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "OMP_NUM_THREADS": "1",
            "TRACEML_DIR": str(tmp_path / "runs"),
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=CHILD_TIMEOUT_S,
        check=False,
    )


@pytest.mark.parametrize(
    "fault", ["raise RuntimeError('broken wrapt')", "raise ImportError('no wrapt')"]
)
def test_a_fault_in_the_hook_lets_torch_be_imported(tmp_path: Path, fault: str) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "wrapt.py").write_text(fault + "\n")
    plain = train(tmp_path)
    done = train(tmp_path, TRACEML_ENABLE="1", PYTHONPATH=str(broken))
    assert (done.stdout, done.returncode) == (plain.stdout, 0)
    assert all(line.startswith("traceml: ") for line in done.stderr.splitlines())
