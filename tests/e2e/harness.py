"""Runs a script in a child process with the agent off or on, and reads what it left."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from traceml_agent.spool.digested import read_spool
from traceml_agent.spool.reader import Spool

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TIMEOUT_S = 180
CRASHES = {-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGILL, -signal.SIGFPE}


class Crashed(Exception):
    """A child process died where no program written in Python may: never a matter of timing."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a child process did, and the run it recorded."""

    returncode: int
    stdout: str
    stderr: str
    run_dirs: list[Path]

    @property
    def run_dir(self) -> Path:
        assert len(self.run_dirs) == 1, f"{len(self.run_dirs)} runs\n{self.stderr}"
        return self.run_dirs[0]

    @property
    def spools(self) -> list[Spool]:
        return [read_spool(path) for path in sorted(self.run_dir.glob("*.jsonl"))]

    @property
    def summary(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads((self.run_dir / "final_summary.json").read_text())
        return data

    @property
    def own_lines(self) -> list[str]:
        """The lines of the agent on stderr."""
        return [line for line in self.stderr.splitlines() if line.startswith("traceml:")]

    @property
    def other_stderr(self) -> str:
        """What stderr holds without them."""
        return "".join(
            line for line in self.stderr.splitlines(True) if not line.startswith("traceml:")
        )


def environment(tmp_path: Path, enabled: bool, **extra: str) -> dict[str, str]:
    """The environment of a child: nothing of TRACEML_ but what the test says."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TRACEML_")}
    kept |= {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "TMPDIR": str(tmp_path)}
    if enabled:
        kept |= {"TRACEML_ENABLE": "1", "TRACEML_DIR": str(tmp_path / "runs")}
    return kept | extra


def runs_in(tmp_path: Path) -> list[Path]:
    """The run directories, oldest first."""
    directory = tmp_path / "runs"
    return sorted(directory.iterdir()) if directory.is_dir() else []


def run(
    tmp_path: Path,
    *command: str,
    enabled: bool = True,
    prefix: tuple[str, ...] = (),
    may_crash: bool = False,
    **extra: str,
) -> Result:
    """Runs `PREFIX... python COMMAND...` to its end. Raises Crashed where it may not crash."""
    done = subprocess.run(
        [*prefix, sys.executable, *command],
        env=environment(tmp_path, enabled, **extra),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        cwd=tmp_path,
    )
    if done.returncode in CRASHES and not may_crash:
        raise Crashed(f"{signal.Signals(-done.returncode).name}: {command}\n{done.stderr}")
    return Result(done.returncode, done.stdout, done.stderr, runs_in(tmp_path))


def write(tmp_path: Path, text: str, name: str = "train.py") -> str:
    """Writes a script and returns its path."""
    path = tmp_path / name
    path.write_text(text)
    return str(path)
