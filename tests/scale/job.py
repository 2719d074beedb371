"""The timing of a job that never ran: what each rank does in each step, from a seed.

Ranks train in step, as under DDP: the backward pass of each ends when the slowest one has arrived.
So a slow rank shows where the time is lost, and all the others wait for it in `backward`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

MS = 1_000_000
Column = NDArray[np.int64]

SHARES = {"input_wait": 0.05, "h2d": 0.02, "forward": 0.30, "backward": 0.55, "optimizer": 0.06}
"""Parts of a step before anybody waits. The rest is the residual."""
RESIDUAL_SHARE = 1 - sum(SHARES.values())
CHECKPOINT_MS = 200.0


@dataclass(frozen=True, slots=True)
class Straggler:
    """A rank that needs so much longer in a phase, in every step."""

    rank: int
    phase: str
    ms: float


@dataclass(frozen=True, slots=True)
class Job:
    """What happens. The same job gives the same files, and a rank the same work in a larger job."""

    ranks: int = 8
    steps: int = 500  # over all attempts
    ranks_per_node: int = 8
    step_ms: float = 100.0
    noise: float = 0.05  # standard deviation of each phase of each step, as a share of it
    seed: int = 0
    stragglers: tuple[Straggler, ...] = ()
    dead: tuple[tuple[int, int], ...] = ()  # (rank, last step) in the last attempt
    torn: tuple[int, ...] = ()  # ranks that are killed while they write their last line
    restarts: tuple[int, ...] = ()  # every rank is killed after this step of the job
    is_synchronous: bool = True
    checkpoint_every: int = 0
    on_device: bool = False  # a CUDA job: device times of the steps, samples of the GPUs
    flush_ms: float = 500.0
    has_digests: bool = False  # as ranks of a real job have them
    spool_max_mb: float = 256.0
    clock_ahead_s: tuple[tuple[int, float], ...] = ()  # (node rank, seconds)

    @property
    def nodes(self) -> int:
        return -(-self.ranks // self.ranks_per_node)


def attempt_steps(job: Job) -> list[int]:
    """How many steps each attempt closes."""
    marks = [0, *sorted(step for step in job.restarts if 0 < step < job.steps), job.steps]
    return [after - before for before, after in pairwise(marks)]


def last_step(job: Job, attempt: int, rank: int) -> int:
    """The last step that a rank closes in an attempt."""
    steps = attempt_steps(job)
    if attempt == len(steps) - 1:
        return min([steps[-1], *(step for dead, step in job.dead if dead == rank)])
    return steps[attempt]


def own_work(job: Job, attempt: int, rank: int) -> dict[str, Column]:
    """Nanoseconds of each phase, and of the residual, without any waiting for other ranks."""
    count = last_step(job, attempt, rank)
    generator = np.random.default_rng([job.seed, attempt, rank])
    parts = {**SHARES, "residual": RESIDUAL_SHARE}
    # Lognormal: never negative, with a mean of 1.
    factors = generator.lognormal(-(job.noise**2) / 2, job.noise, (len(parts), count))
    work = {
        name: np.rint(factors[row] * (share * job.step_ms * MS)).astype(np.int64)
        for row, (name, share) in enumerate(parts.items())
    }
    for straggler in job.stragglers:
        if straggler.rank == rank:
            work[straggler.phase] = work.get(straggler.phase, 0) + round(straggler.ms * MS)
    if job.checkpoint_every:
        saves = np.zeros(count, dtype=np.int64)
        saves[job.checkpoint_every - 1 :: job.checkpoint_every] = round(CHECKPOINT_MS * MS)
        work["checkpoint"] = saves
    return work


def arrival(work: dict[str, Column]) -> Column:
    """Time from the end of the last backward pass to the end of this one, without waiting."""
    after = work["optimizer"] + work["residual"] + work.get("checkpoint", 0)
    before = sum(work[name] for name in ("input_wait", "h2d", "forward", "backward"))
    total = np.asarray(before, dtype=np.int64).copy()
    total[1:] += after[:-1]
    return total


def slowest(job: Job, attempt: int) -> Column:
    """The same of the slowest rank, in each step of an attempt: what all of them wait for."""
    most = np.zeros(attempt_steps(job)[attempt], dtype=np.int64)
    for rank in range(job.ranks):
        own = arrival(own_work(job, attempt, rank))
        np.maximum(most[: len(own)], own, out=most[: len(own)])
    return most


def steps_of(job: Job, attempt: int) -> Iterator[tuple[int, dict[str, Column]]]:
    """Each rank of an attempt with its columns as they are measured, waiting included."""
    most = slowest(job, attempt) if job.is_synchronous else None
    for rank in range(job.ranks):
        work = own_work(job, attempt, rank)
        if most is not None:
            work["backward"] = work["backward"] + most[: len(work["backward"])] - arrival(work)
        yield rank, work


def what_it_costs_ns(job: Job) -> int:
    """The time that a synchronous job would save in all steps if no rank were a straggler."""
    healthy = replace(job, stragglers=())
    return sum(
        int(slowest(job, attempt).sum() - slowest(healthy, attempt).sum())
        for attempt in range(len(attempt_steps(job)))
    )
