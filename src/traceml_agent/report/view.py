"""RunView: all that the files of a run say, before anything is judged."""

import os
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from traceml_agent.report.clocks import Clock, clocks_of
from traceml_agent.report.killed import why_killed
from traceml_agent.report.membership import Attempt, Members, members_of
from traceml_agent.report.parts import one_line, readable_spools
from traceml_agent.report.series import RankSeries, series_of, totals
from traceml_agent.report.stats import numpy_for
from traceml_agent.schema.records import StepSums
from traceml_agent.spool.format import ALIVE_SUFFIX
from traceml_agent.spool.liveness import boot_id, is_held
from traceml_agent.spool.reader import Spool, last_step

SILENT_S = 60.0
"""A process on another machine counts as dead when its spool was not written for this long.
Chosen: 120 times the interval between two writes, and twice that between two digests, which stand
for spools on other machines."""
STATUS_ORDER = ("failed", "killed", "terminated", "interrupted", "running", "unknown", "finished")
"""The status of a run is the first of these that any rank has."""
MISSING_LIMIT = 1000
"""Missing ranks that are listed: a header may claim any world size."""


@dataclass(frozen=True, slots=True)
class RankView:
    """One rank: its spool, its steps, and how it ended."""

    rank: int
    spool: Spool
    series: RankSeries
    sums: StepSums | None  # exact, over all steps
    status: str  # finished, failed, interrupted, terminated, killed, running
    exit_code: int | None
    exception: str | None
    stack: str | None


@dataclass(frozen=True, slots=True)
class RunView:
    """A run: the ranks of its last attempt in order, and how all attempts belong together."""

    run_dir: Path
    run_id: str
    run_name: str | None
    attempt: int
    world_size: int
    ranks: list[RankView]
    missing_ranks: list[int]
    problems: list[str]
    spool_bytes: dict[str, int]  # file name: what of it was read
    members: Members
    attempt_statuses: list[str]
    clocks: list[Clock]

    @property
    def complete(self) -> bool:
        """Whether every rank is there and closed its spool in order."""
        return not self.missing_ranks and all(rank.spool.end is not None for rank in self.ranks)


def load_run(
    run_dir: Path, *, parts: Sequence[Path] = (), own_spool: Path | None = None
) -> RunView:
    """Reads every spool of a run directory, or of the directories that hold its `parts`.

    `own_spool` is the one of the calling process: its lock must not be probed, since closing a
    descriptor of the lock file would drop the lock. Raises NoRun, NoSpools and NewerSchema.
    """
    problems: list[str] = []
    spools, sizes = readable_spools(parts or [run_dir], problems)
    members = members_of(spools, (parts or [run_dir])[0].name)
    last = members.attempts[-1]
    of_last = {rank: life.spool for rank, life in last.lives.items()}
    head = of_last[min(of_last)].header
    numpy_for(sum(last_step(spool) for spool in of_last.values()))  # once for all columns
    missing = (rank for rank in range(last.world_size) if rank not in of_last)
    ranks = [_rank_view(rank, of_last, own_spool) for rank in sorted(of_last)]
    return RunView(
        run_dir=run_dir,
        run_id=head.run_id,
        run_name=head.run_name,
        attempt=last.number,
        world_size=last.world_size,
        ranks=ranks,
        missing_ranks=list(islice(missing, MISSING_LIMIT)),
        problems=[one_line(problem) for problem in problems],
        spool_bytes=sizes,
        members=members,
        attempt_statuses=[
            *(_status_of_past(attempt) for attempt in members.attempts[:-1]),
            worst_status(rank.status for rank in ranks),
        ],
        clocks=clocks_of(last, {rank.rank: rank.series for rank in ranks}),
    )


def worst_status(statuses: Iterable[str]) -> str:
    """One word for all ranks."""
    found = set(statuses)
    return next((status for status in STATUS_ORDER if status in found), "unknown")


def _status_of_past(attempt: Attempt) -> str:
    """Of an attempt that another one followed: whatever a clock says, its processes are gone."""
    spools = [life.spool for life in attempt.lives.values()]
    return worst_status(_how_it_ended(spool, spools, lives=False)[0] for spool in spools)


def _rank_view(rank: int, last: dict[int, Spool], own_spool: Path | None) -> RankView:
    spool = last[rank]
    lives = spool.end is None and (spool.path == own_spool or is_alive(spool))
    ended = _how_it_ended(spool, list(last.values()), lives=lives)
    return RankView(rank, spool, series_of(spool), totals(spool), *ended)


def _how_it_ended(
    spool: Spool, spools: list[Spool], *, lives: bool
) -> tuple[str, int | None, str | None, str | None]:
    """Status, exit code, exception and stack."""
    end = spool.end
    if end is not None:
        return end.status, end.exit_code, end.exception, end.stack
    if spool.noted_ending is not None:
        return *spool.noted_ending, None, None
    fatal = spool.fatal_stack
    exception: str | None
    if lives:
        status, exception = "running", None
    elif fatal and "Fatal Python error" in fatal:
        status = "failed"
        exception = next(line for line in fatal.splitlines() if "Fatal Python error" in line)
    elif fatal:
        # At SIGHUP faulthandler writes only the thread that got it, and names no thread.
        of_all_threads = "hread 0x" in fatal
        status, exception = "terminated", "SIGTERM" if of_all_threads else "SIGHUP"
    else:
        status, exception = "killed", why_killed(spool, spools)
    return status, None, exception, fatal


def is_alive(spool: Spool) -> bool:
    """Whether the writer of a spool still runs: by its lock here, by its last write elsewhere."""
    header = spool.header
    if spool.is_closed:
        return False
    if header.hostname == socket.gethostname() and header.boot_id in (None, boot_id()):
        held = is_held(spool.path.with_suffix(ALIVE_SUFFIX))
        if held is not None:
            return held
    if spool.fatal_stack:
        return False  # written by a death only
    try:
        return time.time() - os.stat(spool.path).st_mtime < SILENT_S
    except OSError:
        return False
