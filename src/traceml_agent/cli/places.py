"""Where the commands look for runs."""

import os
from pathlib import Path

from traceml_agent.config import resolve
from traceml_agent.spool.rundir import fallback_runs_dir


def runs_roots() -> tuple[Path, ...]:
    """The configured directory, then the one that a run falls back to."""
    return (resolve(os.environ).config.runs_dir, fallback_runs_dir())
