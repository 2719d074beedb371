"""Who this process is in the job. Nobody else in the agent reads RANK and its kin."""

import os
import time
from collections.abc import Mapping

from traceml_agent.schema.records import Identity

DIGITS_LIMIT = 9
"""More than any rank or world size has; no spool holds a number of 64 bits and more."""

# Each launcher: its name, the variable that proves it, and where it keeps
# rank, local rank, node rank, world size, local world size.
_LAUNCHERS: tuple[tuple[str, str, tuple[str | None, ...]], ...] = (
    (
        "torchrun",
        "TORCHELASTIC_RUN_ID",
        ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    ),
    (
        "environment",
        "RANK",
        ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    ),
    (
        # SLURM_PROCID alone is no proof: the batch shell has it too, without being a rank.
        "slurm",
        "SLURM_STEP_ID",
        ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_NUM_TASKS", None),
    ),
    (
        "mpi",
        "OMPI_COMM_WORLD_RANK",
        (
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_LOCAL_RANK",
            "OMPI_COMM_WORLD_NODE_RANK",
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_LOCAL_SIZE",
        ),
    ),
    ("mpi", "PMI_RANK", ("PMI_RANK", "MPI_LOCALRANKID", None, "PMI_SIZE", "MPI_LOCALNRANKS")),
)


def resolve_identity(environ: Mapping[str, str]) -> Identity:
    """The identity that the launcher put into the environment; a job of one process without one."""
    for launcher, proof, (rank, local_rank, node_rank, world, local_world) in _LAUNCHERS:
        if proof not in environ or _integer(environ, rank) is None:
            continue
        world_size = max(_integer(environ, world) or 1, 1)
        local_size = _integer(environ, local_world)
        return Identity(
            rank=_integer(environ, rank) or 0,
            local_rank=_integer(environ, local_rank) or 0,
            node_rank=_integer(environ, node_rank) or 0,
            world_size=world_size,
            local_world_size=max(local_size or 1, 1),
            attempt=_attempt(environ),
            launcher=launcher,
            job_id=_job_id(environ),
        )
    return Identity(0, 0, 0, 1, 1, _attempt(environ), "none", _job_id(environ))


def resolve_run_id(environ: Mapping[str, str], configured: str | None) -> str:
    """One name for all processes of a job: TRACEML_RUN_ID, Slurm job, torchelastic run, or new."""
    if configured:
        return configured
    slurm = _job_id(environ)
    if slurm:
        return f"slurm-{slurm}"
    elastic = environ.get("TORCHELASTIC_RUN_ID", "none")
    port = environ.get("MASTER_PORT")
    if elastic != "none":
        return _clean(f"elastic-{elastic}")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    if "TORCHELASTIC_RUN_ID" in environ and port:
        # All ranks of one torchrun share the agent as parent, and its port.
        return _clean(f"torchrun-{os.getppid()}-{port}")
    return f"{stamp}-{os.getpid()}"


def _attempt(environ: Mapping[str, str]) -> int:
    elastic = _integer(environ, "TORCHELASTIC_RESTART_COUNT") or 0
    return max(elastic, _integer(environ, "SLURM_RESTART_COUNT") or 0)


def _job_id(environ: Mapping[str, str]) -> str | None:
    array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else environ.get("SLURM_JOB_ID")
    if not job:
        return None
    step = environ.get("SLURM_STEP_ID")
    return _clean(f"{job}.{step}" if step and step.isdigit() else job)


def _clean(text: str) -> str:
    """A part of a file name: no separator, and no letter that takes more than one byte."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in text)[:100]


def _integer(environ: Mapping[str, str], name: str | None) -> int | None:
    if name is None:
        return None
    text = environ.get(name, "")
    is_number = text.isascii() and text.isdigit() and len(text) <= DIGITS_LIMIT
    return int(text) if is_number else None
