"""Run directories built by hand, and the command line as a child process."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from traceml_agent.schema.phases import PHASES
from traceml_agent.schema.records import (
    SPOOL_SCHEMA,
    End,
    Header,
    Identity,
    Patches,
    Record,
    Steps,
)
from traceml_agent.spool.format import encode, spool_path

MILLISECOND_NS = 1_000_000
CHILD_TIMEOUT_S = 60

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
MakeRun = Callable[..., Path]


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    """An empty directory for runs."""
    directory = tmp_path / "runs"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture
def environ(tmp_path: Path, runs_dir: Path) -> dict[str, str]:
    """What a child process sees."""
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "TRACEML_DIR": str(runs_dir),
    }


@pytest.fixture
def cli(environ: dict[str, str], tmp_path: Path) -> Cli:
    """Runs `traceml-agent` with these arguments and variables."""

    def call(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "traceml_agent", *arguments],
            env={**environ, **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=CHILD_TIMEOUT_S,
            check=False,
        )

    return call


@pytest.fixture
def make_run(runs_dir: Path) -> MakeRun:
    """Writes the spool of a process that trained for steps of 10 ms, and returns the run."""

    def make(
        run_id: str,
        *,
        steps: int = 60,
        name: str | None = None,
        started_s: float = 1_700_000_000.0,
        ended: bool = True,
        extra: bytes = b"",
    ) -> Path:
        run_dir = runs_dir / run_id
        run_dir.mkdir(mode=0o700, exist_ok=True)
        path = spool_path(run_dir, "host", 4242, 0, 0)
        records = _records(run_id, steps, name, started_s, ended)
        path.write_bytes(b"".join(encode(record) for record in records) + extra)
        os.utime(path, (time.time() - 60, time.time() - 60))
        return run_dir

    return make


def _records(
    run_id: str, steps: int, name: str | None, started_s: float, ended: bool
) -> list[Record]:
    start_ns, step_ns = 5_000 * MILLISECOND_NS, 10 * MILLISECOND_NS
    phase_ns = {"input_wait": 6, "forward": 1, "backward": 2, "optimizer": 1}
    header = Header(
        schema=SPOOL_SCHEMA,
        agent_version="0.1.0",
        run_id=run_id,
        run_name=name,
        identity=Identity(0, 0, 0, 1, 1, 0, "none"),
        pid=4242,
        parent_pid=4241,
        hostname="host",
        boot_id=None,
        wall_ns=int(started_s * 1e9) + start_ns,
        monotonic_ns=start_ns,
        process_start_ns=0,
        torch_imported_ns=2_000 * MILLISECOND_NS,
        python_version="3.11.7",
        torch_version="2.13.0",
        argv=("python",),
        script="train.py",
        ring_path=None,
    )
    patches = Patches(
        start_ns, dict.fromkeys(["dataloader", "forward", "backward", "optimizer"], "active")
    )
    batch = Steps(
        first_step=1,
        count=steps,
        start_ns=start_ns,
        duration_ns=[step_ns] * steps,
        phase_ns={name: [ms * MILLISECOND_NS] * steps for name, ms in phase_ns.items()},
        micro_batches=1,
        samples=8,
        updates=1,
    )
    end = End(
        monotonic_ns=start_ns + steps * step_ns,
        status="finished",
        exit_code=0,
        exception=None,
        stack=None,
        steps=steps,
        duration_ns=steps * step_ns,
        phase_ns={name: phase_ns.get(name, 0) * MILLISECOND_NS * steps for name in PHASES},
        micro_batches=steps,
        samples=8 * steps,
        updates=steps,
    )
    return [header, patches, batch, *([end] if ended else [])]
