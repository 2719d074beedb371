"""A private Slurm cluster on this machine: own key, own ports, every daemon ended by its pid file.

Several slurmd play several nodes, by their names or, with `addresses`, each in a network namespace
and under a host name of its own.
"""

import contextlib
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.slurm.claims import claim

TIMEOUT_S = 120
"""For one command or job: on a busy machine four processes import torch for a minute."""
GPUS = 4
BLOCK = 10
"""Ports that are taken together."""
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
PATH = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

CONF = """
ClusterName=test
SlurmctldHost={host}({controller})
SlurmUser=root
SlurmdUser=root
SlurmctldPort={port}
SlurmdPort={next_port}
AuthType=auth/munge
AuthInfo=socket={dir}/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool-%n
SlurmctldPidFile={dir}/slurmctld.pid
SlurmdPidFile={dir}/slurmd-%n.pid
SlurmctldLogFile={dir}/slurmctld.log
SlurmdLogFile={dir}/slurmd-%n.log
ProctrackType=proctrack/{proctrack}
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0
MpiDefault=none
GresTypes=gpu
SwitchType=switch/none
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=5
OverTimeLimit=0
MailProg=/bin/true
{hooks}
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True, slots=True)
class Node:
    """One slurmd."""

    name: str
    address: str
    port: int
    enter: tuple[str, ...] = ()  # the command in front of slurmd


@dataclass(slots=True)
class Cluster:
    """A running cluster, and the commands of its users."""

    directory: Path
    nodes: Sequence[Node]
    environ: dict[str, str] = field(default_factory=dict)

    def run(self, *command: str, **extra: str) -> subprocess.CompletedProcess[str]:
        """A command of a user, in the working directory of the cluster."""
        return subprocess.run(
            command,
            env={**self.environ, **extra},
            cwd=self.work,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )

    @property
    def work(self) -> Path:
        """Shared by all nodes."""
        return self.directory / "work"

    def submit(self, *arguments: str, **extra: str) -> str:
        """The id of a new batch job."""
        done = self.run("sbatch", "--parsable", "-o", "job-%A_%a.out", *arguments, **extra)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def show(self, job: str, name: str) -> str | None:
        """A field of a job that is or was in the queue."""
        done = self.run("scontrol", "show", "job", job)
        found = re.search(rf"(?:^|\s){name}=(\S*)", done.stdout)
        return None if found is None else found[1]

    def wait(self, job: str, state: str = "", timeout_s: float = TIMEOUT_S) -> str:
        """The state of a job when it has ended, the epilogs included, or is in that state."""
        deadline = time.monotonic() + timeout_s
        while True:
            now = self.show(job, "JobState")
            if now == state or (not state and now in ENDED and not self._is_completing(job)):
                return str(now)
            assert time.monotonic() < deadline, f"job {job} is {now}\n{self.output(job)}"
            time.sleep(0.1)

    def _is_completing(self, job: str) -> bool:
        done = self.run("squeue", "-h", "-t", "COMPLETING", "-o", "%A %i")
        return any(job in line.split() for line in done.stdout.splitlines())

    def output(self, job: str, task: str = "4294967294") -> str:
        """What a job printed, on both streams."""
        with contextlib.suppress(FileNotFoundError):
            return (self.work / f"job-{job}_{task}.out").read_text()
        return ""


@contextlib.contextmanager
def cluster(
    directory: Path, nodes: Sequence[Node], port: int, controller: str, proctrack: str, hooks: str
) -> Iterator[Cluster]:
    """Starts a cluster, waits until all nodes are idle, and ends it."""
    for name in ("state", "work", *(f"spool-{node.name}" for node in nodes)):
        (directory / name).mkdir(parents=True)
    directory.chmod(0o755)
    host = socket.gethostname().partition(".")[0]
    lines = "\n".join(_node_line(node, host) for node in nodes)
    conf = directory / "slurm.conf"
    conf.write_text(
        CONF.format(
            host=host,
            controller=controller,
            port=port,
            next_port=port + 1,
            dir=directory,
            proctrack=proctrack,
            hooks=hooks,
            nodes=lines,
        )
    )
    for number in range(GPUS):  # devices of an experimental number: nobody answers
        os.mknod(directory / f"gpu{number}", stat.S_IFCHR | 0o600, os.makedev(240, number))
    (directory / "gres.conf").write_text(f"Name=gpu File={directory}/gpu[0-{GPUS - 1}]\n")
    (directory / "cgroup.conf").write_text(
        "CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\n"
        "ConstrainCores=no\nConstrainRAMSpace=no\n"
    )
    environ = {"PATH": PATH, "HOME": str(directory), "SLURM_CONF": str(conf), "LANG": "C.UTF-8"}
    environ |= {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    started = Cluster(directory, nodes, environ)
    try:
        _start(started)
        yield started
    finally:
        _end_jobs(started)
        _stop(directory)


def free_port(count: int) -> int:
    """The first of so many ports in a row, at most BLOCK, that nobody uses or is about to use."""
    assert count <= BLOCK
    first = 21_000 + os.getpid() % 400 * 20
    for port in (*range(first, 32_000, BLOCK), *range(21_000, first, BLOCK)):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for number in range(port, port + count):
                stack.enter_context(socket.socket()).bind(("", number))
            if claim(f"ports-{port}"):
                return port
    raise OSError("no free ports")


def _node_line(node: Node, host: str) -> str:
    host = node.name if node.enter else host
    return (
        f"NodeName={node.name} NodeHostname={host} NodeAddr={node.address} Port={node.port} CPUs=4 "
        f"Sockets=1 CoresPerSocket=4 ThreadsPerCore=1 RealMemory=2000 Gres=gpu:{GPUS} State=UNKNOWN"
    )


def _start(started: Cluster) -> None:
    directory = started.directory
    key = directory / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    munged = [f"--key-file={key}", f"--socket={directory}/munge.sock", "--num-threads=2"]
    munged += [f"--pid-file={directory}/munged.pid", f"--log-file={directory}/munged.log"]
    _daemon(started, "munged", "--force", *munged, f"--seed-file={directory}/munge.seed")
    conf = str(directory / "slurm.conf")
    _daemon(started, "slurmctld", "-f", conf, "-c")
    for node in started.nodes:
        _daemon(started, *node.enter, "slurmd", "-f", conf, "-N", node.name)
    deadline = time.monotonic() + 60
    while True:
        idle = started.run("sinfo", "-h", "-N", "-t", "idle", "-o", "%n").stdout.split()
        if len(idle) == len(started.nodes):
            return
        logs = "".join(log.read_text()[-2000:] for log in directory.glob("slurm*.log"))
        assert time.monotonic() < deadline, f"idle nodes: {idle}\n{logs}"
        time.sleep(0.1)


def _daemon(started: Cluster, *command: str) -> None:
    # Into a file: the daemon keeps a pipe open, and nobody would see its end.
    with (started.directory / "daemons.log").open("ab") as log:
        subprocess.run(command, env=started.environ, check=True, timeout=60, stdout=log, stderr=log)


def _end_jobs(started: Cluster) -> None:
    """A step outlives its slurmd: it must be gone before."""
    started.run("scancel", "-u", "root")
    deadline = time.monotonic() + 20
    while started.run("squeue", "-h").stdout.strip() and time.monotonic() < deadline:
        time.sleep(0.1)


def _stop(directory: Path) -> None:
    # slurmd last but munged: it ends the steps that are left.
    files = [directory / "slurmctld.pid", *directory.glob("slurmd-*.pid"), directory / "munged.pid"]
    pids = []
    for file in files:
        with contextlib.suppress(OSError, ValueError):
            pids.append(int(file.read_text()))
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 10
    for pid in pids:
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
