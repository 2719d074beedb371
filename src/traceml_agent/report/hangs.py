"""Stalls of a run: when ranks closed no step, where each of them stood, and whether it ended.

A rank writes down that it closes no step; only here, over all ranks, it shows who waits for whom.
"""

import contextlib
import os
import socket
import time
from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from traceml_agent.report.places import Place, place_of
from traceml_agent.report.view import SILENT_S, RankView, RunView
from traceml_agent.schema.phases import LONG_PHASES
from traceml_agent.schema.stalls import ProcessGroup, Stall
from traceml_agent.spool.reader import Spool, last_step

SILENT_NS = 10_000_000_000
SILENT_SAMPLES = 5
"""A rank is silent if its last record is 10 s and five intervals of its samples older than the last
one of another rank. Chosen: a thread that is only late is late by less."""
SAME_START_NS = 1e9
"""Chosen: clock ticks are 10 ms; the two clocks differ by the time a machine was suspended."""
EPISODES_LIMIT = 50
NOT_COME = "never seen here (it has not come to init_process_group, or not for long)"
_SILENT = "silent since step {step} (stopped, or C code holds the interpreter lock)"
_FELL_SILENT = (
    "nothing after step {step} (stopped or killed before the others, or C code held the lock)"
)
_STOPPED = "stopped by a signal (state T) since step {step}"

WAITING, ELSEWHERE, BUSY, PERSON, SILENT, ENDED, RUNNING, MISSING = (
    "waiting",  # inside a collective
    "elsewhere",
    "busy",  # in a phase that may take long, or patches still see calls
    "input",  # for a person
    "silent",  # alive, and Python does not run in it
    "ended",
    "running",  # closes steps
    "missing",  # left nothing in this directory
)


@dataclass(frozen=True, slots=True)
class RankState:
    """One rank during a stall."""

    rank: int
    state: str
    text: str  # where it is, or what became of it
    place: Place | None = None
    stall: Stall | None = None
    phase: str | None = None
    groups: list[ProcessGroup] = field(default_factory=list)
    since_ns: int = 0  # wall
    until_ns: int = 0


@dataclass(frozen=True, slots=True)
class Episode:
    """A time in which some rank closed no step, over all ranks."""

    ended: bool  # a step was closed afterwards
    states: list[RankState]

    @property
    def stalled(self) -> list[RankState]:
        """The ranks that wrote it down."""
        return [state for state in self.states if state.stall is not None]

    @property
    def since_ns(self) -> int:
        """Wall time of the earliest of them."""
        return min(state.since_ns for state in self.states if state.since_ns)

    @property
    def is_start(self) -> bool:
        """Whether no rank had closed a step yet."""
        return all(state.stall.step == 0 for state in self.states if state.stall is not None)

    @property
    def duration_s(self) -> float:
        """Of the longest of them."""
        return max(state.until_ns - state.since_ns for state in self.states) / 1e9


def episodes(view: RunView) -> list[Episode]:
    """The stall that lasts, if any, and then those that ended, in order of time."""
    lasting = [state for rank in view.ranks if (state := _lasting(rank)) is not None]
    found = []
    if lasting:
        others = _others(view, {state.rank for state in lasting})
        found.append(Episode(False, sorted([*lasting, *others], key=lambda s: s.rank)))
    elif (silent := _silent_alone(view)) is not None:
        found.append(Episode(False, [silent]))
    past = [state for rank in view.ranks for state in _past(rank)]
    past.sort(key=lambda state: state.since_ns)
    return [*found, *(Episode(True, states) for states in _together(past))]


def _wall_ns(spool: Spool, monotonic_ns: int) -> int:
    return spool.header.wall_ns + monotonic_ns - spool.header.monotonic_ns


def _lasting(rank: RankView) -> RankState | None:
    """The last stall of a rank, unless a step was closed since or the rank ended in order."""
    spool = rank.spool
    if not spool.stalls or rank.status == "finished":
        return None
    last = spool.stalls[-1]
    if last_step(spool) > last.step:
        return None
    return _state(rank, last, max(spool.last_monotonic_ns, last.monotonic_ns))


def _past(rank: RankView) -> list[RankState]:
    """Stalls after which a step was closed; of each its last record, which came to rest."""
    latest = {stall.step: stall for stall in rank.spool.stalls}
    ends = {
        event.step - 1: event.monotonic_ns + (event.duration_ns or 0)
        for event in rank.spool.events
        if event.name == "stall"
    }
    newest = last_step(rank.spool)
    return [
        _state(rank, stall, ends.get(step) or _end_of_step(rank, step + 1) or stall.monotonic_ns)
        for step, stall in latest.items()
        if newest > step
    ]


def _end_of_step(rank: RankView, step: int) -> int | None:
    """When a step ended; None where it was thinned out."""
    series = rank.series
    at = bisect_left(series.steps, step)
    if at == len(series.steps) or series.steps[at] != step:
        return None
    return series.start_ns[at] + series.duration_ns[at]


def _state(rank: RankView, stall: Stall, until_ns: int) -> RankState:
    training = next((thread for thread in stall.threads if thread.training), None)
    place = place_of(training.stack) if training is not None else None
    groups = next(
        (found.groups for found in reversed(rank.spool.process_groups) if found.step == stall.step),
        [],
    )
    if stall.input_from is not None:
        state = PERSON
    elif stall.quiet_ns < stall.limit_ns:
        state = BUSY
    elif stall.phase in LONG_PHASES:
        # A framework gathers within its evaluation: a rank that stands there is not at work.
        state = WAITING if place is not None and place.in_collective else BUSY
    elif (place is not None and place.in_collective) or _is_inside(groups):
        state = WAITING
    else:
        state = ELSEWHERE
    text = place.text if place is not None else "no line of Python"
    if state == PERSON:
        text += f" (waits for a person: {stall.input_from})"
    elif state == BUSY:
        text += f" ({stall.phase if stall.phase in LONG_PHASES else 'busy'})"
    if training is not None and training.state == "D":
        text += f" (in the kernel, uninterruptible: {training.waits_in or 'function unknown'})"
    return RankState(
        rank=rank.rank,
        state=state,
        text=text,
        place=place,
        stall=stall,
        phase=stall.phase,
        groups=groups,
        since_ns=_wall_ns(rank.spool, stall.since_ns),
        until_ns=max(_wall_ns(rank.spool, until_ns), _wall_ns(rank.spool, stall.since_ns)),
    )


def _is_inside(groups: list[ProcessGroup]) -> bool:
    """Whether a collective was entered and not left, as in a backward pass of DDP."""
    return any(group.operations and not group.operations[-1].done for group in groups)


def _others(view: RunView, stalled: set[int]) -> list[RankState]:
    """What became of the ranks that wrote no stall."""
    newest_ns = max(_last_wall_ns(rank.spool) for rank in view.ranks)
    some_live = any(rank.status == "running" for rank in view.ranks)
    newest_mtime = max(_mtime(rank.spool) for rank in view.ranks)
    early = any(rank.rank in stalled and not last_step(rank.spool) for rank in view.ranks)
    absent = NOT_COME if early else "never seen here"
    states = [RankState(rank, MISSING, absent) for rank in view.missing_ranks]
    for rank in view.ranks:
        if rank.rank in stalled:
            continue
        step = last_step(rank.spool)
        late_ns = newest_ns - _last_wall_ns(rank.spool)
        late_s = newest_mtime - _mtime(rank.spool)
        if rank.spool.end is not None or rank.status in ("failed", "terminated"):
            told = f"{rank.status} after step {step}"
            states.append(RankState(rank.rank, ENDED, told))
        elif min(late_ns, int(late_s * 1e9)) > _silence_ns(rank.spool) and not (
            rank.status == "killed" and some_live
        ):
            states.append(RankState(rank.rank, SILENT, _silence(rank)))
        elif rank.status == "killed":
            states.append(RankState(rank.rank, ENDED, f"killed after step {step}"))
        else:
            states.append(RankState(rank.rank, RUNNING, f"last closed step {step}, no stall told"))
    return states


def _silent_alone(view: RunView) -> RankState | None:
    """A process that lives and in which not even the agent's thread runs."""
    rank = view.ranks[0]
    step = last_step(rank.spool)
    if len(view.ranks) > 1 or view.missing_ranks or rank.status != "running" or not step:
        return None
    silence_ns = int((time.time() - _mtime(rank.spool)) * 1e9)
    if silence_ns < max(int(SILENT_S * 1e9), _silence_ns(rank.spool)):
        return None
    since_ns = _last_wall_ns(rank.spool)
    return RankState(
        rank=rank.rank,
        state=SILENT,
        text=_silence(rank),
        since_ns=since_ns,
        until_ns=since_ns + silence_ns,
    )


def _silence(rank: RankView) -> str:
    """Why a process writes nothing; where it lives on this machine, the kernel is asked."""
    header = rank.spool.header
    text = _SILENT if rank.status == "running" else _FELL_SILENT
    if rank.status == "running" and header.hostname == socket.gethostname():
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{header.pid}/stat").read_text().rpartition(")")[2].split()
            born_ns = int(fields[19]) / os.sysconf("SC_CLK_TCK") * 1e9
            # Process ids are used again, and those of a container mean something else out here.
            is_it = abs(born_ns - header.process_start_ns) < SAME_START_NS
            if is_it and fields[0] in "Tt":
                text = _STOPPED
    return text.format(step=last_step(rank.spool))


def _last_wall_ns(spool: Spool) -> int:
    return _wall_ns(spool, max(spool.last_monotonic_ns, spool.header.monotonic_ns))


def _mtime(spool: Spool) -> float:
    try:
        return os.stat(spool.path).st_mtime
    except OSError:
        return 0.0


def _silence_ns(spool: Spool) -> int:
    """Longer than this between two records is silence."""
    times = [sample.monotonic_ns for sample in spool.process_samples[-20:]]
    gaps = sorted(after - before for before, after in pairwise(times))
    typical = gaps[len(gaps) // 2] if gaps else 0
    return max(SILENT_NS, SILENT_SAMPLES * typical)


def _together(states: list[RankState]) -> list[list[RankState]]:
    """States in order of time, those of one episode together: their times overlap."""
    found: list[list[RankState]] = []
    until_ns = 0
    for state in states:
        ranks = {other.rank for other in found[-1]} if found else set()
        if found and state.since_ns < until_ns and state.rank not in ranks:
            found[-1].append(state)
            until_ns = max(until_ns, state.until_ns)
        else:
            found.append([state])
            until_ns = state.until_ns
    return [sorted(group, key=lambda state: state.rank) for group in found]
