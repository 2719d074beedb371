"""What the host takes: cores that are missing, the interpreter lock, memory that is short."""

from collections.abc import Mapping

from traceml_agent.report.account import Account, Facts
from traceml_agent.report.diagnose.issue import Cost, Issue, band
from traceml_agent.report.diagnose.seen import CRIT, Lost

CORE_WARN = 0.02
"""Of the time in steps. Source: "CPU quota throttle" and "Core contention" of signals.md."""
PRESSURE_PERCENT = 10.0
"""PSI some avg10. Source: the same table; corroboration only."""
LOCK_WAIT_NS = 2_000_000
"""Mean wait of a thread that wakes up for the interpreter lock. Chosen: another thread gives it up
every 5 ms (sys.getswitchinterval), so at 2 ms it is taken nearly half of the time."""
LOCK_SHARE = 0.10
LOCK_WARN = 0.20
"""Of the time: what the training thread can have lost, for a hint and for a warning. Chosen: a
training thread that computes in Python alone lets others wait as long, and beside it the threads
of a loader run for some percent; a thread that never stops reaches half."""
FAULTS_PER_STEP = 1.0
"""Source: the same table."""
PAGES_PUSH_OUT = 2.0
"""Times what the kernel takes. Chosen: pages that it clears push what the program works on out of
the caches; 1.5 was measured (tests/truth, allocation-churn)."""
CHURN_WARN = 0.05
"""Of the step. Chosen: as a line within the model."""


def host_issues(
    losses: Mapping[str, Lost], facts: Facts, steps: int, step_ms: float
) -> list[Issue]:
    """The findings of this file, in no order."""
    found = [
        _throttled(losses.get("throttled"), facts, steps),
        _contention(losses.get("contention"), facts, steps),
        _interpreter_lock(facts, losses, step_ms),
        _memory(facts),
        _allocation_churn(facts, steps, step_ms),
    ]
    return [issue for issue in found if issue is not None]


def _throttled(lost: Lost | None, facts: Facts, steps: int) -> Issue | None:
    severity = None if lost is None else band(lost.share, CORE_WARN, CRIT, steps)
    if lost is None or severity is None:
        return None
    quota = "" if facts.usable_cpus is None else f" of {facts.usable_cpus:g} CPUs"
    return Issue(
        "CPU_THROTTLED",
        severity,
        f"The CPU quota{quota} holds the training thread back for {lost.share:.0%} of the time in "
        f"steps ({lost.ms_per_step:.1f} ms a step).",
        "Give the container more CPUs (Kubernetes: resources.limits.cpu; Slurm: --cpus-per-task), "
        "or use fewer threads and workers than the quota has.",
        metric="throttled",
        score=lost.share,
        share_pct=lost.share,
        ranks=(lost.rank,),
        cost=lost.cost,
        evidence={
            "ms_per_step": lost.ms_per_step,
            "usable_cpus": facts.usable_cpus,
            "torch_threads": facts.torch_threads,
            "threshold_warn": CORE_WARN,
        },
    )


def _contention(lost: Lost | None, facts: Facts, steps: int) -> Issue | None:
    severity = None if lost is None else band(lost.share, CORE_WARN, CRIT, steps)
    if lost is None or severity is None:
        return None
    usable, threads = facts.usable_cpus, facts.torch_threads
    wanted = None if threads is None else threads * facts.ranks_on_node
    evidence = {
        "ms_per_step": lost.ms_per_step,
        "usable_cpus": usable,
        "torch_threads": threads,
        "ranks_on_node": facts.ranks_on_node,
        "cpu_percent": facts.cpu_percent,
        "pressure_cpu_percent": facts.cpu_pressure_percent,
        "threshold_warn": CORE_WARN,
    }
    waits = (
        f"The training thread waits for a core for {lost.share:.0%} of the time in steps "
        f"({lost.ms_per_step:.1f} ms a step)"
    )
    if wanted is not None and usable is not None and wanted > usable:
        each = max(1, int(usable) // facts.ranks_on_node)
        ranks = f" in each of {facts.ranks_on_node} ranks" if facts.ranks_on_node > 1 else ""
        kind = "CPU_OVERSUBSCRIBED"
        summary = f"{waits}: torch computes with {threads} threads{ranks} on {usable:g} CPUs."
        action = f"Set OMP_NUM_THREADS={each}, or torch.set_num_threads({each})."
    else:
        kind = "CPU_CONTENTION"
        busy = "" if facts.cpu_percent is None else f"; the CPUs are {facts.cpu_percent:.0f} % busy"
        summary = f"{waits}{busy}."
        action = (
            "Something else wants the same cores: loader workers, other jobs, other ranks. Use "
            "fewer workers, or give each process cores of its own (taskset, --cpus-per-task)."
        )
    return Issue(
        kind,
        severity,
        summary,
        action,
        metric="contention",
        score=lost.share,
        share_pct=lost.share,
        ranks=(lost.rank,),
        cost=lost.cost,
        evidence=evidence,
    )


def _interpreter_lock(facts: Facts, losses: Mapping[str, Lost], step_ms: float) -> Issue | None:
    known = [(bound, account) for account in facts.accounts if (bound := _at_most(account))]
    if not known:
        return None
    share, account = max(known, key=lambda pair: pair[0])
    waiting = losses.get("input")
    if waiting is not None and waiting.rank == account.rank:
        share -= waiting.share  # then it waits for a batch, and not for the lock
    if share < LOCK_SHARE or (account.probe_wait_ns or 0) < LOCK_WAIT_NS:
        return None
    name = "" if account.busiest is None else f', most of all "{account.busiest}"'
    wait_ms = (account.probe_wait_ns or 0) / 1e6
    return Issue(
        "GIL_CONTENTION",
        "warn" if share >= LOCK_WARN else "info",
        f"Other threads of Python{name} hold the interpreter lock: a thread that wakes up waits "
        f"{wait_ms:.1f} ms for it, and the training thread lost at most {share:.0%} of the time.",
        "Move that work into a process (multiprocessing, DataLoader workers), or into code that "
        "releases the lock (numpy, torch, files).",
        metric="gil",
        score=share,
        share_pct=share,
        ranks=(account.rank,),
        confidence="low",
        cost=Cost(share * step_ms, share, None),
        evidence={
            "lock_wait_ms": wait_ms,
            "other_threads_share": account.others_run_ns / account.wall_ns,
            "blocked_share": (account.blocked_ns or 0) / account.wall_ns,
            "busiest": account.busiest,
            "threshold_ms": LOCK_WAIT_NS / 1e6,
            "threshold_share": LOCK_SHARE,
            "threshold_warn": LOCK_WARN,
        },
    )


def _at_most(account: Account) -> float:
    """What others can have kept the training thread from: it was neither running nor ready while
    they ran."""
    if account.blocked_ns is None:
        return 0.0
    return min(account.blocked_ns, account.others_run_ns) / max(1, account.wall_ns)


def _memory(facts: Facts) -> Issue | None:
    faults, pressure = facts.major_faults_per_step, facts.memory_pressure_percent
    if faults is None or faults < FAULTS_PER_STEP:
        return None
    is_short = pressure is not None and pressure >= PRESSURE_PERCENT
    told = "" if pressure is None else f"; memory pressure reaches {pressure:.0f} %"
    return Issue(
        "MEMORY_PRESSURE" if is_short else "PAGE_FAULTS",
        "warn" if is_short else "info",
        f"{faults:.1f} page faults a step wait for the disk{told}.",
        "Memory is short: use fewer workers, smaller batches, or a larger limit."
        if is_short
        else "Files that are mapped into memory are read for the first time, or swapped: read them "
        "ahead, or keep them in memory.",
        metric="major_faults",
        ranks=(facts.faulting_rank,),
        confidence="medium",
        evidence={
            "major_faults_per_step": faults,
            "pressure_memory_percent": pressure,
            "threshold": FAULTS_PER_STEP,
            "threshold_pressure_percent": PRESSURE_PERCENT,
        },
    )


def _allocation_churn(facts: Facts, steps: int, step_ms: float) -> Issue | None:
    pages = facts.new_pages
    if pages is None or step_ms <= 0:
        return None
    # Threads that compute together wait for the kernel together: it may be so much less.
    least_ms = pages.most_ms / max(1, facts.torch_threads or 1)
    share = min(1.0, least_ms / step_ms)
    severity = band(share, CHURN_WARN, CRIT, steps)
    if severity is None:
        return None
    return Issue(
        "ALLOCATION_CHURN",
        severity,
        f"Memory is given back and got anew in each step: {pages.faults:,.0f} new pages, which "
        f"take the kernel {pages.most_ms:.1f} ms on all threads, at least {share:.0%} of the step.",
        "Have the allocator keep it: MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=34359738368 in the "
        "environment (glibc), or preload jemalloc or tcmalloc; zero_grad(set_to_none=False) keeps "
        "the gradients.",
        metric="new_pages",
        score=share,
        share_pct=share,
        ranks=(pages.rank,),
        confidence="medium",
        cost=Cost(least_ms, share, None),
        evidence={
            "new_pages_per_step": pages.faults,
            "kernel_ms_per_step": pages.kernel_ms,
            "torch_threads": facts.torch_threads,
            "gain_low_ms": least_ms,
            "gain_high_ms": min(PAGES_PUSH_OUT * pages.most_ms, step_ms),
            "threshold_warn": CHURN_WARN,
        },
    )
