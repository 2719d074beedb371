"""Section input_pipeline: each DataLoader, what its workers do, and what it is waited for."""

import os
from typing import Any

from traceml_agent.report.diagnose.input_pipeline import diagnose
from traceml_agent.report.loader_figures import (
    Hotspot,
    LoaderFigures,
    Shares,
    fetch_times,
    figures_of,
    shares_of,
    steady_busy,
)
from traceml_agent.report.loader_replay import replay_inputs, training_loader
from traceml_agent.report.sections.shape import Window
from traceml_agent.report.stats import quantile
from traceml_agent.report.view import RankView, RunView
from traceml_agent.schema.loaders import Loader, WorkerSums

MOST_RANKS = 8
"""Ranks whose loaders are listed, those that wait longest. Chosen: a node."""
MOST_WORKERS = 64


def build(view: RunView, window: Window) -> dict[str, Any]:
    """The section; without a DataLoader its lists are empty."""
    by_rank = {rank.rank: figures_of(rank) for rank in view.ranks if rank.spool.loaders}
    training = []
    inputs = {}
    for rank in view.ranks:
        loader = training_loader(rank.spool)
        for found in by_rank.get(rank.rank, ()):
            if loader is not None and found.loader.loader == loader.loader:
                training.append(found)
                inputs[rank.rank] = replay_inputs(rank)
    issues = diagnose(training, inputs, window.steps_analyzed)
    waits = sorted(by_rank, key=lambda rank: -sum(f.loader.wait_ns for f in by_rank[rank]))
    shown = set(waits[:MOST_RANKS])
    return {
        "issues": [issue.to_json() for issue in issues],
        "ranks_left_out": len(by_rank) - len(shown),
        "loaders": [
            _loader(rank, found)
            for rank in view.ranks
            if rank.rank in shown
            for found in by_rank[rank.rank]
        ],
    }


def _loader(rank: RankView, found: LoaderFigures) -> dict[str, Any]:
    loader = found.loader
    known = loader.known or None
    return {
        "rank": rank.rank,
        "loader": loader.loader,
        "role": loader.role,
        "dataset": loader.dataset,
        "kind": "iterable" if loader.iterable else "map",
        "num_workers": loader.workers,
        "prefetch_factor": loader.prefetch,
        "batch_size": loader.batch_size,
        "persistent_workers": loader.persistent,
        "pin_memory": loader.pinned,
        "in_order": loader.in_order,
        "context": loader.context,
        "workers_seen": loader.status,
        "epochs": loader.epochs,
        "start_s": loader.start_ns / 1e9,
        "first_batch_wait_s": loader.first_wait_ns / 1e9,
        "restart_s": loader.restart_ns / 1e9,
        "batches": loader.batches,
        "wait_s": loader.wait_ns / 1e9,
        "wait_share_of_steps": found.of_steps(loader.wait_ns),
        "ready_share": loader.ready / known if known else None,
        "ready_ahead": loader.ready_ahead / known if known else None,
        "made_wait_s": loader.made_wait_ns / 1e9 if known else None,
        "head_of_line_s": loader.behind_ns / 1e9 if known else None,
        "transfer_s": loader.transfer_ns / 1e9 if known else None,
        "ready_wait_ms": loader.ready_wait_ns / loader.ready / 1e6 if loader.ready else None,
        **_fetch(found.fetch_p50_ns, found.fetch_p99_ns),
        **_shares(found.shares),
        "read_bytes": found.read_bytes,
        "major_faults": found.major_faults,
        "workers": [_worker(rank, loader, sums) for sums in (loader.sums or [])[:MOST_WORKERS]],
        "hotspots": [_hotspot(spot) for spot in found.hotspots],
    }


def _worker(rank: RankView, loader: Loader, sums: WorkerSums) -> dict[str, Any]:
    times = sorted(fetch_times(rank, loader.loader, sums.worker))
    busy = steady_busy(rank, loader, sums.worker) if loader.workers else None
    return {
        "worker": sums.worker,
        "batches": sums.batches,
        "failures": sums.failures,
        **_fetch(quantile(times, 0.5), quantile(times, 0.99)),
        **_shares(shares_of([sums], busy)),
    }


def _fetch(middle: float | None, high: float | None) -> dict[str, float | None]:
    return {
        "fetch_p50_ms": None if middle is None else middle / 1e6,
        "fetch_p99_ms": None if high is None else high / 1e6,
    }


def _shares(shares: Shares) -> dict[str, float | None]:
    return {
        "busy_share": shares.busy,
        "collate_share": shares.collate,
        "cpu_share": shares.cpu,
        "waiting_for_core_share": shares.delay,
        "blocked_share": shares.blocked,
        "sending_share": shares.send,
    }


def _hotspot(spot: Hotspot) -> dict[str, Any]:
    line = spot.line
    return {
        "where": os.path.basename(spot.where) if line is not None else spot.where,
        "file": None if line is None else line.file,
        "line": None if line is None else line.line,
        "function": None if line is None else line.function,
        "code": None if line is None else (line.call or line.text),
        "share": spot.share,
        "samples": spot.samples,
    }
