"""What a rank needs for a replay of its loader, and what other settings of it would save."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from traceml_agent.report.replay import replay
from traceml_agent.report.stats import median
from traceml_agent.report.view import RankView
from traceml_agent.schema.loaders import Loader, WorkerBatches
from traceml_agent.spool.reader import Spool

LEAST_BATCHES = 20
"""Chosen: fewer are the filling of the pipeline and little else."""
HIDDEN = 0.02
"""Input counts as hidden when all but so much of the step's wait is gone, and one more worker is
not worth naming when it saves less. Chosen: below what a run varies by."""
MOST_WORKERS = 64
PER_CORE = 4
"""Workers for each usable core that are looked at where they mostly wait. Chosen: beyond, memory
and start-up cost more than a batch that waits for a disk."""


@dataclass(frozen=True, slots=True)
class ReplayInputs:
    """Single batches of one loader in the order in which the loop took them."""

    loader: int
    batch_ns: Sequence[int]  # what a worker needed for each
    main_ns: Sequence[int]  # what the loop did after each, until it asked again
    wait_ns: Sequence[int]  # as it was measured
    workers: int
    prefetch: int
    in_order: bool
    floor_ns: float  # mean wait for a batch that was ready


@dataclass(frozen=True, slots=True)
class Change:
    """The mean step with other settings, by the difference of two replays."""

    workers: int
    prefetch: int
    in_order: bool
    saved_ns: float  # of the wait for a batch; never more than what lies above the floor


def training_loader(spool: Spool) -> Loader | None:
    """The loader that feeds the training: the one waited for longest, evaluation aside."""
    loaders = [found for found in spool.loaders.values() if found.role != "eval" and found.batches]
    return max(
        loaders, key=lambda found: (found.role == "train", found.wait_ns, found.batches),
        default=None,
    )  # fmt: skip


def replay_inputs(rank: RankView) -> ReplayInputs | None:
    """The inputs for the training loader of a rank, those of its warm-up left out; None where too
    few batches are known."""
    loader = training_loader(rank.spool)
    if loader is None:
        return None
    rows = [record for record in rank.spool.worker_batches if record.loader == loader.loader]
    series = rank.series
    since_ns = series.start_ns[series.warmup] if series.warmup < len(series.start_ns) else 0
    batch_ns: list[int] = []
    wait_ns: list[int] = []
    main_ns: list[int | None] = []
    for record in rows:
        _add_rows(record, since_ns, batch_ns, wait_ns, main_ns)
    known = [value for value in main_ns if value is not None]
    if len(known) < LEAST_BATCHES:
        return None
    typical = int(median(known) or 0)
    return ReplayInputs(
        loader=loader.loader,
        batch_ns=batch_ns,
        main_ns=[typical if value is None else value for value in main_ns],
        wait_ns=wait_ns,
        workers=loader.workers,
        prefetch=loader.prefetch or 2,
        in_order=loader.in_order,
        floor_ns=loader.ready_wait_ns / loader.ready if loader.ready else 0.0,
    )


def _add_rows(
    record: WorkerBatches,
    since_ns: int,
    batch_ns: list[int],
    wait_ns: list[int],
    main_ns: list[int | None],
) -> None:
    """The rows that were asked for since then. What the loop did before a gap is unknown."""
    count = len(record.batch)
    for i in range(count):
        asked, wait = record.asked_ns[i], record.wait_ns[i]
        if asked is None or wait is None or record.start_ns + asked < since_ns:
            continue
        batch_ns.append(record.fetch_ns[i])
        wait_ns.append(wait)
        own = None
        if i + 1 < count and record.epoch[i + 1] == record.epoch[i]:
            after = record.asked_ns[i + 1]
            follows = abs(record.batch[i + 1] - record.batch[i]) < MOST_WORKERS
            if after is not None and follows and after >= asked + wait:
                own = after - asked - wait
        main_ns.append(own)


def change(
    inputs: ReplayInputs,
    *,
    workers: int | None = None,
    prefetch: int | None = None,
    in_order: bool | None = None,
) -> Change:
    """What these settings would save; those that are not given stay as they are."""
    new = replace(
        inputs,
        workers=inputs.workers if workers is None else workers,
        prefetch=inputs.prefetch if prefetch is None else prefetch,
        in_order=inputs.in_order if in_order is None else in_order,
    )
    ahead = max(1, inputs.workers, new.workers) * max(inputs.prefetch, new.prefetch)
    skipped = min(2 * ahead, len(inputs.batch_ns) // 4)
    saved = mean_step(inputs, skipped) - mean_step(new, skipped)
    waited = sum(inputs.wait_ns) / max(1, len(inputs.wait_ns))
    room = max(0.0, waited - inputs.floor_ns)
    return Change(new.workers, new.prefetch, new.in_order, min(saved, room))


def mean_step(inputs: ReplayInputs, skipped: int = 0) -> float:
    """The mean of all steps but the first ones, in which the pipeline fills."""
    steps = replay(
        inputs.batch_ns, inputs.main_ns, inputs.workers, inputs.prefetch, inputs.in_order
    )
    return sum(steps[skipped:]) / max(1, len(steps) - skipped)


def enough_workers(
    inputs: ReplayInputs, usable_cpus: float | None, cpu_share: float | None
) -> Change | None:
    """The fewest workers beyond which nothing is gained; None if more of them save nothing.

    `cpu_share`: of the time for a batch, what a worker spends on a core. All of them and the
    training itself must fit on the usable cores.
    """
    limit = MOST_WORKERS
    if usable_cpus is not None:
        share = max(1 / PER_CORE, cpu_share if cpu_share is not None else 1.0)
        limit = min(limit, max(1, int((usable_cpus - share * 0.5) / share)))
    step = (sum(inputs.main_ns) + sum(inputs.wait_ns)) / max(1, len(inputs.wait_ns))
    best: Change | None = None
    for workers in range(max(1, inputs.workers), limit + 1):
        found = change(inputs, workers=workers)
        if found.saved_ns > (best.saved_ns if best else 0.0) + HIDDEN * step:
            best = found
        elif best is not None and workers >= best.workers + 2:
            break
    return best
