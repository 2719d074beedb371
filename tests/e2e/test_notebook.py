"""A cell that hangs, in a real kernel of a notebook: another process sees its line."""

import ast
import contextlib
import json
import subprocess
import sys
import time

import pytest

from tests.e2e.harness import ROOT, environment, runs_in
from tests.e2e.line_programs import CELL
from traceml_agent.report.fold import fold

PATIENCE_S = 120
IMPORTS = "import time, torch\ntorch.set_num_threads(1)\n"
TRAINING = """model = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
def fetch(step):
    if step == 25:
        time.sleep(600)
    return torch.randn(3, 4)
for step in range(60):
    optimizer.zero_grad()
    model(fetch(step)).sum().backward()
    optimizer.step()
"""


def stalls(tmp_path):
    lines = [
        line for run_dir in runs_in(tmp_path) for spool in run_dir.glob("*.jsonl")
        for line in spool.read_bytes().split(b"\n")[:-1]
    ]  # fmt: skip
    return [record for record in map(json.loads, lines) if record["kind"] == "stall"]


@contextlib.contextmanager
def kernel(tmp_path, enabled=True, **settings):
    """A client of a kernel that has imported torch."""
    from jupyter_client.manager import KernelManager

    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(
        env=environment(tmp_path, enabled, **settings),
        cwd=str(tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=PATIENCE_S)
        client.execute_interactive(IMPORTS, timeout=PATIENCE_S, output_hook=lambda message: None)
        yield client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.mark.slow
def test_the_line_of_a_cell_is_named_with_its_text(tmp_path):
    with kernel(tmp_path, TRACEML_STACK_HZ="100") as client:
        client.execute_interactive(CELL, timeout=PATIENCE_S, output_hook=lambda message: None)
        (run_dir,) = runs_in(tmp_path)
        deadline = time.monotonic() + PATIENCE_S
        while not (spots := fold(run_dir).payload["hotspots"]):
            assert time.monotonic() < deadline, "no lines were written"
            time.sleep(0.2)
    place = [spots[0][name] for name in ("file", "line", "function", "code")]
    assert place == ["Cell In[2]", 4, "report", "time.sleep(0.02)"]


def test_view_shows_the_cell_and_the_line_in_it_of_a_kernel_that_hangs(tmp_path):
    with kernel(tmp_path, TRACEML_HANG_S="1") as client:
        client.execute(TRAINING)
        deadline = time.monotonic() + PATIENCE_S
        while not stalls(tmp_path):
            assert time.monotonic() < deadline, "no stall was written"
            time.sleep(0.2)
        (run_dir,) = runs_in(tmp_path)
        shown = subprocess.run(
            [sys.executable, "-m", "traceml_agent", "view", str(run_dir)],
            env=environment(tmp_path, False),
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert shown.returncode == 0, shown.stderr
    assert "fetch at Cell In[2]:5" in shown.stdout
    assert shown.stdout.startswith("STALL (warning)")


@pytest.mark.slow
def test_the_notebook_of_the_examples_shows_its_scopes(tmp_path):
    cells = json.loads((ROOT / "examples" / "scopes.ipynb").read_text())["cells"]
    shown = []

    def take(message):
        assert message["msg_type"] != "error", message["content"]["traceback"]
        if message["msg_type"] == "execute_result":
            shown.append(message["content"]["data"]["text/plain"])

    with kernel(tmp_path, enabled=False, TRACEML_DIR=str(tmp_path / "runs")) as client:
        for cell in cells:
            if cell["cell_type"] == "code":
                source = "".join(cell["source"])
                reply = client.execute_interactive(source, timeout=PATIENCE_S, output_hook=take)
                assert reply["content"]["status"] == "ok"
    tree, totals, summary = shown
    lines = tree.splitlines()
    (epoch,) = (line for line in lines if line.startswith("epoch[1] - "))
    assert "{loss=" in epoch
    depth = {
        line.split(" - ")[0].split("[")[0].strip(): len(line) - len(line.lstrip()) for line in lines
    }
    assert depth["epoch"] == 0 < depth["step"] < depth["forward"]
    assert depth["augment"] > depth["epoch"]
    assert {name for name, _ in ast.literal_eval(totals)} >= {"epoch", "step", "augment", "forward"}
    assert ast.literal_eval(summary)["traceml/diagnosis"]
