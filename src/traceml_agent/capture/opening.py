"""Opens the spool of a process that was proven to train, and says so in one line."""

import contextlib
import dataclasses
import faulthandler
import os
import signal
import socket
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from traceml_agent.capture.device import process_group
from traceml_agent.capture.joining import Claim, Place, join
from traceml_agent.capture.launch import launch_of, mpi_daemon, pid_namespace, start_ticks
from traceml_agent.capture.other_agents import other_agents
from traceml_agent.capture.recorder import Recorder
from traceml_agent.capture.say import say
from traceml_agent.errors import UnsafeDirectory
from traceml_agent.guard import or_none
from traceml_agent.identity import resolve_identity, restarts
from traceml_agent.run_key import resolve_run_key
from traceml_agent.schema.records import SPOOL_SCHEMA, Header, Identity
from traceml_agent.spool.format import ALIVE_SUFFIX, RING_SUFFIX, STACK_SUFFIX, spool_path
from traceml_agent.spool.liveness import boot_id, hold
from traceml_agent.spool.ring import Ring
from traceml_agent.spool.rundir import (
    SPOOLS_ON_NODE,
    fallback_runs_dir,
    is_local,
    make_run_dir,
)
from traceml_agent.spool.writer import SpoolWriter
from traceml_agent.version import __version__

if TYPE_CHECKING:
    from traceml_agent.capture.session import Session

RING_CAPACITY = 8192
"""Steps between two flushes that the ring can hold: 0.5 s of steps of 61 us, in 1 MB. Beyond that
the training thread drains it itself, so none is lost."""
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


def open_recorder(session: "Session") -> Recorder | None:
    """The recorder of this process; None where no directory can be written, which is said."""
    group = or_none(process_group)(session.torch) or session.group
    identity = resolve_identity(os.environ, group)
    place = _place(session, identity)
    if place is None:
        return None
    run_dir = place.run_dir
    daemon = mpi_daemon(os.environ, session.parent_pid)
    identity = dataclasses.replace(
        identity,
        rank=place.rank,
        node_rank=identity.node_rank if daemon is None else daemon.node_rank,
        world_size=max(identity.world_size, place.rank + 1),
        attempt=place.attempt,
    )
    hostname = socket.gethostname()
    path = _unused(spool_path(run_dir, hostname, os.getpid(), identity.attempt, identity.rank))
    try:
        writer = _writer_on_node(session, path) or SpoolWriter(path, _cap(session))
    except OSError as error:
        session.refusal = f"cannot write to {run_dir}: {error.strerror or error}"
        say(f"nothing is recorded: {session.refusal}")
        return None
    ring = _ring(session, writer.path)
    recorder = Recorder(path, writer, ring)
    recorder.identity = identity
    recorder.warn = say
    with contextlib.suppress(OSError):  # a file system without locks: liveness stays unknown
        recorder.descriptors.append(hold(path.with_suffix(ALIVE_SUFFIX)))
    _catch_fatal_stacks(session, recorder, path)
    others = other_agents()
    monotonic_ns, wall_ns = time.perf_counter_ns(), time.time_ns()
    header = Header(
        schema=SPOOL_SCHEMA,
        agent_version=__version__,
        run_id=run_dir.name,
        run_name=_run_name(session),
        identity=identity,
        pid=os.getpid(),
        parent_pid=session.parent_pid,
        hostname=hostname,
        boot_id=boot_id(),
        wall_ns=wall_ns,
        monotonic_ns=monotonic_ns,
        process_start_ns=monotonic_ns - process_age_ns(),
        torch_imported_ns=session.torch_imported_ns,
        python_version=sys.version.split()[0],
        torch_version=str(session.torch.__version__),
        argv=_argv(),
        script=_script() or session.script,
        ring_path=None if ring is None else str(ring.path),
        cuda_version=session.torch.version.cuda,
        other_agents=others.names,
        tracers=others.tracers,
        cost_per_hour=session.config.cost_per_hour,
    )
    recorder.write([header])
    recorder.follow(header)
    if identity.rank == 0:
        say(f"recording to {run_dir} ({_patches(session)})")
    return recorder


def _writer_on_node(session: "Session", path: Path) -> SpoolWriter | None:
    """The spool with TRACEML_SPOOL_LOCAL; None: it belongs into the run directory."""
    if not session.config.spool_local:
        return None
    runs_dir = fallback_runs_dir()
    try:
        # In a directory that all may write to, each level may be somebody else's trap.
        own = make_run_dir(runs_dir.parent.parent, runs_dir.parent.name)
        place = make_run_dir(make_run_dir(own, SPOOLS_ON_NODE), path.parent.name)
        return SpoolWriter(_unused(place / path.name), _cap(session))
    except (OSError, UnsafeDirectory) as error:
        say(f"TRACEML_SPOOL_LOCAL: {error}; the spool goes to {path.parent}")
        return None


def _cap(session: "Session") -> int:
    return int(session.config.spool_max_mb * 1e6)


def _script() -> str | None:
    """The script that trains: a profiler may have imported torch before it became `__main__`."""
    return getattr(sys.modules.get("__main__"), "__file__", None)


def _run_name(session: "Session") -> str | None:
    """The name for people, less the secrets where it was made of the command line."""
    name = session.config.run_name
    if name is None:
        return None
    from traceml_agent.redact import own_secrets, redact  # its patterns cost 15 ms

    return redact(name, own_secrets())


def _place(session: "Session", identity: Identity) -> Place | None:
    """The place in the run; under the directory for temporary files where the first cannot be."""
    launch = launch_of(os.environ, session.parent_pid)
    key = resolve_run_key(os.environ, session.config.run_id, launch)
    count = restarts(os.environ)
    claim = Claim(
        rank=identity.rank,
        slurm_restarts=count.slurm,
        elastic_restarts=count.elastic,
        world_size=identity.world_size,
        launch=launch.token,
        pid=os.getpid(),
        start_ticks=start_ticks(os.getpid()),
        hostname=launch.hostname,
        boot_id=boot_id(),
        pid_namespace=pid_namespace(),
    )
    # A child whose rank is that of its parent has none of its own.
    has_no_rank = launch.is_child and identity.launcher in ("none", "slurm")
    wanted = session.config.runs_dir
    try:
        return join(partial(make_run_dir, wanted), key, claim, has_no_rank)
    except (OSError, UnsafeDirectory) as error:
        reason = getattr(error, "strerror", None) or str(error)
    fallback = fallback_runs_dir()
    try:
        # In a directory that all may write to, each level may be somebody else's trap.
        own = make_run_dir(fallback.parent.parent, fallback.parent.name)
        runs_dir = make_run_dir(own, fallback.name)
        place = join(partial(make_run_dir, runs_dir), key, claim, has_no_rank)
    except (OSError, UnsafeDirectory) as error:
        session.refusal = f"cannot write to {wanted} ({reason}) nor to {fallback} ({error})"
        say(f"nothing is recorded: {session.refusal}; set TRACEML_DIR to a directory of yours")
        return None
    say(f"cannot write to {wanted} ({reason}); the run goes to {place.run_dir}")
    return place


def _unused(path: Path) -> Path:
    """The path, or one with a number where a process with the same id wrote before (`exec`)."""
    candidate, number = path, 1
    while os.path.lexists(candidate):  # a dangling link too
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate


def _ring(session: "Session", path: Path) -> Ring | None:
    if "ring" in session.config.skip:
        session.set_status("ring", "skipped by TRACEML_SKIP")
        return None
    place = path.with_suffix(RING_SUFFIX)
    if not is_local(place.parent):
        # Each page of a map on a network file system would travel.
        memory = Path("/dev/shm")
        place = (memory if memory.is_dir() else Path(tempfile.gettempdir())) / (
            f"traceml-{os.geteuid()}-{place.name}"
        )
    try:
        ring = Ring(place, RING_CAPACITY)
    except OSError as error:
        session.set_status("ring", f"not in: {error.strerror or error}")
        return None
    session.set_status("ring", "active")
    return ring


def _catch_fatal_stacks(session: "Session", recorder: Recorder, path: Path) -> None:
    """Python stacks of a crash, and of a SIGTERM that ends the process, go into a file.

    No Python handler: a rank stuck in C could not be ended any more. `chain` keeps the default
    action, so the exit code stays. A handler of the user is left alone.
    """
    if "faulthandler" in session.config.skip:
        session.set_status("faulthandler", "skipped by TRACEML_SKIP")
        return
    try:
        fd = os.open(path.with_suffix(STACK_SUFFIX), _APPEND, 0o600)
    except OSError as error:
        session.set_status("faulthandler", f"not in: {error.strerror or error}")
        return
    inherited = Recorder.inherited_stack_fd
    if inherited is not None:
        # Forked from a training: our handlers are in, unless the program replaced them since.
        os.dup2(fd, inherited, inheritable=False)
        os.close(fd)
        recorder.stack_fd = inherited
        return
    recorder.stack_fd = fd
    taken = []
    if not faulthandler.is_enabled():
        faulthandler.enable(fd)
        taken.append("crash")
    if _is_default(signal.SIGTERM):
        faulthandler.register(signal.SIGTERM, fd, chain=True)
        taken.append("SIGTERM")
    if _is_default(signal.SIGHUP):
        # The stack of one thread: that tells the reader which of the two signals it was.
        faulthandler.register(signal.SIGHUP, fd, all_threads=False, chain=True)
    session.set_status("faulthandler", "active" if len(taken) == 2 else "left to the program")


def _is_default(number: signal.Signals) -> bool:
    """Whether nobody handles a signal: no Python code, and no C code as the user's faulthandler."""
    if signal.getsignal(number) is not signal.SIG_DFL:
        return False
    try:
        caught = Path("/proc/self/status").read_text().partition("SigCgt:")[2].split()[0]
        return not int(caught, 16) >> (number - 1) & 1
    except (OSError, IndexError, ValueError):  # no /proc: only Python can be asked
        return True


def process_age_ns() -> int:
    """Time since the process was started by its parent, to 10 ms."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return int((time.clock_gettime(time.CLOCK_BOOTTIME) - started_s) * 1e9)
    except (OSError, AttributeError, IndexError, ValueError):
        import psutil

        return int((time.time() - psutil.Process().create_time()) * 1e9)


def _argv() -> tuple[str, ...]:
    """The command, by its program and script alone: arguments may hold secrets."""
    return tuple(os.path.basename(part) for part in sys.orig_argv[:1])


def _patches(session: "Session") -> str:
    active = [name for name, status in session.statuses.items() if status == "active"]
    others = [name for name, status in session.statuses.items() if status.startswith("not in")]
    text = "patches: " + ", ".join(n for n in active if n not in ("ring", "faulthandler"))
    return text + (f"; not in: {', '.join(others)}" if others else "")
