"""Who this process is in the job. Nobody else in the agent reads RANK and its kin."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from traceml_agent.schema.records import Identity

DIGITS_LIMIT = 9
"""More than any rank or world size has; no spool holds a number of 64 bits and more."""


@dataclass(frozen=True, slots=True)
class Group:
    """This process in the default process group of `torch.distributed`."""

    rank: int
    world_size: int


@dataclass(frozen=True, slots=True)
class Restarts:
    """How often the job was put into the queue again, and its workers were started again."""

    slurm: int
    elastic: int


@dataclass(frozen=True, slots=True)
class _Launcher:
    """Where a launcher keeps the numbers; of several names the first that is set counts."""

    name: str
    proof: tuple[str, ...]
    rank: str
    local_rank: tuple[str, ...]
    node_rank: tuple[str, ...]
    world_size: tuple[str, ...]
    local_world_size: tuple[str, ...]


_MPI_LOCAL = ("MPI_LOCALRANKID", "PALS_LOCAL_RANKID")
_LAUNCHERS = (
    _Launcher(  # torchrun, `accelerate launch`, torchelastic wherever it is embedded
        "torchrun",
        ("TORCHELASTIC_RUN_ID",),
        "RANK",
        ("LOCAL_RANK",),
        ("GROUP_RANK",),
        ("WORLD_SIZE",),
        ("LOCAL_WORLD_SIZE",),
    ),
    _Launcher(
        "ray",
        ("RAY_JOB_ID", "RAY_RAYLET_PID"),
        "RANK",
        ("LOCAL_RANK",),
        ("NODE_RANK",),
        ("WORLD_SIZE",),
        ("LOCAL_WORLD_SIZE",),
    ),
    _Launcher(  # deepspeed (LOCAL_SIZE, CROSS_RANK), Lightning, scripts, functions of mp.spawn
        "environment",
        ("RANK",),
        "RANK",
        ("LOCAL_RANK",),
        ("NODE_RANK", "GROUP_RANK", "CROSS_RANK"),
        ("WORLD_SIZE",),
        ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"),
    ),
    # Before Slurm: mpirun starts its daemons by srun, and ranks inherit *their* SLURM_PROCID.
    # OMPI_COMM_WORLD_NODE_RANK is no rank of a node, but the local rank over all jobs of a node.
    _Launcher(
        "mpi",
        ("OMPI_COMM_WORLD_RANK",),
        "OMPI_COMM_WORLD_RANK",
        ("OMPI_COMM_WORLD_LOCAL_RANK",),
        (),
        ("OMPI_COMM_WORLD_SIZE",),
        ("OMPI_COMM_WORLD_LOCAL_SIZE",),
    ),
    _Launcher(
        "mpi", ("PMI_RANK",), "PMI_RANK", _MPI_LOCAL, (), ("PMI_SIZE",), ("MPI_LOCALNRANKS",)
    ),
    # SLURM_PROCID alone is no proof: the batch shell has it too, without being a rank.
    _Launcher(
        "slurm",
        ("SLURM_STEP_ID",),
        "SLURM_PROCID",
        ("SLURM_LOCALID",),
        ("SLURM_NODEID",),
        ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
        (),
    ),
    _Launcher("mpi", ("PMIX_RANK",), "PMIX_RANK", (), (), (), ()),
)
_COPIES_OF_SRUN = {"PMI_RANK": "PMI_SIZE", "RANK": "WORLD_SIZE"}
"""Ranks that `srun --mpi=pmi2` or the user's script copy from Slurm, and the size beside each."""
_ORIGINALS = (("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE"))
"""What scripts (and accelerate) copy to RANK and WORLD_SIZE under mpirun."""
_LOOPBACK = ("localhost", "127.", "::1")


def resolve_identity(environ: Mapping[str, str], group: Group | None = None) -> Identity:
    """The identity that the launcher gave; a job of one process without one.

    A process group as large as what the launcher started, or larger, is the job itself: that is
    how ranks come about that were given to `init_process_group` alone. A smaller one is a part.
    """
    identity = _of_environment(environ)
    if group is None or group.world_size < max(identity.world_size, 2):
        return identity
    if (group.rank, group.world_size) == (identity.rank, identity.world_size):
        return identity
    if identity.world_size > 1 and group.world_size == identity.world_size:
        return _with_rank(identity, group.rank)
    return _of_group(environ, group, identity)


def launcher_of(environ: Mapping[str, str]) -> str:
    """The name of the launcher, "none" without one."""
    found = _launcher(environ)
    return "none" if found is None else found.name


def restarts(environ: Mapping[str, str]) -> Restarts:
    """Both are 0 the first time. The larger one of two attempts is the later."""
    return Restarts(
        _integer(environ, "SLURM_RESTART_COUNT") or 0,
        _integer(environ, "TORCHELASTIC_RESTART_COUNT") or 0,
    )


def job_id(environ: Mapping[str, str]) -> str | None:
    """The Slurm job (array task) and its step; None outside of Slurm.

    Without the step under mpirun, which starts its daemons on all nodes but the first by a step.
    """
    array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else environ.get("SLURM_JOB_ID")
    if not job:
        return None
    step = environ.get("SLURM_STEP_ID", "")
    by_mpirun = launcher_of(environ) == "mpi"
    return clean(f"{job}.{step}" if step.isdigit() and not by_mpirun else job)


def clean(text: str) -> str:
    """A part of a file name: no separator, and no letter that takes more than one byte."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in text)[:100]


def _of_environment(environ: Mapping[str, str]) -> Identity:
    count = restarts(environ)
    attempt = count.slurm + count.elastic
    launcher = _launcher(environ)
    if launcher is None:
        return Identity(0, 0, 0, 1, 1, attempt, "none", job_id(environ))
    rank = _integer(environ, launcher.rank) or 0
    world_size = max(_first(environ, launcher.world_size) or 1, 1)
    local_size = _first(environ, launcher.local_world_size) or _slurm_local_size(environ, launcher)
    local_rank = _first(environ, launcher.local_rank)
    if local_size is None and environ.get("MASTER_ADDR", "").startswith(_LOOPBACK):
        local_size = world_size  # they meet on this machine
        local_rank = rank if local_rank is None else local_rank
    return Identity(
        rank=rank,
        local_rank=local_rank or 0,
        node_rank=_node_rank(environ, launcher, rank, local_size),
        world_size=world_size,
        local_world_size=max(local_size or 1, 1),
        attempt=attempt,
        launcher=launcher.name,
        job_id=job_id(environ),
    )


def _launcher(environ: Mapping[str, str]) -> _Launcher | None:
    for launcher in _LAUNCHERS:
        if not any(name in environ for name in launcher.proof):
            continue
        if _integer(environ, launcher.rank) is None:
            continue
        if launcher.name in ("mpi", "environment") and _is_copy_of_srun(environ, launcher.rank):
            continue
        if launcher.name == "environment" and _is_copy_of_mpi(environ):
            continue
        return launcher
    return None


def _is_copy_of_srun(environ: Mapping[str, str], rank: str) -> bool:
    """Whether the numbers are those of srun, which tells the place on the node as well."""
    size = _COPIES_OF_SRUN.get(rank)
    return (
        size is not None
        and "SLURM_STEP_ID" in environ
        and environ[rank] == environ.get("SLURM_PROCID")
        and environ.get(size) == environ.get("SLURM_STEP_NUM_TASKS")
    )


def _is_copy_of_mpi(environ: Mapping[str, str]) -> bool:
    """Whether the numbers are those of mpirun, which tells the place on the node as well."""
    own = environ.get("RANK"), environ.get("WORLD_SIZE")
    return None not in own and any(
        own == (environ.get(rank), environ.get(size)) and not _is_copy_of_srun(environ, rank)
        for rank, size in _ORIGINALS
    )


def _node_rank(
    environ: Mapping[str, str], launcher: _Launcher, rank: int, local_size: int | None
) -> int:
    told = _first(environ, launcher.node_rank)
    if told is not None:
        return told
    # Not told by MPI. Ranks are dealt out node by node unless the user says otherwise.
    return rank // local_size if launcher.name == "mpi" and local_size else 0


def _slurm_local_size(environ: Mapping[str, str], launcher: _Launcher) -> int | None:
    """Tasks of the step on this node, from lists like `2(x3),1`."""
    if launcher.name != "slurm":
        return None
    text = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE") or ""
    node, first = _integer(environ, "SLURM_NODEID") or 0, 0
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:\(x([0-9]{1,9})\))?", part.strip())
        if match is None:
            return None
        first += int(match[2] or 1)
        if node < first:
            return int(match[1])
    return None


def _with_rank(identity: Identity, rank: int) -> Identity:
    """The same with the rank that the program chose over that of the launcher."""
    return Identity(
        rank,
        identity.local_rank,
        identity.node_rank,
        identity.world_size,
        identity.local_world_size,
        identity.attempt,
        identity.launcher,
        identity.job_id,
    )


def _of_group(environ: Mapping[str, str], group: Group, outer: Identity) -> Identity:
    """A rank that only the process group tells; `outer`: what started it (a task a node, say).

    Nobody tells its place on the node: ranks are taken to be dealt out evenly, node by node.
    """
    nodes = outer.world_size // outer.local_world_size if outer.launcher == "slurm" else 1
    known = _integer(environ, "LOCAL_WORLD_SIZE")
    even = group.world_size // nodes if nodes and group.world_size % nodes == 0 else None
    local_size = max(known or even or 1, 1)
    local_rank = _integer(environ, "LOCAL_RANK")
    return Identity(
        rank=group.rank,
        local_rank=group.rank % local_size if local_rank is None else local_rank,
        node_rank=group.rank // local_size,
        world_size=group.world_size,
        local_world_size=local_size,
        attempt=outer.attempt,
        launcher="process group" if outer.launcher == "none" else outer.launcher,
        job_id=outer.job_id,
    )


def _first(environ: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    found = (_integer(environ, name) for name in names)
    return next((number for number in found if number is not None), None)


def _integer(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "")
    is_number = text.isascii() and text.isdigit() and len(text) <= DIGITS_LIMIT
    return int(text) if is_number else None
