"""Which spools belong together: one run, its attempts, and what does not fit into them.

Within one boot of a machine the monotonic clock orders everything exactly. Between machines the
wall clocks are compared, which may be off by an hour: there the order of the attempts of each
machine, the ranks and the number of steps decide first.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from traceml_agent.schema.records import Header
from traceml_agent.spool.reader import Spool, last_step


@dataclass(frozen=True, slots=True)
class Life:
    """One process: its spool, and when it lived on the clock of its machine, in nanoseconds."""

    spool: Spool
    machine: str
    born: int
    begin: int  # of its first step or of its recording
    end: int

    @property
    def rank(self) -> int:
        """Global."""
        return self.spool.header.identity.rank

    @property
    def restarts(self) -> int:
        """What the launcher counts; 0 where it does not."""
        return self.spool.header.identity.attempt


@dataclass(frozen=True, slots=True)
class Attempt:
    """One life of the whole job."""

    number: int  # from 0; gaps are attempts that left no spool
    lives: dict[int, Life]  # rank: its process
    doubles: list[Life] = field(default_factory=list)  # further ones that lived at the same time

    @property
    def world_size(self) -> int:
        """The largest that any of its ranks was told."""
        return max(life.spool.header.identity.world_size for life in self.lives.values())


@dataclass(frozen=True, slots=True)
class Members:
    """The spools of a directory, told apart."""

    run_id: str
    attempts: list[Attempt]
    strangers: dict[str, list[Spool]]  # other runs


def machine_of(header: Header) -> str:
    """What has one monotonic clock: a boot of a machine, whatever its containers are called."""
    return header.boot_id or f"host {header.hostname}"


def members_of(spools: Sequence[Spool], directory_name: str) -> Members:
    """Sorts the spools of one directory, or of several parts of a run. There is at least one."""
    run_id = run_of(spools, directory_name)
    strangers: dict[str, list[Spool]] = {}
    own: list[Spool] = []
    for spool in spools:
        if spool.header.run_id == run_id:
            own.append(spool)
        else:
            strangers.setdefault(spool.header.run_id, []).append(spool)
    attempts: list[Attempt] = []
    for group in _attempts(lives_of(own)):
        number = max(group[0].restarts, attempts[-1].number + 1 if attempts else 0)
        attempts.append(_attempt(number, group))
    return Members(run_id, attempts, strangers)


def run_of(spools: Sequence[Spool], directory_name: str) -> str:
    """The run that a directory is named after; else the one with most spools, then the latest."""
    found = Counter(spool.header.run_id for spool in spools)
    latest: dict[str, int] = {}
    for spool in spools:
        header = spool.header
        latest[header.run_id] = max(latest.get(header.run_id, 0), header.wall_ns)
    return max(found, key=lambda r: (r == directory_name, found[r], latest[r], r))


def anchors_of(spools: Iterable[Spool]) -> dict[str, int]:
    """Machine: wall time at the zero of its monotonic clock. A jump of the wall clock moves it for
    all processes of the machine alike, so that it changes no order among them."""
    anchors: dict[str, int] = {}
    for header in (spool.header for spool in spools):
        machine, anchor = machine_of(header), header.wall_ns - header.monotonic_ns
        anchors[machine] = max(anchor, anchors.get(machine, anchor))
    return anchors


def lives_of(spools: Sequence[Spool]) -> list[Life]:
    """When each process lived, on the wall clock of its machine as it stood at the last anchor."""
    anchors = anchors_of(spools)
    lives = []
    for spool in spools:
        header, machine = spool.header, machine_of(spool.header)
        # Without a boot id the monotonic clocks of two processes need not be the same one.
        anchor = anchors[machine] if header.boot_id else header.wall_ns - header.monotonic_ns
        starts = [batch.start_ns for batch in spool.batches[:1]]
        begin = min([header.monotonic_ns, *starts, *(s.start_ns for s in spool.sums)])
        end = max(spool.last_monotonic_ns, header.monotonic_ns)
        born = min(header.process_start_ns, begin)
        lives.append(Life(spool, machine, born + anchor, begin + anchor, end + anchor))
    return lives


# One machine


def _groups_of(lives: Iterable[Life]) -> list[list[Life]]:
    """The attempts of one machine, oldest first: a rank that starts again is in a new one."""
    by_restarts: dict[int, list[Life]] = {}
    for life in lives:
        by_restarts.setdefault(life.restarts, []).append(life)
    groups: list[list[Life]] = []
    for same in by_restarts.values():
        found: list[list[Life]] = []
        latest: dict[int, Life] = {}
        ended = 0
        for life in sorted(same, key=_in_time):
            before = latest.get(life.rank)
            # A rank that is new here came late, unless everything before it had ended.
            over = life.born >= ended if before is None else not _at_once(before, life)
            if not found or over:
                found.append([life])
                latest, ended = {life.rank: life}, life.end
            else:
                found[-1].append(life)
                latest[life.rank] = life
                ended = max(ended, life.end)
        _carry_over(found)
        groups.extend(found)
    return sorted(groups, key=_begin_of)


def _at_once(one: Life, other: Life) -> bool:
    """Whether two processes trained side by side: a slow death beside a new start is no such."""
    overlap = min(one.end, other.end) - max(one.begin, other.begin)
    return overlap >= 0 and 2 * overlap >= min(one.end - one.begin, other.end - other.begin)


def _carry_over(groups: list[list[Life]]) -> None:
    """A rank that went on while another one was started again is in the later attempt."""
    for group, after in itertools.pairwise(groups):
        span = Life(after[0].spool, after[0].machine, 0, _begin_of(after)[0], _end_of(after))
        ranks = _ranks(after)
        staying = [life for life in group if life.rank not in ranks and _at_once(life, span)]
        if len(staying) < len(group):
            after.extend(staying)
            group[:] = [life for life in group if life not in staying]


def _in_time(life: Life) -> tuple[int, int, str]:
    return life.begin, life.rank, life.spool.path.name


def _begin_of(group: Sequence[Life]) -> tuple[int, int, str]:
    return min(_in_time(life) for life in group)


def _end_of(group: Sequence[Life]) -> int:
    return max(life.end for life in group)


# Several machines


def _attempts(lives: Sequence[Life]) -> list[list[Life]]:
    """The attempts of the run, oldest first, each with the lives of all machines."""
    by_machine: dict[str, list[Life]] = {}
    for life in lives:
        by_machine.setdefault(life.machine, []).append(life)
    sequences = [_groups_of(found) for found in by_machine.values()]
    sequences.sort(key=lambda groups: (-len(groups), min(_ranks(groups[0])), _begin_of(groups[0])))
    reference = sequences[0]
    merged = [list(group) for group in reference]
    for groups in sequences[1:]:
        if _run_in_step(reference, groups):
            for attempt, group in zip(merged, groups, strict=False):
                attempt.extend(group)
            continue
        taken: set[int] = set()
        for group in groups:
            at = _fitting(merged, group, taken)
            if at is None:
                merged.append(list(group))
                at = len(merged) - 1
            else:
                merged[at].extend(group)
            taken.add(at)
    return _ordered(merged, reference[0][0].machine)


def _run_in_step(reference: list[list[Life]], groups: list[list[Life]]) -> bool:
    """Whether two machines went through the same attempts with ranks of their own."""
    return len(reference) == len(groups) and all(
        left[0].restarts == right[0].restarts and not _ranks(left) & _ranks(right)
        for left, right in zip(reference, groups, strict=True)
    )


def _ranks(group: Iterable[Life]) -> set[int]:
    return {life.rank for life in group}


def _fitting(attempts: list[list[Life]], group: list[Life], taken: set[int]) -> int | None:
    """Which attempt the processes of a machine belong to; None: to one of their own."""
    ranks, restarts, steps = _ranks(group), group[0].restarts, _steps(group)
    world = group[0].spool.header.identity.world_size
    choices = []
    for at, attempt in enumerate(attempts):
        if at in taken or attempt[0].restarts != restarts:
            continue
        overlap = min(_end_of(attempt), _end_of(group)) - max(_birth(attempt), _birth(group))
        length = _end_of(attempt) - _birth(attempt)
        shorter = min(length, _end_of(group) - _birth(group))
        if ranks & _ranks(attempt):
            if overlap >= 0 and 2 * overlap >= shorter:  # the same ranks at the same time
                choices.append((2, -overlap, at))
        elif overlap > 0:  # a process that outlived an attempt is in the one after it
            choices.append((0, -at, at) if 2 * overlap > length else (1, -overlap, at))
        elif world == attempt[0].spool.header.identity.world_size:
            # A clock that is off: the attempt in which as many steps were made.
            choices.append((3, abs(_steps(attempt) - steps), at))
    return min(choices)[2] if choices else None


def _birth(group: Iterable[Life]) -> int:
    return min(life.born for life in group)


def _steps(group: Iterable[Life]) -> int:
    return max(last_step(life.spool) for life in group)


def _ordered(attempts: list[list[Life]], machine: str) -> list[list[Life]]:
    """Oldest first by the clock of one machine, as far as it took part.

    Between others what the launcher counts for one job goes before clocks.
    """

    def when(attempt: list[Life]) -> tuple[int, int, str]:
        return _begin_of([life for life in attempt if life.machine == machine] or attempt)

    found = sorted(attempts, key=when)
    for at in range(1, len(found)):
        before, after = found[at - 1][0], found[at][0]
        job = before.spool.header.identity.job_id
        if (
            job is not None
            and job == after.spool.header.identity.job_id
            and before.machine != after.machine
            and before.restarts > after.restarts
        ):
            found[at - 1], found[at] = found[at], found[at - 1]
    return found


# One attempt


def _attempt(number: int, group: list[Life]) -> Attempt:
    """One process a rank; of several that lived at once, those that were started together."""
    jobs: dict[tuple[str, int, str | None], list[Life]] = {}
    for life in group:
        jobs.setdefault(_job(life), []).append(life)
    first = {job: (-len(_ranks(mates)), _begin_of(mates)) for job, mates in jobs.items()}
    lives: dict[int, Life] = {}
    doubles = []
    for life in sorted(group, key=lambda life: (first[_job(life)], _in_time(life))):
        if life.rank in lives:
            doubles.append(life)
        else:
            lives[life.rank] = life
    return Attempt(number, dict(sorted(lives.items())), doubles)


def _job(life: Life) -> tuple[str, int, str | None]:
    """What ranks that were started together have in common."""
    header = life.spool.header
    return life.machine, header.parent_pid, header.identity.job_id
