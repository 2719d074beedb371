"""What the account of the kernel and the samples say: cores, threads, interpreter lock, memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from traceml_agent.report.stats import mean, median
from traceml_agent.report.view import RankView, RunView
from traceml_agent.schema.records import GRAPH_BREAKS_EVENT, THREADS_EVENT, Event


@dataclass(frozen=True, slots=True)
class Account:
    """The time of one training thread while it was watched; None: not known."""

    rank: int
    source: str
    wall_ns: int
    run_ns: int
    delay_ns: int | None
    throttled_ns: int | None  # part of the delay; None: there is no quota
    others_run_ns: int
    busiest: str | None
    probe_wait_ns: float | None  # mean wait for the interpreter lock of a thread that wakes up

    @property
    def blocked_ns(self) -> int | None:
        """Neither running nor ready: waiting for a disk, a device, a lock, another thread. None
        where it is not known how long the thread was ready."""
        if self.delay_ns is None:
            return None
        return max(0, self.wall_ns - self.run_ns - self.delay_ns)


FAULT_MOST_MS = 0.0025
"""A page that the kernel has to clear and map. Chosen: 1.8 us were measured on a virtual machine
(docs/findings.md), a fourth of that without one; what goes beyond has another cause."""
PAIRS_LEAST = 5
STEPS_LEAST = 50
"""Chosen: the kernel counts its time in ticks of 10 ms, so a few samples say nothing; and the first
steps touch all memory for the first time."""
PAGE_BYTES = 4096
"""The smallest that there are: growth then explains rather more faults than fewer."""


@dataclass(frozen=True, slots=True)
class NewPages:
    """Memory that a process got anew from the kernel while it trained, a step."""

    rank: int
    faults: float  # minor ones: pages that were not there, and needed no disk; but for growth
    kernel_ms: float  # of all threads, for whatever

    @property
    def most_ms(self) -> float:
        """What the pages can have cost, of the time of all threads."""
        return min(self.kernel_ms, FAULT_MOST_MS * self.faults)


@dataclass(frozen=True, slots=True)
class Facts:
    """What findings about the host rest on, beside the losses."""

    accounts: tuple[Account, ...]
    usable_cpus: float | None
    cpu_percent: float | None
    cpu_pressure_percent: float | None  # the mean of PSI some avg10
    memory_pressure_percent: float | None  # its maximum
    torch_threads: int | None
    ranks_on_node: int
    major_faults_per_step: float | None  # of the rank that has most
    faulting_rank: int
    new_pages: NewPages | None  # of the rank that they cost most
    graph_breaks: Event | None


def facts_of(view: RunView) -> Facts:
    """The facts of a run; what no rank knows is None."""
    hosts = [sample for rank in view.ranks for sample in rank.spool.host_samples]
    usable = [s.usable_cpus for s in hosts if s.usable_cpus is not None]
    faults = [(found, rank.rank) for rank in view.ranks if (found := _faults(rank)) is not None]
    threads = [
        number
        for rank in view.ranks
        for event in rank.spool.events
        if event.name == THREADS_EVENT and isinstance(number := event.detail.get("torch"), int)
    ]
    breaks = [e for rank in view.ranks for e in rank.spool.events if e.name == GRAPH_BREAKS_EVENT]
    worst = max(faults, default=(None, 0))
    pages = [own for rank in view.ranks if (own := _new_pages(rank)) is not None]
    return Facts(
        accounts=tuple(a for rank in view.ranks if (a := account_of(rank)) is not None),
        usable_cpus=min(usable, default=None),
        cpu_percent=mean([s.cpu_percent for s in hosts if s.cpu_percent is not None]),
        cpu_pressure_percent=mean(
            [s.pressure_cpu_percent for s in hosts if s.pressure_cpu_percent is not None]
        ),
        memory_pressure_percent=max(
            (s.pressure_memory_percent for s in hosts if s.pressure_memory_percent is not None),
            default=None,
        ),
        torch_threads=max(threads, default=None),
        ranks_on_node=max(rank.spool.header.identity.local_world_size for rank in view.ranks),
        major_faults_per_step=worst[0],
        faulting_rank=worst[1],
        new_pages=max(pages, key=lambda own: own.most_ms, default=None),
        graph_breaks=breaks[-1] if breaks else None,
    )


def account_of(rank: RankView) -> Account | None:
    """The sums of a rank; None where nothing was read."""
    records = [record for record in rank.spool.sched if record.duration_ns]
    if not records:
        return None
    probes = sum(sum(record.probes) for record in records)
    waited = sum(sum(record.probe_wait_ns) for record in records)
    return Account(
        rank=rank.rank,
        source=records[-1].source,
        wall_ns=sum(sum(record.duration_ns) for record in records),
        run_ns=sum(sum(record.run_ns) for record in records),
        delay_ns=_sum([record.delay_ns for record in records]),
        throttled_ns=_sum([record.throttled_ns for record in records]),
        others_run_ns=sum(sum(record.others_run_ns) for record in records),
        busiest=next((r.busiest for r in reversed(records) if r.busiest is not None), None),
        probe_wait_ns=waited / probes if probes else None,
    )


def _sum(columns: Sequence[list[int] | None]) -> int | None:
    known = [sum(column) for column in columns if column is not None]
    return sum(known) if len(known) == len(columns) else None


def _new_pages(rank: RankView) -> NewPages | None:
    """The medians of what passed between two samples, so that an evaluation, a checkpoint and the
    end of the run do not count. None with a device, which goes on meanwhile."""
    samples = [
        (s.step, s.minor_faults, s.kernel_ns, s.rss_bytes or 0)
        for s in rank.spool.process_samples
        if s.step and s.minor_faults is not None and s.kernel_ns is not None and not s.devices
    ]
    faults, kernel_ms, counted = [], [], 0
    for (step, missed, kernel, rss), (*after, grown) in pairwise(samples):
        steps = after[0] - step
        if steps > 0:
            counted += steps
            faults.append((after[1] - missed - max(0, grown - rss) / PAGE_BYTES) / steps)
            kernel_ms.append((after[2] - kernel) / steps / 1e6)
    if len(faults) < PAIRS_LEAST or counted < STEPS_LEAST or rank.spool.device_batches:
        return None
    return NewPages(rank.rank, max(0.0, median(faults) or 0.0), max(0.0, median(kernel_ms) or 0.0))


def _faults(rank: RankView) -> float | None:
    """Major page faults a step between the first and the last sample."""
    known = [s for s in rank.spool.process_samples if s.major_faults is not None and s.step]
    if len(known) < 2 or known[-1].step <= known[0].step:
        return None
    grown = (known[-1].major_faults or 0) - (known[0].major_faults or 0)
    return max(0, grown) / (known[-1].step - known[0].step)
