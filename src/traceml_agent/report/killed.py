"""What can be said about a process that ended without a trace."""

from collections.abc import Sequence

from traceml_agent.report.render.units import percent, size
from traceml_agent.spool.reader import Spool

SHORTLY_NS = 10_000_000_000
"""Samples count as "shortly before the end" within 10 s. Chosen: ten intervals between samples."""
MACHINE_FULL = 0.95
GROUP_FULL = 0.8
"""Chosen: the resident memory of the ranks leaves out their workers and the buffers of the kernel.
The use of the control group says nothing: it holds the page cache, which is always near the limit.
"""


def why_killed(spool: Spool, spools: Sequence[Spool]) -> str:
    """The cause as far as it is known; memory only where samples of the run speak for it."""
    shortage = _shortage(spool, [other for other in spools if _same_node(other, spool)])
    if shortage is not None:
        return f"ended without a trace, probably out of memory: {shortage} shortly before"
    causes = "SIGKILL (which the kernel sends too when memory runs out), another signal"
    handler = spool.statuses.get("faulthandler")
    if handler == "left to the program":
        causes += ", a crash (the program's own faulthandler or handler got it)"
    elif handler != "active":  # nor is it where a process died before that was written
        causes += ", a crash"
    return f"ended without a trace: {causes}, or power loss"


def _same_node(other: Spool, spool: Spool) -> bool:
    here, there = spool.header, other.header
    return (here.hostname, here.boot_id) == (there.hostname, there.boot_id)


def _shortage(spool: Spool, on_node: Sequence[Spool]) -> str | None:
    end_ns = spool.last_monotonic_ns
    near = [
        sample
        for other in on_node
        for sample in other.host_samples
        if abs(sample.monotonic_ns - end_ns) <= SHORTLY_NS
    ]
    for sample in reversed(near):
        used, total = sample.memory_used_bytes, sample.memory_total_bytes
        if used is not None and total and used >= MACHINE_FULL * total:
            return f"{percent(100 * used / total)} of the {size(total)} of the machine in use"
    limit = near[-1].memory_limit_bytes if near else None
    resident = sum(_last_resident(other, end_ns) for other in on_node)
    if limit and resident >= GROUP_FULL * limit:
        return f"{size(resident)} resident, where the control group allows {size(limit)},"
    return None


def _last_resident(spool: Spool, end_ns: int) -> int:
    """Resident bytes at the last sample up to that time; 0 without one."""
    for sample in reversed(spool.process_samples):
        if sample.monotonic_ns <= end_ns and sample.rss_bytes is not None:
            recent = end_ns - sample.monotonic_ns <= SHORTLY_NS
            return sample.rss_bytes if recent else 0
    return 0
