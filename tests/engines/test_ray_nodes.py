"""TraceMLTorchTrainer on two nodes of a real Ray that keep their runs in different places."""

from pathlib import Path

import pytest

from tests.boot.conftest import REPOSITORY
from tests.e2e.harness import write
from tests.engines.conftest import Engine
from traceml_agent.integrations.ray import TraceMLRayConfig, with_variables, worker_variables
from traceml_agent.report.fold import fold

EPOCHS, BATCHES = 2, 12

TWO_NODES = """
import os, sys

examples, driver, node, store = sys.argv[1:]
os.environ["PYTHONPATH"] = examples  # of the workers: they import the training function
sys.path.insert(0, examples)
os.environ["TRACEML_DIR"] = driver
import ray
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
os.environ["TRACEML_DIR"] = node
cluster.add_node(num_cpus=1)
os.environ["TRACEML_DIR"] = driver
ray.init(address=cluster.address, log_to_driver=False)

import ray_train

ray_train.main(None, store)
sys.stdout.flush()
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_digest_of_a_node_without_a_common_disk_comes_home(
    engine: Engine, tmp_path: Path, short_directory: Path
) -> None:
    driver, node = tmp_path / "driver", tmp_path / "node"
    arguments = (str(REPOSITORY / "examples"), str(driver), str(node), str(tmp_path / "store"))
    quiet = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(short_directory),
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    }
    script = write(tmp_path, TWO_NODES)
    result = engine.run("python", script, *arguments, enabled=False, **quiet)
    assert result.returncode == 0, result.stderr
    (run_dir,) = driver.iterdir()
    (elsewhere,) = node.iterdir()
    assert result.stdout == f"run: {run_dir}\n"
    assert elsewhere.name == run_dir.name
    assert len(list(elsewhere.glob("*.jsonl"))) == 1
    payload = fold(run_dir).payload
    assert payload["traceml_agent"]["complete"] is True
    exits = payload["run_context"]["exit"]
    told = {rank: (how["status"], how["last_step"]) for rank, how in exits.items()}
    assert told == dict.fromkeys(("0", "1"), ("finished", EPOCHS * BATCHES))
    assert "\nRanks " in result.stderr  # the summary of both, printed by the driver


def test_a_config_becomes_the_variables_of_the_workers() -> None:
    config = TraceMLRayConfig(
        init_mode="selective",
        patch_dataloader=True,
        patch_backward=False,
        logs_dir="/runs",
        sampler_interval_sec=0.5,
    )
    assert worker_variables(config, "run-1") == {
        "TRACEML_ENABLE": "1",
        "TRACEML_RUN_ID": "run-1",
        "TRACEML_DIR": "/runs",
        "TRACEML_SAMPLE_INTERVAL_S": "0.5",
        "TRACEML_SKIP": "forward,backward,transfer",
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"init_mode": "maybe"},
        {"patch_h2d": True},
        {"init_mode": "manual", "patch_forward": False},
        {"init_mode": "selective"},
    ],
)
def test_a_config_that_contradicts_itself_raises(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="init_mode"):
        TraceMLRayConfig(**wrong)  # type: ignore[arg-type]


def test_a_value_that_the_agent_would_not_take_raises() -> None:
    with pytest.raises(ValueError, match="TRACEML_RUN_ID"):
        worker_variables(TraceMLRayConfig(), "../away")


def test_the_users_own_variables_win() -> None:
    own = {"pip": ["einops"], "env_vars": {"TRACEML_DIR": "/mine", "OTHER": "1"}}
    merged = with_variables(own, {"TRACEML_DIR": "/ours", "TRACEML_ENABLE": "1"})
    variables = {"TRACEML_DIR": "/mine", "OTHER": "1", "TRACEML_ENABLE": "1"}
    assert merged == {"pip": ["einops"], "env_vars": variables}
    assert own["env_vars"] == {"TRACEML_DIR": "/mine", "OTHER": "1"}
