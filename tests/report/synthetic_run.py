"""Writes runs by hand: spools with known steps, samples and endings."""

import os
from dataclasses import replace
from pathlib import Path

from traceml_agent.schema.records import (
    SPOOL_SCHEMA,
    End,
    Header,
    HostSample,
    Identity,
    Patches,
    ProcessSample,
    Record,
    Steps,
)
from traceml_agent.spool.format import encode, spool_path

MS = 1_000_000
ACTIVE = dict.fromkeys(
    ("dataloader", "transfer", "forward", "backward", "optimizer", "checkpoint"), "active"
)
STEP_MS = {"input_wait": 0.5, "forward": 3.5, "backward": 5.0, "optimizer": 0.8}
"""A step of 10 ms: 0.2 ms are in no phase."""
BORN_NS = 1_000 * MS
FIRST_STEP_NS = 3_000 * MS

HEADER = Header(
    schema=SPOOL_SCHEMA,
    agent_version="0",
    run_id="run-1",
    run_name=None,
    identity=Identity(0, 0, 0, 1, 1, 0, "none"),
    pid=999_999,
    parent_pid=1,
    hostname="elsewhere",
    boot_id="a-boot",
    wall_ns=1_700_000_000_000 * MS,
    monotonic_ns=2_000 * MS,
    process_start_ns=BORN_NS,
    torch_imported_ns=None,
    python_version="3.11",
    torch_version="2.13.0",
    argv=("python",),
    script="train.py",
    ring_path=None,
)


def steps(count, first=1, start_ns=FIRST_STEP_NS, step_ms=10.0, phases=None, **columns):
    """A batch of equal steps; `columns` replaces whole columns, in milliseconds."""
    phase_ns = {n: [round(v * MS)] * count for n, v in (phases or STEP_MS).items()}
    durations = [round(v * MS) for v in columns.pop("durations", [step_ms] * count)]
    for name, values in columns.items():
        phase_ns[name] = [round(v * MS) for v in values]
    return Steps(first, count, start_ns, durations, phase_ns, 1, 32, 1)


def end(batches, status="finished", exit_code=0, at_ns=None, **changes):
    """The last record of a spool with these batches."""
    total = sum(sum(b.duration_ns) for b in batches)
    return replace(
        End(
            monotonic_ns=at_ns or FIRST_STEP_NS + total + 100 * MS,
            status=status,
            exit_code=exit_code,
            exception=None,
            stack=None,
            steps=sum(b.count for b in batches),
            duration_ns=total,
            phase_ns={},
            micro_batches=sum(b.count for b in batches),
            samples=None,
            updates=sum(b.count for b in batches),
        ),
        **changes,
    )


def write_spool(run_dir: Path, records: list[Record], header=HEADER, tail=b"") -> Path:
    """Writes one spool and returns its path."""
    run_dir.mkdir(exist_ok=True, parents=True)
    identity = header.identity
    path = spool_path(run_dir, header.hostname, header.pid, identity.attempt, identity.rank)
    path.write_bytes(b"".join(map(encode, [header, *records])) + tail)
    os.utime(path, (1_700_000_000, 1_700_000_000))  # long silent: its writer is dead
    return path


def run_of(run_dir: Path, *batches: Steps, statuses=ACTIVE, ending=True, more=(), header=HEADER):
    """A whole run of one rank."""
    records = [Patches(2_001 * MS, dict(statuses)), *batches, *more]
    return write_spool(run_dir, records + ([end(batches)] if ending else []), header)


def process_samples(rss_bytes, every_steps=10):
    """One sample every so many steps of 10 ms."""
    return [
        ProcessSample(
            FIRST_STEP_NS + i * every_steps * 10 * MS, 1 + i * every_steps, rss, i * MS, 4
        )
        for i, rss in enumerate(rss_bytes)
    ]


def host_samples(count=3, used=4 * 1024**3):
    """A host of 8 cores and 16 GiB."""
    return [
        HostSample(FIRST_STEP_NS + i * MS, 50.0, 8, 8.0, 16 * 1024**3, used) for i in range(count)
    ]


def rank_header(rank, world_size, **changes):
    """The header of one rank of several on one node."""
    identity = Identity(rank, rank, 0, world_size, world_size, 0, "torchrun")
    return replace(HEADER, identity=identity, pid=HEADER.pid + rank, **changes)
