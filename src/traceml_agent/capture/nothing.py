"""What a process says that was asked to record, imported torch, and has no run: one line, or none.

Launchers and drivers are such processes: the run is that of other processes, which is said.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from traceml_agent.capture.say import say
from traceml_agent.capture.session import SESSION
from traceml_agent.capture.shadow import hidden_module

RUNS_LOOKED_AT = 20
"""The newest ones. Chosen: more than a job leaves while it runs."""


def say_why_nothing() -> None:
    """One line: it was asked for, torch was imported, and still there is no run."""
    if SESSION.refusal is not None:
        return  # said when it happened
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        return  # a worker: its parent speaks
    hidden = hidden_module()
    if hidden is not None:
        say(f"nothing was recorded: {hidden} hides a module that the agent needs; rename it")
        return
    me, parent = os.getpid(), SESSION.parent_pid
    found = list(headers())
    if any(h.get("parent_pid") == me or h.get("pid") == parent for _, h in found):
        return  # a launcher, or a compile worker
    text = f"nothing was recorded: {_why_nothing()}"
    meanwhile = _meanwhile(found)
    if meanwhile is not None:
        text += f"; recorded meanwhile by another process: {meanwhile}"
    say(text)


def _why_nothing() -> str:
    statuses = SESSION.statuses
    out = [name for name in ("backward", "optimizer") if statuses.get(name) != "active"]
    if len(out) == 2:
        return f"{out[0]}: {statuses.get(out[0])}; {out[1]}: {statuses.get(out[1])}"
    return (
        "this process imported torch, but no backward pass and no optimizer step was seen in it "
        "(a whole step inside one torch.compile call cannot be seen)"
    )


def headers() -> Iterator[tuple[Path, dict[str, Any]]]:
    """The run directory and the header of each spool of the newest runs."""
    import orjson

    with contextlib.suppress(OSError):
        newest = sorted(SESSION.config.runs_dir.iterdir(), key=lambda p: -p.lstat().st_mtime)
        for run_dir in newest[:RUNS_LOOKED_AT]:
            for spool in run_dir.glob("*.jsonl"):
                with contextlib.suppress(OSError, ValueError), spool.open("rb") as file:
                    header = orjson.loads(file.readline(1 << 20))
                    if isinstance(header, dict):
                        yield run_dir, header


def _meanwhile(found: list[tuple[Path, dict[str, Any]]]) -> Path | None:
    """A run whose first process was started after this one: most often it is that of a launcher."""
    from traceml_agent.capture.opening import process_age_ns

    begun_ns = time.time_ns() - process_age_ns()
    for run_dir, header in found:
        with contextlib.suppress(KeyError, TypeError):
            since_ns = header["monotonic_ns"] - header["process_start_ns"]
            if header["pid"] != os.getpid() and header["wall_ns"] - since_ns > begun_ns:
                return run_dir
    return None
