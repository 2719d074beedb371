"""Finds the directory of a run, and takes the place of this rank in it.

A key may have been used before: the same `--rdzv-id` given twice, a batch script that trains twice.
So a run is in the directory of its key, or of the key with -2, -3, ... Who takes a place creates a
file that only one can create, `rank00003-restart0.0.claim`; a process joins the first directory
where its place is free and that is of the same job. docs/decisions/0005-run-identity.md has the
rules, one by one.
"""

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import orjson

from traceml_agent.capture.launch import pid_namespace, start_ticks
from traceml_agent.capture.turn import SILENT_S, lives
from traceml_agent.errors import UnsafeDirectory
from traceml_agent.identity import Restarts
from traceml_agent.run_key import RunKey, Sharing
from traceml_agent.spool.format import CLAIM_SUFFIX, LAUNCH_SUFFIX, SPOOL_SUFFIX
from traceml_agent.spool.liveness import boot_id

DIRECTORIES_LIMIT = 10_000
"""Runs of one key. Chosen: a batch script that trains every ten seconds for a day."""
READ_LIMIT = 64
"""Claims of other launches that are read: in a job that lives the first ones are alive."""
TRIES, RETRY_S = 5, 0.002
"""How long to wait for the content of a file that somebody just created. Chosen: one write."""
_NAME = re.compile(r"rank(\d{5,9})-restart(\d{1,9})\.(\d{1,9})" + re.escape(CLAIM_SUFFIX))
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Claim:
    """A process that took a place in a run."""

    rank: int
    slurm_restarts: int
    elastic_restarts: int
    world_size: int
    launch: str
    pid: int
    start_ticks: int | None
    hostname: str
    boot_id: str | None
    pid_namespace: str | None

    @property
    def restarts(self) -> Restarts:
        """Its attempt, as the launchers count."""
        return Restarts(self.slurm_restarts, self.elastic_restarts)


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a run that is ours now."""

    run_dir: Path
    rank: int
    attempt: int


def join(make: Callable[[str], Path], key: RunKey, own: Claim, is_child: bool) -> Place:
    """The place of this process; `make` makes a run directory of that name, or finds it.

    `is_child`: of multiprocessing, without a rank of its own: beside a living sibling that has its
    rank it takes the next free one. Raises OSError and UnsafeDirectory.
    """
    if key.sharing is Sharing.GIVEN:
        run_dir = make(key.run_id)
        _create(run_dir, own)  # whoever was here before: the user wants it so
        return Place(run_dir, own.rank, attempt_of(run_dir, own))
    for run_dir in _candidates(make, key, own):
        for claim in _with_other_ranks(own) if is_child else (own,):
            if _belongs(run_dir, key, claim) and _take(run_dir, claim):
                return Place(run_dir, claim.rank, attempt_of(run_dir, claim))
            if not _sibling_lives(run_dir, key, claim):
                break
    raise UnsafeDirectory(f"{key.run_id}: {DIRECTORIES_LIMIT} runs have this name")


def attempt_of(run_dir: Path, own: Claim) -> int:
    """The number of the attempt: restarts by torchelastic start again at 0 in a requeued job."""
    most: dict[int, int] = {}
    if own.slurm_restarts:
        for _, found in _claimed(run_dir):
            if found.slurm < own.slurm_restarts:
                most[found.slurm] = max(found.elastic, most.get(found.slurm, 0))
    return own.slurm_restarts + own.elastic_restarts + sum(most.values())


def _candidates(make: Callable[[str], Path], key: RunKey, own: Claim) -> Iterator[Path]:
    """The directories of a key, each made when it is asked for.

    Oldest first: the n-th training of a requeued script finds its n-th directory again. Restarted
    workers of torchelastic look into the newest first: their job was there last.
    """
    names = [key.run_id, *(f"{key.run_id}-{n}" for n in range(2, DIRECTORIES_LIMIT + 1))]
    first = make(names[0])
    if own.elastic_restarts and key.sharing is Sharing.SHARED:
        existing = list(_until_missing(first.parent, names))
        yield from (make(name) for name in reversed(existing))
        names = names[len(existing) :]
    else:
        yield first
        names = names[1:]
    yield from map(make, names)


def _until_missing(runs_dir: Path, names: list[str]) -> Iterator[str]:
    for name in names:
        if not (runs_dir / name).is_dir():
            return
        yield name


def _with_other_ranks(own: Claim) -> Iterator[Claim]:
    for rank in range(own.rank, own.rank + DIRECTORIES_LIMIT):
        yield replace(own, rank=rank, world_size=max(own.world_size, rank + 1))


# Whether a directory is of our job


def _belongs(run_dir: Path, key: RunKey, own: Claim) -> bool:
    """Whether this place is free in a run of our job."""
    path = _path(run_dir, own)
    if os.path.lexists(path):
        return _read(path) == own  # the program replaced itself by exec
    if key.sharing is Sharing.LAUNCH:
        return _owns(run_dir, own)
    if key.sharing is Sharing.STEP:
        return True
    claimed = _claimed(run_dir)
    if not claimed:
        return True
    mine = own.restarts
    if any(rank == own.rank and _order(found) > _order(mine) for rank, found in claimed):
        return False
    if any(_is_of_launch(run_dir, own, rank, found) for rank, found in _near(claimed, own)):
        return True
    beside = [rank for rank, found in claimed if found == mine]
    if not beside:
        return _order(mine) > (0, 0)  # a later attempt of a job whose workers are all gone
    claims = (_read(_path(run_dir, replace(own, rank=rank))) for rank in beside[:READ_LIMIT])
    return any(
        claim is not None and claim.world_size == own.world_size and _is_alive(run_dir, claim)
        for claim in claims
    )


def _owns(run_dir: Path, own: Claim) -> bool:
    """Whether the directory is of our launch: the first process that asks makes it so."""
    path = run_dir / f"restart{own.slurm_restarts}{LAUNCH_SUFFIX}"
    if _create_file(path, own.launch.encode()):
        return True
    for _ in range(TRIES):
        with contextlib.suppress(OSError), open(path, "rb", opener=_no_follow) as file:
            owner = file.read(256).decode("utf-8", "replace")
            if owner:
                return owner == own.launch
        time.sleep(RETRY_S)  # it is written after it is created
    return False


def _near(claimed: list[tuple[int, Restarts]], own: Claim) -> list[tuple[int, Restarts]]:
    """The places next to ours, where those of our node are."""
    return list(islice(sorted(claimed, key=lambda place: abs(place[0] - own.rank)), READ_LIMIT))


def _is_of_launch(run_dir: Path, own: Claim, rank: int, found: Restarts) -> bool:
    place = replace(own, rank=rank, slurm_restarts=found.slurm, elastic_restarts=found.elastic)
    claim = _read(_path(run_dir, place))
    return claim is not None and claim.launch == own.launch


def _sibling_lives(run_dir: Path, key: RunKey, own: Claim) -> bool:
    """Whether one lives that has the rank: in a step those of other tasks are siblings too."""
    claim = _read(_path(run_dir, own))
    if claim is None or (claim.launch != own.launch and key.sharing is not Sharing.STEP):
        return False
    return _is_alive(run_dir, claim)


def _is_alive(run_dir: Path, claim: Claim) -> bool:
    """Whether that process lives: by the kernel on this machine, elsewhere by its spool."""
    here = (boot_id(), pid_namespace())
    if claim.boot_id is not None and here == (claim.boot_id, claim.pid_namespace):
        return claim.start_ticks is not None and start_ticks(claim.pid) == claim.start_ticks
    spools = list(run_dir.glob(f"rank{claim.rank:05d}-*-{claim.pid}*{SPOOL_SUFFIX}"))
    if spools:
        return any(lives(spool) for spool in spools)
    with contextlib.suppress(OSError):  # it is about to open its spool, or died before it could
        return time.time() - _path(run_dir, claim).stat().st_mtime < SILENT_S
    return False


# Claims on disk


def _path(run_dir: Path, claim: Claim) -> Path:
    place = f"rank{claim.rank:05d}-restart{claim.slurm_restarts}.{claim.elastic_restarts}"
    return run_dir / f"{place}{CLAIM_SUFFIX}"


def _claimed(run_dir: Path) -> list[tuple[int, Restarts]]:
    with contextlib.suppress(OSError):
        found = (_NAME.fullmatch(name) for name in os.listdir(run_dir))
        return [(int(m[1]), Restarts(int(m[2]), int(m[3]))) for m in found if m is not None]
    return []


def _take(run_dir: Path, own: Claim) -> bool:
    """Whether the place is ours: created, or ours since before."""
    return _create(run_dir, own) or _read(_path(run_dir, own)) == own


def _create(run_dir: Path, own: Claim) -> bool:
    return _create_file(_path(run_dir, own), orjson.dumps(asdict(own)))


def _create_file(path: Path, data: bytes) -> bool:
    """Whether we are the one that created it. Raises OSError."""
    try:
        fd = os.open(path, _FLAGS, 0o600)
    except FileExistsError:
        return False
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
    return True


def _read(path: Path) -> Claim | None:
    """The claim; None where there is none, or none yet: it is written after it is created."""
    for _ in range(TRIES):
        try:
            with open(path, "rb", opener=_no_follow) as file:
                data = file.read(1 << 16)
            return Claim(**orjson.loads(data))
        except (OSError, TypeError):
            return None
        except ValueError:
            time.sleep(RETRY_S)
    return None


def _no_follow(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)


def _order(restarts: Restarts) -> tuple[int, int]:
    return restarts.slurm, restarts.elastic
