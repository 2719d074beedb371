"""Section step_memory: peaks of device memory, and of resident memory for runs without one."""

from typing import Any

from traceml_agent.report.diagnose.step_memory import MemoryFigures, diagnose
from traceml_agent.report.sections.shape import (
    Row,
    Window,
    identity_of,
    metadata,
    section,
    step_window,
)
from traceml_agent.report.view import RankView, RunView
from traceml_agent.schema.summary import STEP_MEMORY_METRICS


def build(view: RunView, window: Window) -> dict[str, Any]:
    """The section; peaks are over the run, trends over its samples."""
    limits = _limits(view)
    figures = [_figures(rank, limits.get(rank.spool.header.hostname)) for rank in view.ranks]
    issues = diagnose(figures)
    used = [f for f in figures if f.rss or f.reserved]
    latest = window.end_step
    return section(
        meta=metadata(
            view,
            window,
            STEP_MEMORY_METRICS,
            sum(len(f.rss) for f in figures),
            global_ranks_seen=len(view.ranks),
            global_ranks_used=len(used),
            training_total_steps=latest or 0,
            training_latest_step=latest,
        ),
        issues=issues,
        index_by="global_rank",
        window=step_window(window),
        names=STEP_MEMORY_METRICS,
        rows={
            str(rank.rank): Row(
                identity_of(rank),
                {
                    "peak_allocated_bytes": figure.peak_allocated,
                    "peak_reserved_bytes": figure.peak_reserved,
                    "peak_rss_bytes": max((y for _, y in figure.rss), default=None),
                },
            )
            for rank, figure in zip(view.ranks, figures, strict=True)
            if figure.rss or figure.reserved
        },
        units={"memory": "bytes"},
        card=[f"Step memory | ranks {len(used)}", f"- {issues[0].kind}: {issues[0].summary}"],
    )


def _limits(view: RunView) -> dict[str, int]:
    """Memory that the processes of each machine may have: of the cgroup, or all there is."""
    found = {}
    for rank in view.ranks:
        for sample in rank.spool.host_samples[-1:]:
            known = (sample.memory_limit_bytes, sample.memory_total_bytes)
            limit = min((size for size in known if size), default=None)
            if limit is not None:
                found[rank.spool.header.hostname] = limit
    return found


def _figures(rank: RankView, host_limit: int | None) -> MemoryFigures:
    samples = rank.spool.process_samples
    done = rank.sums
    devices = [d for s in samples for d in s.devices or ()]
    reserved = [(s.step, max(d.reserved_bytes for d in s.devices)) for s in samples if s.devices]
    return MemoryFigures(
        rank=rank.rank,
        rss=[(s.step, s.rss_bytes) for s in samples if s.rss_bytes is not None and s.step > 0],
        reserved=[(step, value) for step, value in reserved if step > 0],
        peak_allocated=max((d.max_allocated_bytes for d in devices), default=None),
        peak_reserved=max((d.max_reserved_bytes for d in devices), default=None),
        kept=tuple(rank.spool.retained),
        workers=[
            (s.step, s.workers_grown_bytes)
            for s in samples
            if s.workers_grown_bytes is not None and s.step > 0
        ],
        datasets=tuple(
            sorted(
                {x.dataset for x in rank.spool.loaders.values() if x.workers and x.role != "eval"}
            )
        ),
        total=max((d.total_bytes or 0 for d in devices), default=0) or None,
        host_limit=host_limit,
        step_s=done.duration_ns / done.count / 1e9 if done is not None else None,
    )
