"""Jobs of several ranks with known work, written as spools: who waits for whom is computed.

Ranks meet once a step, in backward: each waits there for the last to come. What a rank does after
backward delays its next step, and with it all others, as in a real job.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.report import synthetic_run as made
from traceml_agent.report.fold import fold
from traceml_agent.schema.records import STRATEGY_EVENT, Event

BEFORE = ("input_wait", "h2d", "forward")
PHASES = (*BEFORE, "backward", "optimizer", "eval", "checkpoint")
BACKWARD_MS, OPTIMIZER_MS, RESIDUAL_MS = 8.0, 0.3, 0.2

Extra = Callable[[int, int], dict[str, float]]
"""Rank and step (from 0) -> milliseconds of a phase, or of the residual, on top."""


@dataclass(frozen=True)
class Job:
    """What a job is made of; a step takes 20 ms without noise and extra."""

    ranks: int = 4
    steps: int = 200
    noise: float = 0.0  # standard deviation of a step, as a part of it
    seed: int = 0
    strategy: str | None = "ddp"
    nodes: int = 1
    meets: bool = True
    waits_in: str = "backward"  # or "residual": collectives of the user's own
    barrier: bool = False  # at the end of each step


def write_job(run_dir: Path, job: Job, extra: Extra = lambda rank, step: {}) -> None:
    """The spools of all ranks."""
    noise = random.Random(job.seed)
    begin = [0.0] * job.ranks
    columns: list[dict[str, list[float]]] = [{n: [] for n in PHASES} for _ in range(job.ranks)]
    durations: list[list[float]] = [[] for _ in range(job.ranks)]
    for step in range(job.steps):
        work = [_work(job, noise, extra(rank, step)) for rank in range(job.ranks)]
        came = [b + sum(w[n] for n in BEFORE) for b, w in zip(begin, work, strict=True)]
        ends = [0.0] * job.ranks
        for rank in range(job.ranks):
            last = max(came) if job.meets else came[rank]
            waited = last - came[rank]
            in_backward = waited if job.waits_in == "backward" else 0.0
            for name in PHASES:
                value = work[rank].get(name, 0.0) + (in_backward if name == "backward" else 0.0)
                columns[rank][name].append(value)
            ends[rank] = last + sum(work[rank].get(n, 0.0) for n in (*PHASES[3:], "residual"))
        if job.barrier:
            ends = [max(ends)] * job.ranks
        for rank in range(job.ranks):
            durations[rank].append(ends[rank] - begin[rank])
        begin = ends
    for rank in range(job.ranks):
        batch = made.steps(job.steps, phases={}, durations=durations[rank], **columns[rank])
        made.run_of(run_dir, batch, header=header(job, rank), more=_events(job))


def header(job: Job, rank: int) -> Any:
    """Ranks spread over nodes in blocks."""
    found = made.rank_header(rank, job.ranks)
    node = rank * job.nodes // job.ranks
    identity = replace(found.identity, node_rank=node)
    return replace(found, identity=identity, hostname=f"node-{node}")


def folded(run_dir: Path, job: Job, extra: Extra = lambda rank, step: {}) -> dict[str, Any]:
    """The summary of such a job."""
    write_job(run_dir, job, extra)
    return fold(run_dir).payload


def stragglers(payload: dict[str, Any]) -> list[dict[str, Any]]:
    """The issues that name a rank as the one the others wait for."""
    return [i for i in payload["step_time"]["issues"] if i["kind"].endswith("STRAGGLER")]


def _work(job: Job, noise: random.Random, more: dict[str, float]) -> dict[str, float]:
    work = {
        "input_wait": 0.5,
        "h2d": 0.0,
        "forward": max(0.5, 11.0 + 20.0 * noise.gauss(0, job.noise)),
        "backward": BACKWARD_MS,
        "optimizer": OPTIMIZER_MS,
        "residual": RESIDUAL_MS,
    }
    for name, value in more.items():
        work[name] = work.get(name, 0.0) + value
    return work


def _events(job: Job) -> list[Event]:
    if job.strategy is None:
        return []
    return [Event(STRATEGY_EVENT, made.FIRST_STEP_NS, None, 1, {"strategy": job.strategy})]
