"""TraceMLTorchTrainer on two nodes of a real Ray that keep their runs in different places."""

from pathlib import Path

import pytest

from tests.boot.conftest import REPOSITORY
from tests.e2e.harness import write
from tests.engines.conftest import IS_OLDER, Engine
from traceml_agent.integrations.ray import TraceMLRayConfig, with_variables, worker_variables
from traceml_agent.report.fold import fold

EPOCHS, BATCHES = 2, 12
by_hand = pytest.mark.skipif(IS_OLDER, reason="this Ray sets no variables for workers")
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300"}

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


@by_hand
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_digest_of_a_node_without_a_common_disk_comes_home(
    engine: Engine, tmp_path: Path, short_directory: Path
) -> None:
    driver, node = tmp_path / "driver", tmp_path / "node"
    arguments = (str(REPOSITORY / "examples"), str(driver), str(node), str(tmp_path / "store"))
    quiet = QUIET | {"RAY_TMPDIR": str(short_directory)}
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


BY_HAND = """
import os, sys
import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

tool, runs, store = sys.argv[1:]


def train(config):
    import ray.train, torch
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for number in range(config["steps"]):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
    if config["raises"]:
        raise ValueError("at the end")
    ray.train.report({"weights": repr(model.state_dict())})


def trained(name, **config):
    given = dict(
        train_loop_config={"steps": 0, "raises": False, **config},
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(storage_path=store, name=name),
    )
    if tool == "ray":
        trainer = TorchTrainer(train, **given)
    else:
        from traceml_agent.integrations.ray import TraceMLRayConfig, TraceMLTorchTrainer

        settings = TraceMLRayConfig(logs_dir=runs, session_id=name)
        trainer = TraceMLTorchTrainer(train, traceml_config=settings, **given)
        assert trainer.last_endpoint is None
    try:
        print(name, sorted(trainer.fit().metrics.items()))
    except Exception as error:
        print(name, type(error).__module__, type(error).__name__, "at the end" in str(error))
    if tool == "agent":
        print(name, trainer.last_endpoint, file=sys.stderr)


ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
trained("well", steps=12)
trained("badly", steps=7, raises=True)
trained("untrained")
"""


@by_hand
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_trainer_by_hand_gives_what_that_of_ray_gives_and_says_where_the_run_is(
    engine: Engine, tmp_path: Path, short_directory: Path
) -> None:
    """Of a training that ends well, one that raises, and a function that trains nothing."""
    script = write(tmp_path, BY_HAND)
    quiet = QUIET | {"RAY_TMPDIR": str(short_directory)}
    runs = tmp_path / "by-hand"
    found = {}
    for tool in ("ray", "agent"):
        arguments = (tool, str(runs), str(tmp_path / f"store-{tool}"))
        found[tool] = engine.run("python", script, *arguments, enabled=False, **quiet)
        assert found[tool].returncode == 0, found[tool].stderr
    printed = found["ray"].stdout.splitlines()
    assert [line.split()[0] for line in printed] == ["well", "badly", "untrained"]
    assert printed[1].endswith(" True")
    assert found["agent"].stdout == found["ray"].stdout
    told = found["agent"].stderr.splitlines()
    assert {line for line in told if line.startswith(("well ", "badly ", "untrained "))} == {
        f"well {runs / 'well'}",
        f"badly {runs / 'badly'}",
        "untrained None",
    }
    ends = {name: fold(runs / name).payload["run_context"]["exit"] for name in ("well", "badly")}
    assert {name: (ends[name]["0"]["status"], ends[name]["0"]["last_step"]) for name in ends} == {
        "well": ("finished", 12),
        "badly": ("failed", 7),
    }


@pytest.mark.slow
@pytest.mark.skipif(not IS_OLDER, reason="for `make engines-older`: an older Ray Train")
def test_an_older_ray_is_told_what_to_do_instead(engine: Engine, tmp_path: Path) -> None:
    script = write(
        tmp_path,
        "from traceml_agent.integrations.ray import TraceMLTorchTrainer\n"
        "TraceMLTorchTrainer(lambda: None)\n",
    )
    result = engine.run("python", script, enabled=False)
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("RuntimeError: TraceMLTorchTrainer sets variables by worker_runtime_env")
    assert "TRACEML_ENABLE" in last


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
