"""What started this process: read from the kernel once, when recording begins."""

import os
import re
import socket
import sys
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from traceml_agent.identity import launcher_of
from traceml_agent.run_key import Launch, torchelastic_agent
from traceml_agent.spool.liveness import boot_id

ANCESTORS_LIMIT = 4
"""Between a rank and the daemon of MPI. Chosen: a script, `numactl`, `env` and a shell."""
_OPTIONS = (
    # hydra_pmi_proxy of MPICH: where mpiexec listens, and the number of the node
    re.compile(r"hydra_pmi_proxy\0(?:.*\0)?--control-port\0([^\0]+)\0.*--proxy-id\0([0-9]{1,9})\0"),
    # orted and prted of Open MPI, which tells ranks the name of the job itself, and on the first
    # node mpirun
    re.compile(r"(?:orted|prted)\0.*()ess_base_vpid\0\"?([0-9]{1,9})"),
    re.compile(r"^(?:[^\0]*/)?(?:mpirun|mpiexec|orterun|prterun)(?:\.openmpi)?\0()(0?)"),
)


@dataclass(frozen=True, slots=True)
class MpiDaemon:
    """The process by which `mpirun` started the ranks of this node."""

    node_rank: int
    job: str  # the same on all nodes of one launch; "" where ranks are told themselves


def launch_of(environ: Mapping[str, str], parent_pid: int) -> Launch:
    """The launch that this process is part of."""
    hostname = socket.gethostname()
    machine = (hostname, boot_id(), pid_namespace())
    parent = _token(*machine, parent_pid, start_ticks(parent_pid))
    agent = torchelastic_agent(environ)
    token = parent if agent is None else _token(hostname, agent)
    daemon = mpi_daemon(environ, parent_pid)
    # On one node the parent is the better name: ports are used again.
    if daemon is not None and environ.get("PMI_SIZE") != environ.get("MPI_LOCALNRANKS"):
        token = _token(daemon.job) if daemon.job else token
    process = sys.modules.get("multiprocessing.process")
    return Launch(
        token=token,
        parent=f"parent-{parent_pid}-{parent}",
        own=f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
        is_child=process is not None and process.parent_process() is not None,
        hostname=hostname,
    )


def mpi_daemon(environ: Mapping[str, str], parent_pid: int) -> MpiDaemon | None:
    """What the variables of MPI leave out; None for the ranks of other launchers.

    Ranks may be dealt out in turn (each node gets the next one) as well as node by node.
    """
    if launcher_of(environ) != "mpi":
        return None
    pid: int | None = parent_pid
    for _ in range(ANCESTORS_LIMIT):
        if pid is None or pid <= 1:
            break
        try:
            command = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            break
        for options in _OPTIONS:
            found = options.search(command)
            if found is not None:
                return MpiDaemon(int(found[2] or 0), found[1])
        pid = int(fields[1])
    return None


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
