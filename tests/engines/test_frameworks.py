"""accelerate, deepspeed and Ray Train: their own launchers, their own loops."""

from pathlib import Path

import pytest

from tests.boot.conftest import REPOSITORY
from tests.e2e.harness import write
from tests.engines.conftest import IS_OLDER, Engine, assert_one_run, same_lines
from tests.engines.trainings import ACCELERATE, DEEPSPEED, RAY, STEPS
from traceml_agent.report.fold import fold

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # an environment is made first

ACCELERATE_LAUNCH = (
    "accelerate launch --num_machines 1 --num_processes 2 --mixed_precision no --dynamo_backend no"
)
SETTINGS_OF_RAY = str(REPOSITORY / "agent" / "ray" / "runtime_env.yaml")
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def test_accelerate_launch_is_one_run_and_computes_the_same(
    engine: Engine, tmp_path: Path, port: str
) -> None:
    script = write(tmp_path, ACCELERATE)
    command = [*ACCELERATE_LAUNCH.split(), "--multi_gpu", "--main_process_port", port, script]
    on = engine.run(*command)
    off = engine.run(*command, enabled=False)
    assert (on.returncode, off.returncode) == (0, 0), on.stderr + off.stderr
    assert same_lines(on.stdout, off.stdout)
    assert_one_run(on, "torchrun", STEPS)


def test_accelerate_launch_over_mpirun_is_one_run(engine: Engine, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("localhost slots=2\n")
    script = write(tmp_path, ACCELERATE)
    over_mpirun = ("--cpu", "--mpirun_hostfile", str(hosts), script)
    on = engine.run(*ACCELERATE_LAUNCH.split(), *over_mpirun, **AS_ROOT)
    assert on.returncode == 0, on.stderr
    assert_one_run(on, "mpi", STEPS)


def test_deepspeed_is_one_run_computes_the_same_and_its_runner_names_it(
    engine: Engine, tmp_path: Path, port: str
) -> None:
    script = write(tmp_path, DEEPSPEED)
    command = ("deepspeed", "--num_gpus", "2", "--master_port", port, script)
    on = engine.run(*command, DS_ACCELERATOR="cpu")
    off = engine.run(*command, DS_ACCELERATOR="cpu", enabled=False)
    assert (on.returncode, off.returncode) == (0, 0), on.stderr + off.stderr
    # Its own lines, with times in them, are on stdout too.
    losses, plain = (
        [line for line in result.stdout.splitlines() if line[:2] in ("0 ", "1 ")]
        for result in (on, off)
    )
    assert len(losses) == 2 * 2 * STEPS
    assert sorted(losses) == sorted(plain)
    assert_one_run(on, "environment", STEPS)
    assert [spool.end.micro_batches for spool in on.spools] == [2 * STEPS] * 2
    told = [line for line in on.own_lines if "nothing was recorded" in line]
    assert len(told) <= 1
    assert all(line.endswith(f"by another process: {on.run_dir}") for line in told)


@pytest.mark.parametrize("version", ["1", "2"])
def test_ray_train_is_one_run_each_and_its_end_is_that_of_the_training_function(
    engine: Engine, tmp_path: Path, short_directory: Path, version: str
) -> None:
    """Switched on by agent/ray/runtime_env.yaml alone: the driver knows nothing of the agent."""
    if IS_OLDER and version == "2":
        pytest.skip("this Ray has version 1 alone")
    script = write(tmp_path, RAY)
    quiet = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(short_directory),
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
        "RAY_TRAIN_V2_ENABLED": "1" if version == "2" else "0",
    }
    results = {}
    for settings, endings in (("", ["well"]), (SETTINGS_OF_RAY, ["well", "badly"])):
        out = tmp_path / ("on" if settings else "off")
        arguments = (settings, str(tmp_path / "runs"), str(out), *endings)
        results[out.name] = engine.run("python", script, *arguments, enabled=False, **quiet)
    on, off = results["on"], results["off"]
    assert (on.returncode, off.returncode) == (0, 0), on.stderr + off.stderr
    told = {
        name: [line for line in result.stdout.splitlines() if line.startswith(("well", "badly"))]
        for name, result in results.items()
    }  # version 1 prints its progress too
    assert version == "1" or off.stdout + on.stdout == "well done\nwell done\nbadly True\n"
    assert told == {"off": ["well done"], "on": ["well done", "badly True"]}
    for rank in (0, 1):
        losses = [(tmp_path / f"{name}.{rank}").read_text() for name in ("on", "off")]
        assert losses[0] == losses[1]
    assert len(on.run_dirs) == 2
    ends = []
    for run_dir in sorted(on.run_dirs, key=lambda path: path.stat().st_ctime):
        payload = fold(run_dir).payload
        assert payload["meta"]["world_size"] == 2
        exits = payload["run_context"]["exit"]
        assert sorted(exits) == ["0", "1"]
        errors = [how["exception"] for how in exits.values() if how["status"] == "failed"]
        assert all("ValueError: the fifth" in error for error in errors)
        ends.append({(how["status"], how["last_step"]) for how in exits.values()})
    assert {("finished", STEPS)} in ends
    ends.remove({("finished", STEPS)})
    (badly,) = ends
    assert ("failed", 5) in badly
    assert {status for status, _ in badly} <= {"failed", "killed"}
