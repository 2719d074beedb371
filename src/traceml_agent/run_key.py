"""Which run a process belongs to: the name that all processes of a job find by themselves.

docs/decisions/0005-run-identity.md says why each rule is what it is.
"""

import os.path
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from traceml_agent.identity import clean, job_id, launcher_of

_LOOPBACK = ("localhost", "127.", "::1", "0.0.0.0")
_MPI_JOBS = ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "OMPI_MCA_orte_ess_jobid")


class Sharing(Enum):
    """Who else may have the same key, and so what must be known before a directory is joined."""

    GIVEN = "whoever the user says"
    LAUNCH = "processes of other launches, which belong to other runs"
    STEP = "tasks of one Slurm step, and what they start one after the other"
    SHARED = "processes of other launches, some of the same run and some of other runs"


@dataclass(frozen=True, slots=True)
class RunKey:
    """A name for the run; the run is in the directory of that name, or of the name and -2, -3."""

    run_id: str
    sharing: Sharing


@dataclass(frozen=True, slots=True)
class Launch:
    """What started this process, told apart from all that ever ran on any machine."""

    token: str  # of the agent of torchrun or, elsewhere, of the parent process
    parent: str  # a name for a run of all children of the parent
    own: str  # a name for a run of this process alone
    is_child: bool  # of multiprocessing: its siblings belong to the same run
    hostname: str


def resolve_run_key(environ: Mapping[str, str], configured: str | None, launch: Launch) -> RunKey:
    """TRACEML_RUN_ID, the Slurm job and step, the torchelastic run, the rendezvous, or new."""
    if configured:
        return RunKey(configured, Sharing.GIVEN)
    launcher = launcher_of(environ)
    is_one_node = environ.get("WORLD_SIZE", "1") == environ.get("LOCAL_WORLD_SIZE")
    is_one_launch = launcher == "torchrun" and is_one_node
    job = job_id(environ)
    if job is None:
        name, sharing = _outside_of_slurm(environ, launcher, launch, is_one_launch)
        return RunKey(clean(name), sharing)
    if is_one_launch or launcher == "none":
        return RunKey(f"slurm-{job}", Sharing.LAUNCH)
    by_step = "SLURM_STEP_ID" in environ and launcher in ("slurm", "environment")
    return RunKey(f"slurm-{job}", Sharing.STEP if by_step else Sharing.SHARED)


def torchelastic_agent(environ: Mapping[str, str]) -> str | None:
    """A directory that each agent of torchrun makes anew, with a random name, for its workers.

    Better than the parent process, which may be a script around the worker: one for each.
    """
    path = environ.get("TORCHELASTIC_ERROR_FILE", "")
    # .../RUN-ID_RANDOM/attempt_0/LOCAL-RANK/error.json
    parts = path.split("/")
    if len(parts) < 5 or not parts[-3].startswith("attempt_"):
        return None
    return os.path.dirname(os.path.dirname(os.path.dirname(path)))


def _outside_of_slurm(
    environ: Mapping[str, str], launcher: str, launch: Launch, is_one_launch: bool
) -> tuple[str, Sharing]:
    rendezvous = _rendezvous(environ, launch.hostname)
    if launcher == "torchrun":
        elastic = environ.get("TORCHELASTIC_RUN_ID", "none")
        name = "torchrun" if elastic == "none" else f"elastic-{elastic[:60]}"
        if is_one_launch:
            return f"{name}-{launch.token}", Sharing.LAUNCH
        if elastic == "none":
            name = f"torchrun-{rendezvous or launch.token}"
        return name, Sharing.SHARED
    if launcher == "mpi":
        job = next((environ[name] for name in _MPI_JOBS if environ.get(name)), None)
        return f"mpi-{job or rendezvous or launch.token}", Sharing.SHARED
    is_here = rendezvous is None or rendezvous.startswith(f"{launch.hostname}-")
    if launch.is_child and is_here:
        return launch.parent, Sharing.LAUNCH
    if launcher == "none" and rendezvous is not None and _starts_its_own_ranks(environ):
        return f"environment-{rendezvous}", Sharing.SHARED
    if launcher == "none":
        return launch.own, Sharing.LAUNCH
    if rendezvous is None:
        return launch.parent, Sharing.LAUNCH
    return f"{launcher}-{rendezvous}", Sharing.SHARED


def _starts_its_own_ranks(environ: Mapping[str, str]) -> bool:
    """Lightning and Fabric start the script once more for each further device, without RANK; what
    they tell these they set in the first one too."""
    size = environ.get("WORLD_SIZE", "")
    return "LOCAL_RANK" in environ and size.isdecimal() and int(size) > 1


def _rendezvous(environ: Mapping[str, str], hostname: str) -> str | None:
    """Where the ranks meet: of the jobs that live at one time, each has an address of its own."""
    address, port = environ.get("MASTER_ADDR"), environ.get("MASTER_PORT")
    if not address or not port:
        return None
    if address.startswith(_LOOPBACK):  # every machine has one of these
        address = hostname
    return f"{address[:60]}-{port[:10]}"
