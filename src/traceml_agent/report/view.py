"""RunView: all that the files of a run say, before anything is judged."""

import os
import socket
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from traceml_agent.errors import NewerSchema, NoRun, NoSpools
from traceml_agent.report.killed import why_killed
from traceml_agent.report.series import RankSeries, series_of
from traceml_agent.spool.compact import compact
from traceml_agent.spool.format import ALIVE_SUFFIX, SPOOL_SUFFIX
from traceml_agent.spool.liveness import is_held
from traceml_agent.spool.reader import NotASpool, Spool, read_spool

SILENT_S = 60.0
"""A process on another machine counts as dead when its spool was not written for this long.
Chosen: 120 times the interval between two writes, and 60 between two samples."""
MISSING_LIMIT = 1000
"""Missing ranks that are listed: a header may claim any world size."""


@dataclass(frozen=True, slots=True)
class RankView:
    """One rank: its spool, its steps, and how it ended."""

    rank: int
    spool: Spool
    series: RankSeries
    status: str  # finished, failed, interrupted, terminated, killed, running
    exit_code: int | None
    exception: str | None
    stack: str | None


@dataclass(frozen=True, slots=True)
class RunView:
    """A run: its ranks in order, the last attempt of each."""

    run_dir: Path
    run_id: str
    run_name: str | None
    attempt: int
    world_size: int
    ranks: list[RankView]
    missing_ranks: list[int]
    problems: list[str]
    spool_bytes: dict[str, int]  # file name: what of it was read

    @property
    def complete(self) -> bool:
        """Whether every rank is there and closed its spool in order."""
        return not self.missing_ranks and all(rank.spool.end is not None for rank in self.ranks)


def load_run(run_dir: Path, *, own_spool: Path | None = None) -> RunView:
    """Reads every spool of a run directory.

    `own_spool` is the one of the calling process: its lock must not be probed, since closing a
    descriptor of the lock file would drop the lock. Raises NoRun, NoSpools and NewerSchema.
    """
    if not run_dir.is_dir():
        raise NoRun(f"{run_dir} is no run directory; `traceml-agent runs` lists the runs")
    problems: list[str] = []
    spools: list[Spool] = []
    sizes: dict[str, int] = {}
    paths = sorted(run_dir.glob(f"*{SPOOL_SUFFIX}"))
    newer: NewerSchema | None = None
    for path in paths:
        try:
            sizes[one_line(path.name)] = path.stat().st_size
            spools.append(compact(read_spool(path)))
            sizes[one_line(path.name)] = spools[-1].size
        except NewerSchema as error:
            newer = error
            problems.append(str(error))
        except (NotASpool, OSError) as error:
            problems.append(_relative(str(error), run_dir))
    if not spools:
        if newer is not None:
            raise newer
        hint = f" ({problems[0]})" if problems else ""
        raise NoSpools(
            f"no readable spool in {run_dir}{hint}; was TRACEML_ENABLE=1 set for the training?"
        )
    for spool in spools:
        problems.extend(spool.problems)
    last = _last_attempts(spools, problems)
    head = last[min(last)].header
    world_size = max(spool.header.identity.world_size for spool in last.values())
    missing = (rank for rank in range(world_size) if rank not in last)
    return RunView(
        run_dir=run_dir,
        run_id=head.run_id,
        run_name=head.run_name,
        attempt=max(spool.header.identity.attempt for spool in last.values()),
        world_size=world_size,
        ranks=[_rank_view(rank, last, own_spool) for rank in sorted(last)],
        missing_ranks=list(islice(missing, MISSING_LIMIT)),
        problems=[one_line(problem) for problem in problems],
        spool_bytes=sizes,
    )


def _last_attempts(spools: list[Spool], problems: list[str]) -> dict[int, Spool]:
    """The latest spool of each rank."""
    last: dict[int, Spool] = {}
    earlier = 0
    for spool in in_time(spools):
        earlier += spool.header.identity.rank in last
        last[spool.header.identity.rank] = spool
    if earlier:
        problems.append(f"{earlier} earlier spool(s) of the same ranks are not in the figures")
    return last


def in_time(spools: list[Spool]) -> list[Spool]:
    """Oldest first. The wall clock may have jumped: within one boot the monotonic one decides."""
    offsets: dict[str | None, int] = {}
    for header in (spool.header for spool in spools):
        offset = header.wall_ns - header.monotonic_ns
        offsets[header.boot_id] = max(offset, offsets.get(header.boot_id, offset))

    def key(spool: Spool) -> tuple[int, int]:
        header = spool.header
        if header.boot_id is None:
            return header.identity.attempt, header.wall_ns
        return header.identity.attempt, header.monotonic_ns + offsets[header.boot_id]

    return sorted(spools, key=key)


def _rank_view(rank: int, last: dict[int, Spool], own_spool: Path | None) -> RankView:
    spool = last[rank]
    end = spool.end
    if end is not None:
        status, code, exception, stack = end.status, end.exit_code, end.exception, end.stack
        return RankView(rank, spool, series_of(spool), status, code, exception, stack)
    if spool.noted_ending is not None:
        status, code = spool.noted_ending
        return RankView(rank, spool, series_of(spool), status, code, None, None)
    fatal = spool.fatal_stack
    if spool.path == own_spool or is_alive(spool):
        status, exception = "running", None
    elif fatal and "Fatal Python error" in fatal:
        status = "failed"
        exception = next(line for line in fatal.splitlines() if "Fatal Python error" in line)
    elif fatal:
        # At SIGHUP faulthandler writes only the thread that got it, and names no thread.
        of_all_threads = "hread 0x" in fatal
        status, exception = "terminated", "SIGTERM" if of_all_threads else "SIGHUP"
    else:
        status, exception = "killed", why_killed(spool, list(last.values()))
    return RankView(rank, spool, series_of(spool), status, None, exception, fatal)


def is_alive(spool: Spool) -> bool:
    """Whether the writer of a spool still runs: by its lock here, by its last write elsewhere."""
    header = spool.header
    if header.hostname == socket.gethostname() and header.boot_id in (None, _boot_id()):
        held = is_held(spool.path.with_suffix(ALIVE_SUFFIX))
        if held is not None:
            return held
    if spool.fatal_stack:
        return False  # written by a death only
    try:
        return time.time() - os.stat(spool.path).st_mtime < SILENT_S
    except OSError:
        return False


def _boot_id() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def one_line(text: str) -> str:
    """Text that UTF-8 can hold, in one line: names of files are any bytes."""
    plain = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(c if c.isprintable() else " " for c in plain)


def _relative(text: str, run_dir: Path) -> str:
    return text.replace(f"{run_dir}/", "")
