"""Ray Train with the agent in its workers: the settings, and what nodes without a common disk left.

Switching on needs none of this: `agent/ray/runtime_env.yaml` does. `TraceMLTorchTrainer` sets the
variables for the workers of one trainer alone, and brings the digests of all nodes to the driver.
"""

import copy
import functools
import gzip
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from traceml_agent.capture.exit import finish_early
from traceml_agent.capture.patches.disguise import hide_frame
from traceml_agent.capture.session import SESSION
from traceml_agent.config import resolve
from traceml_agent.guard import guard
from traceml_agent.spool.digest import DigestWriter
from traceml_agent.spool.reader import header_of
from traceml_agent.spool.rundir import make_run_dir
from traceml_agent.spool.writer import write_new

PATCHES = {
    "patch_dataloader": "dataloader",
    "patch_forward": "forward",
    "patch_backward": "backward",
    "patch_h2d": "transfer",
}
_COUNT = itertools.count(1)
INIT_MODES = ("auto", "selective", "manual")
TOO_OLD = (
    "TraceMLTorchTrainer sets variables by worker_runtime_env, which this RunConfig lacks: "
    "it needs Ray Train V2 (a newer Ray, without RAY_TRAIN_V2_ENABLED=0) and ray.train.RunConfig. "
    "ray.train.torch.TorchTrainer is recorded too, without any line of the agent: "
    'ray.init(runtime_env={"env_vars": {"TRACEML_ENABLE": "1"}})'
)


@dataclass(frozen=True, slots=True)
class TraceMLRayConfig:
    """Settings of the workers of one trainer. None leaves what the nodes' environment says.

    `init_mode`: "auto" watches all; "selective" the four that are True of `patch_dataloader`,
    `patch_forward`, `patch_backward` and `patch_h2d`; "manual" none of the four. What is left out
    may be wrapped by `traceml_agent.wrap_...`. Optimizers are watched in every mode, or no step
    would end. `logs_dir`: where runs are kept, on each node and
    on the driver; `session_id`: name of the run; `sampler_interval_sec`: seconds between two
    samples; `stop_timeout_sec`: how long one message at the end may take.

    Without a use here, and accepted: `mode` and `profile` (all views read the same files, during
    the run and after it), `summary_window_rows` (the summary covers the whole run), `bind_host` and
    `port` (nothing listens).

    Raises ValueError for another `init_mode`, for one of the four booleans outside "selective", and
    for "selective" without any.
    """

    mode: str | None = None
    profile: str | None = None
    init_mode: str = "auto"
    patch_dataloader: bool | None = None
    patch_forward: bool | None = None
    patch_backward: bool | None = None
    patch_h2d: bool | None = None
    logs_dir: str | None = None
    session_id: str | None = None
    sampler_interval_sec: float | None = None
    summary_window_rows: int | None = None
    bind_host: str | None = None
    port: int | None = None
    stop_timeout_sec: float = 60.0

    def __post_init__(self) -> None:
        if self.init_mode not in INIT_MODES:
            raise ValueError(f"init_mode is one of {', '.join(INIT_MODES)}, not {self.init_mode!r}")
        given = [name for name in PATCHES if getattr(self, name) is not None]
        if given and self.init_mode != "selective":
            raise ValueError(f"{', '.join(given)}: for init_mode='selective' alone")
        if self.init_mode == "selective" and not any(getattr(self, name) for name in PATCHES):
            raise ValueError(f"init_mode='selective' needs a True of {', '.join(PATCHES)}")


def worker_variables(config: TraceMLRayConfig, run_id: str) -> dict[str, str]:
    """The TRACEML_* variables that stand for a config. Raises ValueError for a value that the
    agent would not take."""
    variables = {"TRACEML_ENABLE": "1", "TRACEML_RUN_ID": run_id}
    if config.logs_dir is not None:
        variables["TRACEML_DIR"] = str(Path(config.logs_dir).expanduser().absolute())
    if config.sampler_interval_sec is not None:
        variables["TRACEML_SAMPLE_INTERVAL_S"] = str(config.sampler_interval_sec)
    if config.init_mode != "auto":
        left_out = [patch for name, patch in PATCHES.items() if not getattr(config, name)]
        variables["TRACEML_SKIP"] = ",".join(left_out)
    problems = resolve(variables).problems
    if problems:
        raise ValueError("; ".join(problems))
    return variables


def with_variables(runtime_env: Any, variables: Mapping[str, str]) -> dict[str, Any]:
    """A runtime environment with these variables too; those that it has itself stay."""
    merged = dict(runtime_env or {})
    merged["env_vars"] = {**variables, **(merged.get("env_vars") or {})}
    return merged


class TraceMLTorchTrainer:
    """A `ray.train.torch.TorchTrainer` whose workers are recorded.

    Takes what that takes, and `traceml_config`. Variables that stand in the `worker_runtime_env` of
    its `run_config` win over those of the config. The agent must be installed on all nodes, or be
    in the runtime environment. Raises what the two constructors raise, ImportError without
    ray[train], and RuntimeError where that cannot set variables for workers (V1).
    """

    def __init__(
        self,
        train_loop_per_worker: Callable[..., Any],
        *,
        train_loop_config: dict[str, Any] | None = None,
        traceml_config: TraceMLRayConfig | None = None,
        **torch_trainer_kwargs: Any,
    ) -> None:
        from ray.train import RunConfig
        from ray.train.torch import TorchTrainer

        self.config = traceml_config or TraceMLRayConfig()
        started = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        self._run_id = self.config.session_id or f"ray-{started}-{os.getpid()}-{next(_COUNT)}"
        variables = worker_variables(self.config, self._run_id)
        run_config = copy.copy(torch_trainer_kwargs.pop("run_config", None) or RunConfig())
        if not hasattr(run_config, "worker_runtime_env"):
            raise RuntimeError(TOO_OLD)
        run_config.worker_runtime_env = with_variables(run_config.worker_runtime_env, variables)
        self._parts = Delivery(self._runs_dir(), self._run_id, self.config.stop_timeout_sec)
        self.trainer = TorchTrainer(
            _reporting(train_loop_per_worker, self._parts),
            train_loop_config=train_loop_config,
            run_config=run_config,
            **torch_trainer_kwargs,
        )
        self.last_endpoint: str | None = None

    def _runs_dir(self) -> Path:
        own = {} if self.config.logs_dir is None else {"TRACEML_DIR": self.config.logs_dir}
        return resolve({**os.environ, **own}).config.runs_dir

    def fit(self) -> Any:
        """Trains and returns Ray's `Result`. Raises what `TorchTrainer.fit` raises.

        Afterwards `last_endpoint` is the directory of the run on this machine, with the summary of
        all ranks in it; None where no worker recorded anything.
        """
        with guard("ray delivery"):
            self._parts.open()
        try:
            return self.trainer.fit()
        finally:
            with guard("ray delivery"):
                self.last_endpoint = self._parts.collect()
            self._parts.close()


class Delivery:
    """The way from the workers to the driver; goes to the workers with the training function."""

    def __init__(self, runs_dir: Path, run_id: str, timeout_s: float) -> None:
        self._home = runs_dir / run_id
        self._timeout_s = timeout_s
        self._driver = os.getpid()
        self._store: Any = None

    # The driver

    def open(self) -> None:
        """Starts what the workers report to: an actor without a share of any resource, here."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if not ray.is_initialized():
            ray.init()  # as `fit` would in a moment
        here = ray.get_runtime_context().get_node_id()
        strategy = NodeAffinitySchedulingStrategy(here, soft=True)
        options = {"num_cpus": 0, "scheduling_strategy": strategy}
        self._store = ray.remote(Store).options(**options).remote(str(self._home))

    def collect(self) -> str | None:
        """The directory of the run here; None if no worker recorded anything.

        Writes what came from other nodes into it, and folds it anew. Raises OSError and
        TracemlError.
        """
        import ray

        if self._store is None:
            return None
        recorded, parts = ray.get(self._store.taken.remote(), timeout=self._timeout_s)
        if parts:
            home = make_run_dir(self._home.parent, self._home.name)
            for name, data in parts.items():
                os.close(write_new(home / Path(name).name, gzip.decompress(data)))
            from traceml_agent.report.fold import fold_and_write

            summary = fold_and_write(home)
            if resolve(os.environ).config.summary:
                print(summary.text, file=sys.stderr)
        return str(self._home) if recorded else None

    def close(self) -> None:
        """Ends the actor."""
        if self._store is not None:
            import ray

            with guard("ray delivery"):
                ray.kill(self._store)
            self._store = None

    # The workers

    def report(self, error: BaseException | None) -> None:
        """Ends the recording of this worker, and sends its digest if the driver cannot see it."""
        recorder = SESSION.recorder
        if recorder is None or os.getpid() == self._driver or self._store is None:
            return
        finish_early(error)
        import ray

        path = recorder.path
        with path.open("rb") as file:
            first_line = file.readline()
        wanted = self._store.wanted.remote(path.name, first_line)
        if ray.get(wanted, timeout=self._timeout_s):
            data = gzip.compress(digest_of(path), 1)
            ray.get(self._store.keep.remote(path.name, data), timeout=self._timeout_s)


class Store:
    """What the workers reported; lives in an actor on the machine of the driver."""

    def __init__(self, home: str) -> None:
        self._home = Path(home)
        self._recorded = 0
        self._parts: dict[str, bytes] = {}

    def wanted(self, name: str, first_line: bytes) -> bool:
        """Whether the driver has no such file: the disk is not a common one."""
        self._recorded += 1
        try:
            with (self._home / Path(name).name).open("rb") as file:
                return file.readline() != first_line
        except OSError:
            return True

    def keep(self, name: str, data: bytes) -> None:
        """Keeps a digest until the driver asks."""
        self._parts[name] = data

    def taken(self) -> tuple[int, dict[str, bytes]]:
        """How many workers recorded something, and what came from other disks."""
        return self._recorded, self._parts


def digest_of(spool: Path) -> bytes:
    """All that a spool says, in the form of a digest that stands in its place. Raises OSError."""
    with tempfile.TemporaryDirectory(prefix="traceml-") as directory:
        path = Path(directory) / spool.name
        writer = DigestWriter(path, spool, header_of(spool))
        writer.update()
        if writer.error is not None:
            raise OSError(writer.error)
        return path.read_bytes()


def _reporting(train_loop: Callable[..., Any], delivery: Delivery) -> Callable[..., Any]:
    @functools.wraps(train_loop)  # Ray looks at the signature
    def train(*args: Any, **kwargs: Any) -> Any:
        try:
            result = train_loop(*args, **kwargs)
        except BaseException as error:
            with guard("ray delivery"):
                delivery.report(error)
            hide_frame(error)
            raise
        with guard("ray delivery"):
            delivery.report(None)
        return result

    return train
