"""Writes the run directory of a job of any size with the agent's own spool writer.

`python tests/scale/simulate.py DIR --ranks 64 --straggler 17:input_wait:20` writes what 64 ranks
would have left, were rank 17 to wait 20 ms longer for its data; `traceml-agent view DIR` folds it.
8,192 ranks of 500 steps take about a minute.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.scale.job import (
    CHECKPOINT_MS,
    MS,
    Column,
    Job,
    Straggler,
    attempt_steps,
    last_step,
    steps_of,
)
from traceml_agent.schema.records import (
    SPOOL_SCHEMA,
    DeviceMemory,
    DeviceSteps,
    End,
    Event,
    GpuSample,
    Header,
    HostSample,
    Identity,
    Patches,
    ProcessSample,
    Record,
    Steps,
)
from traceml_agent.spool.digest import DigestWriter
from traceml_agent.spool.format import DIGEST_SUFFIX, spool_path
from traceml_agent.spool.writer import SpoolWriter

GIB = 1024**3
STARTED_WALL_NS = 1_700_000_000 * 1_000 * MS
STARTUP_NS = 8_000 * MS
RESTART_GAP_NS = 30_000 * MS
SAMPLE_NS = 1_000 * MS
DIGEST_NS = 30_000 * MS
LINES_A_WRITE = 256  # the agent writes a few at a time; the content is the same
STATUSES = ("dataloader", "transfer", "forward", "backward", "optimizer", "checkpoint", "process")


def write_job(job: Job, run_dir: Path) -> Path:
    """Writes all spools of a job into a new directory, which must not exist."""
    run_dir.mkdir(parents=True, mode=0o700)
    began_ns = 0  # of an attempt, on a clock that all nodes agree on
    for attempt in range(len(attempt_steps(job))):
        ended_ns = began_ns
        for rank, work in steps_of(job, attempt):
            ended_ns = max(ended_ns, _write_rank(job, attempt, rank, work, run_dir, began_ns))
        began_ns = ended_ns + RESTART_GAP_NS
    return run_dir


def _write_rank(
    job: Job, attempt: int, rank: int, work: dict[str, Column], run_dir: Path, began_ns: int
) -> int:
    """Writes one spool; returns the end of its last step on the common clock."""
    header = header_of(job, attempt, rank, run_dir.name, began_ns)
    path = spool_path(run_dir, header.hostname, header.pid, attempt, rank)
    writer = SpoolWriter(path, int(job.spool_max_mb * 1e6))
    start_ns = header.process_start_ns + STARTUP_NS
    residual = work.pop("residual")
    duration = _sum(work) + residual
    pending: list[Record] = [header, Patches(header.monotonic_ns, _statuses(job))]
    digest = DigestWriter(path.with_suffix(DIGEST_SUFFIX), path, header)
    writer.digest = digest if job.has_digests else None
    digest_ns = start_ns + DIGEST_NS
    for record in _records(job, rank, work, duration, start_ns):
        pending.append(record)
        if len(pending) >= LINES_A_WRITE or getattr(record, "start_ns", 0) >= digest_ns:
            writer.write(pending)
            pending.clear()
        if job.has_digests and getattr(record, "start_ns", 0) >= digest_ns:
            digest_ns += DIGEST_NS
            digest.update()
    total_ns = int(duration.sum())
    is_killed = _is_killed(job, attempt, rank)
    if not is_killed:
        pending.append(_end(work, duration, start_ns + total_ns + 100 * MS))
    writer.write(pending)
    writer.close()
    if job.has_digests and not is_killed:
        digest.update()
    if writer.error is not None:
        raise OSError(writer.error)
    if digest.error is not None:
        raise OSError(digest.error)
    if rank in job.torn and attempt == len(attempt_steps(job)) - 1:
        os.truncate(path, path.stat().st_size - 9)
    ended_ns = began_ns + STARTUP_NS + total_ns
    wall_s = (STARTED_WALL_NS + ended_ns) / 1e9
    os.utime(path, (wall_s, wall_s))  # long silent: its writer is dead
    return ended_ns


def _sum(work: dict[str, Column]) -> Column:
    """The sum of the columns."""
    total = next(iter(work.values())).copy()
    for column in list(work.values())[1:]:
        total += column
    return total


def _is_killed(job: Job, attempt: int, rank: int) -> bool:
    steps = attempt_steps(job)
    return (
        attempt < len(steps) - 1
        or rank in job.torn
        or last_step(job, attempt, rank) < steps[attempt]
    )


def header_of(job: Job, attempt: int, rank: int, run_id: str, began_ns: int) -> Header:
    """The first record of a rank. Each node has a monotonic clock of its own."""
    node, local_rank = divmod(rank, job.ranks_per_node)
    local_size = min(job.ranks_per_node, job.ranks - node * job.ranks_per_node)
    born_ns = began_ns + (1_000 + 37 * node) * 1_000 * MS
    ahead_ns = round(dict(job.clock_ahead_s).get(node, 0.0) * 1e9)
    recorded_ns = 5_000 * MS  # after the birth
    return Header(
        schema=SPOOL_SCHEMA,
        agent_version="0",
        run_id=run_id,
        run_name=None,
        identity=Identity(rank, local_rank, node, job.ranks, local_size, attempt, "torchrun"),
        pid=2_000 + 1_000 * attempt + local_rank,
        parent_pid=1_999 + 1_000 * attempt,
        hostname=f"node{node:04d}",
        boot_id=f"00000000-0000-4000-8000-{node:012d}",
        wall_ns=STARTED_WALL_NS + began_ns + recorded_ns + ahead_ns,
        monotonic_ns=born_ns + recorded_ns,
        process_start_ns=born_ns,
        torch_imported_ns=born_ns + 4_000 * MS,
        python_version="3.11.7",
        torch_version="2.13.0",
        argv=("python",),
        script="/home/user/train.py",
        ring_path=None,
        cuda_version="12.8" if job.on_device else None,
    )


def _statuses(job: Job) -> dict[str, str]:
    active = dict.fromkeys((*STATUSES, "host"), "active")
    return {**active, "gpu": "active" if job.on_device else "no NVIDIA driver on this machine"}


def _records(
    job: Job, rank: int, work: dict[str, Column], duration: Column, start_ns: int
) -> Iterator[Record]:
    """The steps in the batches of the agent's flushes, and what it samples every second."""
    used = {name: column.tolist() for name, column in work.items() if column.any()}
    durations = duration.tolist()
    size = max(1, round(job.flush_ms / job.step_ms))
    next_sample_ns = start_ns
    for at in range(0, len(durations), size):
        part = slice(at, at + size)
        batch = Steps(
            first_step=at + 1,
            count=len(durations[part]),
            start_ns=start_ns,
            duration_ns=durations[part],
            phase_ns={name: c for name, column in used.items() if any(c := column[part])},
            micro_batches=1,
            samples=32,
            updates=1,
        )
        start_ns += sum(batch.duration_ns)
        if start_ns >= next_sample_ns:
            next_sample_ns = max(next_sample_ns + SAMPLE_NS, start_ns)
            yield from _samples(job, rank, start_ns, at + batch.count)
        yield from _checkpoints(batch)
        yield batch
        if job.on_device:
            yield DeviceSteps(
                batch.first_step, batch.count, list(batch.duration_ns), dict(batch.phase_ns)
            )


def _checkpoints(batch: Steps) -> Iterator[Event]:
    start_ns = batch.start_ns
    saves = batch.phase_ns.get("checkpoint", [0] * batch.count)
    for index, (duration_ns, save_ns) in enumerate(zip(batch.duration_ns, saves, strict=True)):
        start_ns += duration_ns
        if save_ns:
            yield Event("checkpoint", start_ns, save_ns, batch.first_step + index,
                        {"call": "torch.save", "bytes": 1 << 20})  # fmt: skip


def _samples(job: Job, rank: int, at_ns: int, step: int) -> Iterator[Record]:
    local_rank = rank % job.ranks_per_node
    memory = [DeviceMemory(local_rank, 20 * GIB, 24 * GIB, 30 * GIB, 32 * GIB, 80 * GIB, 0)]
    yield ProcessSample(
        monotonic_ns=at_ns,
        step=step,
        rss_bytes=2 * GIB + rank * 4096,
        cpu_ns=at_ns // 2,
        threads=9,
        voluntary_switches=step,
        devices=memory if job.on_device else None,
    )
    if local_rank:
        return
    yield HostSample(at_ns, 40.0, 64, 64.0, 512 * GIB, 100 * GIB, load_1m=9.5)
    for index in range(job.ranks_per_node if job.on_device else 0):
        yield GpuSample(
            monotonic_ns=at_ns,
            index=index,
            uuid=f"GPU-{rank // job.ranks_per_node:04d}-{index}",
            name="NVIDIA H200",
            util_percent=90.0,
            memory_used_bytes=33 * GIB,
            memory_total_bytes=80 * GIB,
            power_w=550.0,
            temperature_c=60.0,
            sm_clock_mhz=1700,
        )


def _end(work: dict[str, Column], duration: Column, at_ns: int) -> End:
    count = len(duration)
    return End(
        monotonic_ns=at_ns,
        status="finished",
        exit_code=0,
        exception=None,
        stack=None,
        steps=count,
        duration_ns=int(duration.sum()),
        phase_ns={name: int(column.sum()) for name, column in work.items()},
        micro_batches=count,
        samples=32 * count,
        updates=count,
    )


def _straggler(text: str) -> Straggler:
    rank, phase, ms = text.split(":")
    return Straggler(int(rank), phase, float(ms))


def _pair(text: str) -> tuple[int, int]:
    rank, step = text.split(":")
    return int(rank), int(step)


def _clock(text: str) -> tuple[int, float]:
    node, seconds = text.split(":")
    return int(node), float(seconds)


def parser() -> argparse.ArgumentParser:
    """The command line: one option a field of `Job`."""
    blank = Job()
    found = argparse.ArgumentParser(description=__doc__)
    found.add_argument("directory", type=Path, help="the run directory to be written")
    found.add_argument("--force", action="store_true", help="remove the directory first")
    found.add_argument("--ranks", type=int, default=blank.ranks)
    found.add_argument("--steps", type=int, default=blank.steps, help="over all attempts")
    found.add_argument("--ranks-per-node", type=int, default=blank.ranks_per_node)
    found.add_argument("--step-ms", type=float, default=blank.step_ms)
    found.add_argument("--noise", type=float, default=blank.noise, help="a share: 0.3 is 30 %%")
    found.add_argument("--seed", type=int, default=blank.seed)
    many = {"action": "append", "default": []}
    found.add_argument("--straggler", type=_straggler, metavar="RANK:PHASE:MS", **many)
    found.add_argument("--dead", type=_pair, metavar="RANK:LAST_STEP", **many)
    found.add_argument("--torn", type=int, metavar="RANK", **many)
    found.add_argument("--restart", type=int, metavar="AFTER_STEP", **many)
    found.add_argument("--clock-ahead", type=_clock, metavar="NODE:SECONDS", **many)
    found.add_argument("--alone", action="store_true", help="no rank waits for another")
    found.add_argument("--checkpoint-every", type=int, default=0, metavar="STEPS",
                       help=f"each takes {CHECKPOINT_MS:.0f} ms")  # fmt: skip
    found.add_argument("--digests", action="store_true", help="with a digest a rank")
    found.add_argument("--device", action="store_true", help="a CUDA job")
    found.add_argument("--spool-max-mb", type=float, default=blank.spool_max_mb,
                       help="beyond it old steps are thinned to sums")  # fmt: skip
    return found


def main() -> None:
    arguments = parser().parse_args()
    if arguments.force:
        shutil.rmtree(arguments.directory, ignore_errors=True)
    job = Job(
        ranks=arguments.ranks,
        steps=arguments.steps,
        ranks_per_node=arguments.ranks_per_node,
        step_ms=arguments.step_ms,
        noise=arguments.noise,
        seed=arguments.seed,
        stragglers=tuple(arguments.straggler),
        dead=tuple(arguments.dead),
        torn=tuple(arguments.torn),
        restarts=tuple(arguments.restart),
        is_synchronous=not arguments.alone,
        checkpoint_every=arguments.checkpoint_every,
        on_device=arguments.device,
        has_digests=arguments.digests,
        spool_max_mb=arguments.spool_max_mb,
        clock_ahead_s=tuple(arguments.clock_ahead),
    )
    print(write_job(job, arguments.directory))


if __name__ == "__main__":
    main()
