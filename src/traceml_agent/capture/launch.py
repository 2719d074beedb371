"""What started this process: read from the kernel once, when recording begins."""

import os
import socket
import sys
import time
import zlib
from collections.abc import Mapping
from pathlib import Path

from traceml_agent.run_key import Launch, torchelastic_agent
from traceml_agent.spool.liveness import boot_id


def launch_of(environ: Mapping[str, str], parent_pid: int) -> Launch:
    """The launch that this process is part of."""
    hostname = socket.gethostname()
    machine = (hostname, boot_id(), pid_namespace())
    parent = _token(*machine, parent_pid, start_ticks(parent_pid))
    agent = torchelastic_agent(environ)
    process = sys.modules.get("multiprocessing.process")
    return Launch(
        token=parent if agent is None else _token(hostname, agent),
        parent=f"parent-{parent_pid}-{parent}",
        own=f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
        is_child=process is not None and process.parent_process() is not None,
        hostname=hostname,
    )


def start_ticks(pid: int) -> int | None:
    """When a process started, in ticks since boot; with its pid that names it. None: it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


def pid_namespace() -> str | None:
    """In another namespace (container) the same pid is another process."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _token(*parts: object) -> str:
    return f"{zlib.crc32(repr(parts).encode('utf-8', 'replace')):08x}"
