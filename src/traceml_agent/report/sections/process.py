"""Section process: CPU and memory of each training process."""

from typing import Any

from traceml_agent.report.diagnose.process import ProcessFigures, diagnose
from traceml_agent.report.sections.shape import (
    Row,
    Window,
    identity_of,
    metadata,
    sample_window,
    sampled_s,
    section,
)
from traceml_agent.report.stats import mean
from traceml_agent.report.view import RankView, RunView
from traceml_agent.schema.records import DeviceMemory, ProcessSample
from traceml_agent.schema.summary import PROCESS_METRICS


def build(view: RunView, window: Window) -> dict[str, Any]:
    """The section; averages over all samples of the run."""
    figures = [_figures(rank) for rank in view.ranks]
    samples = sum(len(rank.spool.process_samples) for rank in view.ranks)
    issues = diagnose(figures, samples)
    return section(
        meta=metadata(
            view,
            window,
            PROCESS_METRICS,
            samples,
            duration_s=sampled_s(
                view.ranks, lambda rank: [s.monotonic_ns for s in rank.spool.process_samples]
            ),
            global_ranks_seen=len(view.ranks),
            global_ranks_used=sum(bool(rank.spool.process_samples) for rank in view.ranks),
        ),
        issues=issues,
        index_by="global_rank",
        window=sample_window(samples),
        names=PROCESS_METRICS,
        rows={
            str(rank.rank): Row(identity_of(rank), found.metrics)
            for rank, found in zip(view.ranks, figures, strict=True)
            if rank.spool.process_samples
        },
        units={"memory": "bytes", "cpu": "%"},
        card=[f"Process | samples {samples}", f"- {issues[0].kind}: {issues[0].summary}"],
        extra={"peak": {str(f.rank): f.peak for f in figures}},
    )


def _figures(rank: RankView) -> ProcessFigures:
    samples = rank.spool.process_samples
    memory = _memory_total(rank)
    usable = next((s.usable_cpus for s in rank.spool.host_samples if s.usable_cpus), None)
    rss = [s.rss_bytes for s in samples if s.rss_bytes is not None]
    cpu = cpu_percent(samples)
    devices = [d for s in samples for d in s.devices or ()]
    used, reserved = _mean_of(devices, "allocated_bytes"), _mean_of(devices, "reserved_bytes")
    total = max((d.total_bytes or 0 for d in devices), default=0) or None
    peak_reserved = max((d.max_reserved_bytes for d in devices), default=None)
    mean_rss = mean(rss)
    metrics: dict[str, float | int | None] = {
        "cpu_percent": cpu,
        "cpu_capacity_percent": None if cpu is None or not usable else cpu / usable,
        "ram_bytes": mean_rss,
        "ram_percent": None if mean_rss is None or not memory else 100 * mean_rss / memory,
        "gpu_mem_used_bytes": used,
        "gpu_mem_reserved_bytes": reserved,
        "gpu_mem_reserved_percent": None
        if reserved is None or not total
        else 100 * reserved / total,
        "gpu_mem_headroom_bytes": None
        if peak_reserved is None or not total
        else max(0, total - peak_reserved),
    }
    peak = {
        "ram_bytes": max(rss, default=None),
        "ram_percent": 100 * max(rss) / memory if rss and memory else None,
        "gpu_mem_allocated_bytes": max((d.max_allocated_bytes for d in devices), default=None),
        "gpu_mem_reserved_bytes": peak_reserved,
        "gpu_mem_reserved_percent": 100 * peak_reserved / total
        if peak_reserved and total
        else None,
        "alloc_retries": _alloc_retries(samples),
        "threads": max((s.threads for s in samples if s.threads is not None), default=None),
    }
    return ProcessFigures(rank.rank, metrics, peak)


def cpu_percent(samples: list[ProcessSample]) -> float | None:
    """CPU time between the first and the last sample, 100 for one busy core."""
    known = [s for s in samples if s.cpu_ns is not None]
    if len(known) < 2:
        return None
    first, last = known[0], known[-1]
    wall = last.monotonic_ns - first.monotonic_ns
    used = (last.cpu_ns or 0) - (first.cpu_ns or 0)
    return 100 * used / wall if wall > 0 and used >= 0 else None


def _memory_total(rank: RankView) -> int | None:
    for sample in rank.spool.host_samples:
        total, limit = sample.memory_total_bytes, sample.memory_limit_bytes
        if total is not None:
            return min(total, limit) if limit is not None else total
    return None


def _alloc_retries(samples: list[ProcessSample]) -> int | None:
    """How often torch gave its cached memory back because an allocation failed, in the run."""
    for sample in reversed(samples):
        known = [d.alloc_retries for d in sample.devices or () if d.alloc_retries is not None]
        if known:
            return sum(known)
    return None


def _mean_of(devices: list[DeviceMemory], name: str) -> float | None:
    return mean([getattr(device, name) for device in devices])
