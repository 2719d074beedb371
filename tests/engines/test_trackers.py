"""Loops that log to trackers by themselves, each as its users install it."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.agents.conftest import bin_of  # noqa: F401  # a fixture
from tests.e2e.harness import write
from tests.engines.conftest import Engine
from traceml_agent.report.fold import fold

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # an environment is made first

LOOP = """
{begin}
import torch
from torch import nn
from torch.utils.data import DataLoader

torch.manual_seed(0)
torch.set_num_threads(1)
model = nn.Linear(64, 64)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
{made}
for step, x in enumerate(DataLoader(torch.randn(960, 64), batch_size=32)):
    loss = model(x).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    value = loss.item()
    {log}
    print(value)
model.eval()
with torch.no_grad():
    loss = model(torch.randn(8, 64)).mean()
{end}
"""
BOARD = {
    "made": 'writer = SummaryWriter("board")',
    "log": 'writer.add_scalar("loss", value, step); writer.add_histogram("w", model.weight, step)',
    "end": "writer.close()",
}
TRACKERS = {
    "tensorboard": {"begin": "from torch.utils.tensorboard import SummaryWriter"} | BOARD,
    "tensorboardX": {"begin": "from tensorboardX import SummaryWriter"} | BOARD,
    "wandb": {
        "begin": "import wandb",
        "made": 'wandb.init(project="p", mode="offline", settings=wandb.Settings(silent=True))',
        "log": 'wandb.log({"loss": value})',
        "end": "wandb.finish()",
    },
    "mlflow": {
        "begin": "import mlflow",
        "made": 'mlflow.set_tracking_uri("sqlite:///m.db"); mlflow.start_run()',
        "log": 'mlflow.log_metric("loss", value, step=step)',
        "end": "mlflow.end_run()",
    },
    "clearml": {
        "begin": "from clearml import Task",
        "made": 'Task.set_offline(True); task = Task.init("p", "t", auto_connect_streams=False)',
        "log": 'task.get_logger().report_scalar("loss", "train", iteration=step, value=value)',
        "end": "task.close()",
    },
    "aim": {
        "begin": "import aim",
        "made": 'run = aim.Run(repo=".", log_system_params=False, capture_terminal_logs=False, '
        "system_tracking_interval=None)",
        "log": 'run.track(value, name="loss", step=step)',
        "end": "run.close()",
    },
}
CALLS = {
    "tensorboard": "SummaryWriter.add_", "tensorboardX": "SummaryWriter.add_", "wandb": "Run.log",
    "mlflow": "MlflowClient.log_metric", "clearml": "Logger.report_scalar", "aim": "BasicRun.track",
}  # fmt: skip
STEPS = 30
SEEN_LATE = {"tensorboardX": 10}
"""Steps until it is seen, where its import imports torch."""
NUMBER = re.compile(r"^\d+\.\d+$", re.MULTILINE)


@pytest.mark.parametrize("name", TRACKERS)
def test_what_a_loop_logs_is_a_phase_that_names_the_call_and_the_line(
    name: str,
    bin_of: Callable[[str], Path],  # noqa: F811
    tmp_path: Path,
    short_directory: Path,
) -> None:
    if name == "aim" and sys.version_info >= (3, 13):
        pytest.skip("aim has no wheel for this Python")
    engine = Engine(bin_of("trackers"), tmp_path, short_directory)
    script = write(tmp_path, LOOP.format(**TRACKERS[name]))
    quiet = {
        "WANDB_CONSOLE": "off",
        "CLEARML_OFFLINE_MODE": "1",
        "CLEARML_CACHE_DIR": str(tmp_path),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    off = engine.run("python", script, enabled=False, **quiet)
    on = engine.run("python", script, **quiet)
    assert (on.returncode, off.returncode) == (0, 0), on.stderr
    losses = NUMBER.findall(on.stdout)
    assert losses == NUMBER.findall(off.stdout)
    assert len(losses) == STEPS
    (spool,) = on.spools
    assert spool.statuses["logging"] == "active"
    assert spool.end is not None and spool.end.steps == STEPS
    payload = fold(on.run_dir).payload
    (told,) = [f for f in payload["run_context"]["frameworks"] if f["name"] == name]
    assert told["logs"] >= STEPS - SEEN_LATE.get(name, 0)
    assert told["version"] is not None or name == "aim"  # it has none that can be asked for
    logged = [event for event in spool.events if event.name == "logging"]
    assert any(str(event.detail["call"]).startswith(CALLS[name]) for event in logged)
    assert all(str(event.detail["at"]).startswith("train.py:") for event in logged), logged
    average = payload["step_time"]["global"]["average"]
    assert 0 < average["logging_ms"] < average["step_time_ms"]
    assert average["residual_ms"] is not None
    assert payload["traceml_agent"]["faults"] == []
