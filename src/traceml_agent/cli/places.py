"""Where the commands look for runs."""

import os
from pathlib import Path

from traceml_agent.config import resolve
from traceml_agent.spool.rundir import fallback_runs_dir, why_unsafe


def runs_roots() -> tuple[Path, ...]:
    """The configured directory, then the one that a run falls back to."""
    configured, fallback = resolve(os.environ).config.runs_dir, fallback_runs_dir()
    # Anybody can make a directory of that name: then nothing of ours is in it, and no run of
    # somebody else must be shown as the latest one.
    return (configured,) if why_unsafe(fallback.parent) else (configured, fallback)
