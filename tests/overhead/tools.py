"""The tools that `peers.py` measures: how each is installed, started and used; what it keeps."""

import contextlib
import importlib.util
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from tests.overhead.bench import AGENT_ON  # noqa: E402 - found through ROOT

VENVS = Path(os.environ.get("TEST_VENVS", ROOT / ".venv-agents"))


class NotInstalled(Exception):
    """The reason why a tool is not there."""


def agent_steps(directory: Path) -> int:
    from traceml_agent.spool.digested import read_spool

    spools = [read_spool(path) for path in directory.glob("runs/*/*.jsonl")]
    return sum(batch.count for spool in spools for batch in (*spool.batches, *spool.sums))


def traceml_ai_steps(directory: Path) -> int:
    count = 0
    for path in directory.glob("logs/*/aggregator/telemetry"):
        with contextlib.closing(sqlite3.connect(path)) as database:
            query = "select count(distinct step) from step_time_samples"
            count += database.execute(query).fetchone()[0]
    return count


def cirron_steps(directory: Path) -> int:
    batches = [json.loads(path.read_bytes()) for path in directory.glob(".cirron/spool/*.json")]
    return sum(span["name"] == "step" for batch in batches for span in batch["spans"])


def free_port() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def by_traceml_run(python: Path, script: Path) -> list[str]:
    ports = ["--aggregator-port", free_port(), "--master-port", free_port()]
    return [str(python.with_name("traceml")), "run", "--logs-dir", "logs", *ports, str(script)]


def by_python(python: Path, script: Path) -> list[str]:
    return [str(python), str(script)]


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    requirement: str | None = None  # None: is in the running environment
    setup: str = ""
    around: str = "if True:"
    after: str = ""
    finish: str = ""
    variables: tuple[tuple[str, str], ...] = ()
    command: Callable[[Path, Path], list[str]] = by_python
    count_steps: Callable[[Path], int] | None = None  # None: does not keep every step


OFF = Tool("off")
TOOLS = (
    OFF,
    Tool(
        "traceml-agent",
        variables=(*AGENT_ON.items(), ("TRACEML_DIR", "runs")),
        count_steps=agent_steps,
    ),
    Tool(
        "traceml-ai 0.5.0",
        "traceml-ai==0.5.0",
        setup='import traceml_ai\ntraceml_ai.init(mode="auto")',
        around="with traceml_ai.trace_step(model):",
        command=by_traceml_run,
        count_steps=traceml_ai_steps,
    ),
    Tool(
        "cirron-sdk 0.3.0",
        "cirron-sdk==0.3.0",
        setup="import cirron\ncirron.profile()",
        count_steps=cirron_steps,
    ),
    # The schedule is the one for long-running jobs in PyTorch's profiler recipe, for the whole run.
    Tool(
        "torch.profiler",
        setup="""
from torch.profiler import ProfilerActivity, profile, schedule
prof = profile(
    activities=[ProfilerActivity.CPU],
    schedule=schedule(skip_first=10, wait=5, warmup=1, active=3),
    on_trace_ready=lambda p: p.export_chrome_trace(f"trace_{p.step_num}.json"),
)
prof.start()
""",
        after="prof.step()",
        finish="prof.stop()",
    ),
)


@cache
def python_of(tool: Tool) -> Path:
    """The interpreter that has the tool; its environment is made on first use.

    torch is that of the running environment, which stands behind the packages installed here.
    Raises NotInstalled.
    """
    if tool.requirement is None:
        return Path(sys.executable)
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    running = str(Path(spec.origin).parents[1])
    venv = VENVS / f"overhead-{tool.requirement}-{sys.version_info[0]}.{sys.version_info[1]}"
    python, made = venv / "bin/python", venv / "made"
    contents = f"{tool.requirement} {sys.version} {running}"
    if made.is_file() and made.read_text() == contents:
        return python
    shutil.rmtree(venv, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "-q", tool.requirement],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        raise NotInstalled((done.stderr.strip().splitlines() or ["pip failed"])[-1])
    (site_packages,) = venv.glob("lib/python*/site-packages")
    (site_packages / "running_environment.pth").write_text(running + "\n")
    made.write_text(contents)
    return python
