"""What the records of a loader come to: shares, quantiles, and the lines where workers stand."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from traceml_agent.report.stats import quantile, total
from traceml_agent.report.view import RankView
from traceml_agent.schema.loaders import Loader, WorkerStacks, WorkerSums
from traceml_agent.schema.stacks import CodeLine

MOST_HOTSPOTS = 10
FOLLOWS = 4
"""Two batches of a worker follow each other if no more rounds of all workers lie between them.
Chosen: in order it is one; between two blocks of single batches it is hundreds."""
LEAST_BATCHES = 8
"""Pairs of them. Chosen: below, the sums say more."""


@dataclass(frozen=True, slots=True)
class Hotspot:
    """A line where workers stand while they make batches."""

    line: CodeLine | None  # None: in a library, called by no code of the program
    where: str
    share: float  # of the samples, 0 to 1
    samples: int


@dataclass(frozen=True, slots=True)
class Shares:
    """Of the time in which a worker makes batches, 0 to 1; None: not measured."""

    busy: float | None  # making batches, of that and waiting for tasks
    collate: float | None
    cpu: float | None
    delay: float | None  # waiting for a core
    blocked: float | None  # neither: storage, network, locks, sleep
    send: float | None  # CPU time of the sending thread, beside it


@dataclass(frozen=True, slots=True)
class LoaderFigures:
    """One loader of one rank."""

    rank: int
    loader: Loader  # in the whole run
    steady: Loader  # the same without the waits of the warm-up
    shares: Shares
    fetch_p50_ns: float | None
    fetch_p99_ns: float | None
    steps: int  # of the rank, warm-up aside
    steps_ns: int  # time in them
    delay_share: float | None  # of its time, in which the training thread waited for a core
    usable_cpus: float | None
    read_bytes: int | None
    major_faults: int | None
    hotspots: list[Hotspot]

    def of_steps(self, lost_ns: float) -> float:
        """A time as a share of the time in steps."""
        return lost_ns / self.steps_ns if self.steps_ns else 0.0


def figures_of(rank: RankView) -> list[LoaderFigures]:
    """The figures of all loaders of a rank."""
    cpus = [s.usable_cpus for s in rank.spool.host_samples if s.usable_cpus is not None]
    return [
        _figures(rank, loader, *_steps_until(rank, loader.monotonic_ns), cpus)
        for _, loader in sorted(rank.spool.loaders.items())
    ]


def _steps_until(rank: RankView, monotonic_ns: int) -> tuple[int, int]:
    """The steps after the warm-up, and the time in them, that began before a loader was last told
    of: a rank that was killed has made more."""
    series = rank.series
    older = [part for part in series.sums if part.count]
    last = bisect_right(series.start_ns, monotonic_ns)
    steps = max(0, last - series.warmup) + sum(part.count for part in older)
    steps_ns = total(series.duration_ns[series.warmup : max(last, series.warmup)])
    return steps, steps_ns + sum(part.duration_ns for part in older)


def _figures(
    rank: RankView, loader: Loader, steps: int, steps_ns: int, cpus: list[float]
) -> LoaderFigures:
    sums = loader.sums or []
    fetch = sorted(fetch_times(rank, loader.loader))
    return LoaderFigures(
        rank=rank.rank,
        loader=loader,
        steady=_steady(rank, loader),
        shares=shares_of(sums, steady_busy(rank, loader) if loader.workers else None),
        fetch_p50_ns=quantile(fetch, 0.5),
        fetch_p99_ns=quantile(fetch, 0.99),
        steps=steps,
        steps_ns=steps_ns,
        delay_share=_delay_share(rank),
        usable_cpus=min(cpus, default=None),
        read_bytes=_total(s.read_bytes for s in sums),
        major_faults=_total(s.major_faults for s in sums),
        hotspots=hotspots_of(rank.spool.worker_stacks.get(loader.loader)),
    )


def _steady(rank: RankView, loader: Loader) -> Loader:
    """The sums less what single batches of the warm-up add to them: there everything waits once."""
    since_ns = _steady_since(rank)
    batches = wait_ns = known = ready = ready_wait_ns = made_ns = 0
    for record in rank.spool.worker_batches:
        if record.loader != loader.loader or record.start_ns >= since_ns:
            continue
        columns = (record.batch, record.begun_ns, record.fetch_ns, record.asked_ns, record.wait_ns)
        for number, begun, fetch, asked, wait in zip(*columns, strict=True):
            is_first = loader.workers and not number  # of its epoch: in no sum of waits
            if asked is None or wait is None or is_first or record.start_ns + asked >= since_ns:
                continue
            batches, wait_ns = batches + 1, wait_ns + wait
            if loader.workers:
                until_ns = begun + fetch - asked
                known, ready = known + 1, ready + (until_ns <= 0)
                ready_wait_ns += wait if until_ns <= 0 else 0
                made_ns += min(max(0, until_ns), wait)
    if not batches or batches > loader.batches:
        return loader
    made_wait_ns = max(0, loader.made_wait_ns - made_ns)
    return replace(
        loader,
        batches=loader.batches - batches,
        wait_ns=max(0, loader.wait_ns - wait_ns),
        known=max(0, loader.known - known),
        ready=max(0, loader.ready - ready),
        ready_wait_ns=max(0, loader.ready_wait_ns - ready_wait_ns),
        made_wait_ns=made_wait_ns,
        behind_ns=min(loader.behind_ns, made_wait_ns),
        transfer_ns=max(0, loader.transfer_ns - (wait_ns - made_ns if known else 0)),
    )


def _steady_since(rank: RankView) -> int:
    """When the warm-up was over, on the clock of the rank."""
    series = rank.series
    return series.start_ns[series.warmup] if series.warmup < len(series.start_ns) else 0


def _delay_share(rank: RankView) -> float | None:
    """From the samples of the process, the first and the last that know it."""
    known = [
        (sample.monotonic_ns, sample.run_delay_ns)
        for sample in rank.spool.process_samples
        if sample.run_delay_ns is not None
    ]
    if len(known) < 2 or known[-1][0] <= known[0][0]:
        return None
    (begin_ns, before), (end_ns, after) = known[0], known[-1]
    return min(1.0, max(0, after - before) / (end_ns - begin_ns))


def fetch_times(rank: RankView, loader: int, worker: int | None = None) -> list[int]:
    """Nanoseconds for single batches of a loader, or of one of its workers."""
    return [
        fetch_ns
        for record in rank.spool.worker_batches
        if record.loader == loader
        for who, fetch_ns in zip(record.worker, record.fetch_ns, strict=True)
        if worker is None or who == worker
    ]


def steady_busy(rank: RankView, loader: Loader, worker: int | None = None) -> float | None:
    """Share of the time in which workers make batches, by single ones after the warm-up.

    The sums hold the first step too, in which everything waits. None with too few batches.
    """
    since_ns = _steady_since(rank)
    made: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for record in rank.spool.worker_batches:
        if record.loader != loader.loader:
            continue
        columns = (record.epoch, record.worker, record.batch, record.begun_ns, record.fetch_ns)
        for epoch, who, number, begun, fetch in zip(*columns, strict=True):
            begun_ns = record.start_ns + begun
            if begun_ns >= since_ns and worker in (None, who):
                made.setdefault((epoch, who), []).append((begun_ns, fetch, number))
    busy = idle = count = 0
    for rows in made.values():
        rows.sort()
        for (begun_ns, fetch, number), (after_ns, _, after) in pairwise(rows):
            if after - number <= FOLLOWS * max(1, loader.workers):
                busy += fetch
                idle += max(0, after_ns - begun_ns - fetch)
                count += 1
    return busy / (busy + idle) if count >= LEAST_BATCHES and busy else None


def shares_of(sums: Sequence[WorkerSums], busy: float | None = None) -> Shares:
    """Over some workers together; `busy` where it is known better than from the sums."""
    fetch = sum(s.fetch_ns for s in sums)
    if not fetch:
        return Shares(None, None, None, None, None, None)
    idle, cpu = _total(s.idle_ns for s in sums), _total(s.cpu_ns for s in sums)
    collate, send = _total(s.collate_ns for s in sums), _total(s.send_ns for s in sums)
    cpu_share = None if cpu is None else min(1.0, cpu / fetch)
    delay, watched = _total(s.delay_ns for s in sums), _total(s.watched_ns for s in sums)
    delay_share = None
    if delay is not None and watched:
        delay_share = min(1.0 - (cpu_share or 0.0), delay / watched)
    measured = cpu_share is not None and delay_share is not None
    return Shares(
        busy=busy if busy is not None or idle is None else fetch / (fetch + idle),
        collate=None if collate is None else collate / fetch,
        cpu=cpu_share,
        delay=delay_share,
        blocked=1.0 - (cpu_share or 0.0) - (delay_share or 0.0) if measured else None,
        send=None if send is None else send / fetch,
    )


def _total(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def hotspots_of(stacks: WorkerStacks | None) -> list[Hotspot]:
    """The innermost lines of the program, those with most samples first."""
    if stacks is None or not stacks.samples:
        return []
    found: dict[tuple[str, str], int] = {}
    lines: dict[tuple[str, str], CodeLine] = {}  # one that has its text, of several calls in it
    for row in sorted(stacks.rows, key=lambda row: -row.samples):
        if row.lines:
            line = stacks.lines[row.lines[0]]
            place = (f"{line.file}:{line.line}", line.function)
            lines.setdefault(place, line)
        else:
            in_collate = "collate" if row.phase == "collate" else "library"
            place = (row.leaf or row.callee or in_collate, "")
        found[place] = found.get(place, 0) + row.samples
    largest = sorted(found.items(), key=lambda item: -item[1])[:MOST_HOTSPOTS]
    return [
        Hotspot(lines.get(place), place[0], min(1.0, samples / stacks.samples), samples)
        for place, samples in largest
    ]
