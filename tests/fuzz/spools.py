"""Run directories made by the writer and by hand, ways to damage them, and what must still hold.

The damage is shared by hypothesis and by the coverage-guided fuzzer: a run directory travels as one
string of bytes, its files behind each other (`pack`, `unpack`).
"""

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

from tests.report.synthetic_run import (
    ACTIVE,
    FIRST_STEP_NS,
    HEADER,
    MS,
    host_samples,
    process_samples,
    rank_header,
    run_of,
    steps,
)
from traceml_agent.errors import TracemlError
from traceml_agent.report.fold import Summary, fold, fold_and_write, read_summary
from traceml_agent.report.render.text import MOST_LINES, WIDTH, render_text
from traceml_agent.report.runs import is_run_dir, list_runs, summary_payload
from traceml_agent.schema.causes import GcTotals, Sched
from traceml_agent.schema.collectives import (
    Arrivals,
    CollectiveKey,
    Collectives,
    CollectiveSums,
    DdpTimes,
)
from traceml_agent.schema.digests import Covered, Samples, Sketch
from traceml_agent.schema.loaders import Loader, WorkerBatches, WorkerStacks, WorkerSums
from traceml_agent.schema.phases import PHASES
from traceml_agent.schema.records import (
    DeviceMemory,
    DeviceSteps,
    Event,
    Fault,
    GpuSample,
    Outside,
    Overhead,
    Patches,
    ProcessSample,
    Record,
    Steps,
)
from traceml_agent.schema.retained import Retained, RetainedTensors
from traceml_agent.schema.snapshots import EPOCH, Figures, Snapshot, TensorFigures
from traceml_agent.schema.spans import Marks, MarkSums, Passes, Scopes, ScopeSums, Spans
from traceml_agent.schema.stacks import CodeLine, StackRow, Stacks
from traceml_agent.schema.stalls import Operation, ProcessGroup, ProcessGroups, Stall, ThreadStack
from traceml_agent.spool.digest import DigestWriter, packed
from traceml_agent.spool.digested import packed_parts, read_spool
from traceml_agent.spool.format import (
    DIGEST_SUFFIX,
    RING_SUFFIX,
    SPOOL_SUFFIX,
    STACK_SUFFIX,
    encode,
)
from traceml_agent.spool.layout import RECORD_SIZE, pack_step
from traceml_agent.spool.ring import Ring, read_ring, slot_offset
from traceml_agent.spool.writer import SpoolWriter

LONG_AGO_S = 1_700_000_000
"""When all files were written: whoever wrote them no longer lives."""
BATCH = 6
"""Steps in a line of the runs made here: small files are damaged in more ways in the same time."""
SEPARATOR = b"\n\x00=file=\x00\n"
SLOTS = (
    *("a" + SPOOL_SUFFIX, "a" + RING_SUFFIX, "a" + STACK_SUFFIX, "b" + SPOOL_SUFFIX, "b.ring"),
    "a" + DIGEST_SUFFIX,
)
"""The files of a packed run, in their order: two processes."""
KINDS = ("spool", "ring", "stack", "spool", "ring", "digest")

PATCHES = Patches(2_001 * MS, {**ACTIVE, "gpu": "no NVML library"})

Files = tuple[bytes, ...]
"""The content of the files of a run, in the order of SLOTS; empty: not there."""


def pack(files: Files) -> bytes:
    """All files in one."""
    return SEPARATOR.join(files)


def unpack(data: bytes) -> Files:
    """The files again: any bytes are some."""
    parts = data.split(SEPARATOR)[: len(SLOTS)]
    return tuple(parts + [b""] * (len(SLOTS) - len(parts)))


def write(run_dir: Path, files: Files) -> None:
    """Puts the files into a directory."""
    run_dir.mkdir(exist_ok=True)
    padded = (*files, *[b""] * (len(SLOTS) - len(files)))
    for name, content in zip(SLOTS, padded, strict=True):
        path = run_dir / name
        path.unlink(missing_ok=True)
        if content:
            path.write_bytes(content)
            os.utime(path, (LONG_AGO_S, LONG_AGO_S))


def files_of(run_dir: Path) -> Files:
    """The files of a recorded run of one process."""
    (spool,) = run_dir.glob(f"*{SPOOL_SUFFIX}")
    rest = (spool, spool.with_suffix(RING_SUFFIX), spool.with_suffix(STACK_SUFFIX))
    return (*(path.read_bytes() if path.exists() else b"" for path in rest), b"", b"")


# Intact runs


def seeds(scratch: Path) -> dict[str, Files]:
    """Runs as the writer leaves them, by name; `scratch` is a directory to make them in."""
    made = {name: make(scratch / name) for name, make in _SEEDS.items()}
    one, two = made["finished"], made["every_kind"]
    made["two_ranks"] = (one[0], b"", b"", _as_rank(two[0], 1), b"")
    made["digested"] = (two[0], b"", b"", _as_rank(one[0], 1), b"", _digest(scratch, two[0]))
    made["killed"] = (*made["ring_only"][:2], b"", _as_rank(one[0], 1), b"")
    made["crashed"] = (
        one[0].rsplit(b"\n", 2)[0],
        b"",
        b"Fatal Python error: Aborted\n  File",
        b"",
        b"",
    )
    return made


def _digest(scratch: Path, spool: bytes) -> bytes:
    """The digest of a spool, in two parts."""
    path = scratch / "digested.jsonl"
    half = spool.rfind(b"\n", 0, len(spool) // 2) + 1
    path.write_bytes(spool[:half])
    writer = DigestWriter(path.with_suffix(DIGEST_SUFFIX), path, read_spool(path).header)
    writer.update()
    path.write_bytes(spool)
    writer.update()
    assert writer.error is None
    return writer.path.read_bytes()


def _as_rank(spool: bytes, rank: int) -> bytes:
    header = encode(rank_header(rank, 2))
    return header + spool.split(b"\n", 1)[1]


def _steps(first: int) -> Steps:
    return steps(BATCH, first=first, start_ns=FIRST_STEP_NS + (first - 1) * 10 * MS)


def _finished(run_dir: Path) -> Files:
    samples = process_samples([1 << 30, 2 << 30, 3 << 30, 4 << 30, 5 << 30, 6 << 30, 7 << 30])
    run_of(run_dir, steps(24), more=[*samples, *host_samples()])
    return files_of(run_dir)


def _every_kind(run_dir: Path) -> Files:
    batches = [_steps(first) for first in range(1, 25, BATCH)]
    run_of(run_dir, *batches, more=every_kind())
    return files_of(run_dir)


def _thinned(run_dir: Path) -> Files:
    run_dir.mkdir(parents=True)
    writer = SpoolWriter(run_dir / SLOTS[0], 4_000)
    writer.write([HEADER, PATCHES])
    for first in range(1, 121, BATCH):
        writer.write([_steps(first), *host_samples(1)])
    writer.close()
    return files_of(run_dir)


def _ring_only(run_dir: Path) -> Files:
    """The steps are still in the ring, and older ones in the spool."""
    run_dir.mkdir(parents=True)
    writer = SpoolWriter(run_dir / SLOTS[0], 1 << 20)
    writer.write([HEADER, PATCHES, _steps(1)])
    writer.close()
    ring = Ring(run_dir / SLOTS[1], capacity=8)
    for step in range(1, 12):
        start = FIRST_STEP_NS + (step - 1) * 10 * MS
        phases = (MS, 0, 3 * MS, 4 * MS, MS, *[0] * (len(PHASES) - 5))
        row = (step, start, 10 * MS, *phases, 0, 1, 32, 1, step)
        pack_step(ring.buffer, slot_offset(step, 8), *row)
    ring.mark_drained(BATCH)
    ring.close(remove=False)
    return files_of(run_dir)


_SEEDS = {
    "finished": _finished,
    "every_kind": _every_kind,
    "thinned": _thinned,
    "ring_only": _ring_only,
}


def every_kind() -> list[Record]:
    """One record of each kind that `run_of` does not write itself, with each field filled."""
    device = DeviceMemory(0, 1 << 30, 2 << 30, 3 << 30, 4 << 30, 5 << 30, 1)
    column = [9 * MS] * 24
    return [
        DeviceSteps(1, 24, list(column), {name: [MS] * 24 for name in PHASES}),
        Outside(FIRST_STEP_NS, {"eval": 5 * MS, "checkpoint": MS}),
        ProcessSample(
            FIRST_STEP_NS, 1, 1 << 30, MS, 4, minor_faults=9, devices=[device], kernel_ns=MS
        ),
        ProcessSample(
            FIRST_STEP_NS + 500 * MS,
            50,
            2 << 30,
            300 * MS,
            4,
            minor_faults=99_999,
            devices=[device],
            kernel_ns=99 * MS,
        ),
        *host_samples(),
        GpuSample(
            FIRST_STEP_NS,
            0,
            "GPU-1",
            "H200",
            93.5,
            40.0,
            1 << 30,
            2 << 30,
            350.0,
            700.0,
            60.0,
            xids=[79],
        ),
        Collectives(
            [CollectiveKey("all_reduce", "0-abc", 2, "gloo", 1)],
            [0, 0],
            [1, 2],
            [1, 2],
            [FIRST_STEP_NS, FIRST_STEP_NS + 9 * MS],
            [MS, MS],
            [4, None],
            [None, 3],
            [0, 1],
            [CollectiveSums(0, 0, 3, 9, 7, MS, 28)],
            0,
            5_000,
        ),
        Arrivals(
            FIRST_STEP_NS,
            [CollectiveKey("all_reduce", "0-abc", 2, "gloo", 0)],
            [0, 0],
            [1, 2],
            [FIRST_STEP_NS, FIRST_STEP_NS + 9 * MS],
        ),
        DdpTimes(FIRST_STEP_NS, 0, 9, 9, "gloo", 80, 1, MS, 2 * MS, 2 * MS, MS),
        Event("checkpoint", FIRST_STEP_NS, MS, 3, {"call": "torch.save", "at": "train.py:3"}),
        GcTotals(FIRST_STEP_NS, 24, [9, 3, 1], [MS, MS, 3 * MS], 1, 3 * MS, 2, MS),
        Event("gc", FIRST_STEP_NS + 9 * MS, 3 * MS, 1, {"generation": 2, "phase": "forward"}),
        Sched(
            FIRST_STEP_NS,
            "schedstat",
            [50 * MS, 60 * MS],
            [30 * MS, 40 * MS],
            [0, 15 * MS],
            [0, 9 * MS],
            [0, 50 * MS],
            [1, 1],
            [MS, 4 * MS],
            "pump",
        ),
        Event("compile", FIRST_STEP_NS + 20 * MS, MS, 3, {"within": "forward", "id": "0/1"}),
        Event("compiled", FIRST_STEP_NS + 21 * MS, None, 3, {"id": "0/1", "function": "f"}),
        Fault(FIRST_STEP_NS, "gpu", "NVMLError: lost", 2, "Traceback"),
        Overhead(FIRST_STEP_NS, 60, 60_000, MS, MS, 5_000),
        Stall(
            FIRST_STEP_NS + 900 * MS,
            24,
            FIRST_STEP_NS + 240 * MS,
            60 * MS,
            600 * MS,
            "backward",
            "stdin",
            [ThreadStack("MainThread", True, '  File "t.py", line 3, in f', "S", "futex")],
        ),
        ProcessGroups(
            FIRST_STEP_NS + 901 * MS,
            24,
            [ProcessGroup("0", "all", "gloo", [0, 1], 7, [Operation(7, "reduce", "4", False)])],
        ),
        Loader(
            FIRST_STEP_NS,
            0,
            "Images",
            False,
            2,
            "active",
            "train",
            32,
            2,
            True,
            False,
            True,
            "fork",
            2,
            MS,
            2 * MS,
            MS,
            40,
            90 * MS,
            38,
            3,
            12,
            MS,
            80 * MS,
            20 * MS,
            9 * MS,
            [WorkerSums(0, 21, 99 * MS, 9 * MS, 50 * MS, 3 * MS, 2 * MS, 99 * MS, MS, 4096, 1)],
        ),
        WorkerBatches(
            0,
            FIRST_STEP_NS,
            [0, 0],
            [1, 2],
            [0, 1],
            [0, MS],
            [9 * MS, 8 * MS],
            [MS, None],
            [2 * MS, None],
            [0, 30 * MS],
            [9 * MS, None],
        ),
        WorkerStacks(
            FIRST_STEP_NS,
            0,
            7,
            [CodeLine("data.py", 42, "decode", "decode(path)")],
            [StackRow("fetch", [0], 6, 6 * MS, leaf="zlib.py:decompress")],
        ),
        Retained(
            FIRST_STEP_NS + 200 * MS,
            50,
            20,
            200,
            [RetainedTensors("/a/t.py", 7, "kept.append(y)", [8, 3], "float32", 20, 1920, 20)],
            0,
            40 * MS,
        ),
        Snapshot(
            FIRST_STEP_NS + 210 * MS,
            EPOCH,
            1,
            20,
            21,
            [
                TensorFigures(
                    "0.weight",
                    [4, 5],
                    "float32",
                    20,
                    20,
                    20,
                    Figures(-0.5, 1.5, -2.0, 1e-30, 7.5, [1] * 16, 3, 1),
                    Figures(None, None, None, None, None, [0] * 16, 20, 0),
                ),
                TensorFigures(
                    "0.bias",
                    [5],
                    "float32",
                    5,
                    5,
                    21,
                    Figures(0.0, 0.0, 0.0, 0.0, 0.0, [5, *[0] * 15], 0, 0),
                    None,
                    "sparse",
                    True,
                ),
            ],
            2 * MS,
            MS,
            9 * MS,
            {"frozen": 3},
        ),
        Stacks(
            FIRST_STEP_NS + 300 * MS,
            FIRST_STEP_NS,
            24,
            50 * MS,
            9,
            450 * MS,
            [CodeLine("/a/t.py", 3, "f", "x.item()", "y = x.item()", loop=True)],
            [
                StackRow(
                    "residual",
                    [0],
                    5,
                    250 * MS,
                    2,
                    True,
                    "json/encoder.py:encode",
                    "a.py:b",
                    1,
                    50 * MS,
                    0,
                ),
                StackRow("forward", [], 1, 50 * MS),
            ],
            {"backward": 150 * MS},
            {"backward": 3},
        ),
        Spans(
            FIRST_STEP_NS,
            ["epoch", "load"],
            [1, 2, 3],
            [0, 1, 1],
            [0, 1, 1],
            [0, None, "shard-7"],
            [0, MS, 30 * MS],
            [None, 9 * MS, 8 * MS],
            [None, 5 * MS, None],
            [0, 1, None],
            {"1": {"shard": 3, "path": "a.bin"}},
        ),
        Marks(
            ["loss", "best"],
            [2, 2, 0],
            [0, 0, 1],
            [FIRST_STEP_NS + 2 * MS, FIRST_STEP_NS + 3 * MS, FIRST_STEP_NS + 4 * MS],
            [0.5, None, "b"],
            {"1": "nan"},
            [2],
            {"0": {"head": 1}},
        ),
        Passes(
            [0, 1],
            [0, 0],
            [FIRST_STEP_NS, FIRST_STEP_NS + 99 * MS],
            [FIRST_STEP_NS + 98 * MS, None],
            [FIRST_STEP_NS + 97 * MS, FIRST_STEP_NS + 99 * MS],
            [24, 2],
        ),
        Scopes(
            FIRST_STEP_NS + 99 * MS,
            [ScopeSums("epoch", 1, 80 * MS, 80 * MS), ScopeSums("load", 2, 17 * MS, 9 * MS)],
            [MarkSums("best", 1, None, "b"), MarkSums("acc", 3, "epoch", None, "nan")],
            {"spans_not_written": 3},
        ),
        Samples(
            "process",
            2,
            {
                "monotonic_ns": [FIRST_STEP_NS, FIRST_STEP_NS + MS],
                "step": [3, 4],
                "rss_bytes": [1 << 30, None],
                "devices": [
                    [
                        {
                            "device": 0,
                            "allocated_bytes": 1,
                            "reserved_bytes": 2,
                            "max_allocated_bytes": 3,
                            "max_reserved_bytes": 4,
                        }
                    ],
                    None,
                ],
            },
        ),
        Sketch(5, {"810": 4, "700": 1}),
        Covered(400, 3, summed_steps=5, bad_lines={"2": "not JSON"}),
    ]


# Damage

NUMBERS = (
    b"0", b"-1", b"-0", b"1e3", b"0.5", b"1e308", b"-1e308", b"1e999", b"NaN", b"2147483648",
    b"4294967296", b"9007199254740993", b"4611686018427387904", b"9223372036854775807",
    b"-9223372036854775808", b"9223372036854775808", b"18446744073709551615",
    b"18446744073709551616", b"9" * 5000, b"null", b"true", b'"7"', b"[]", b"{}", b"[[1]]",
)  # fmt: skip
LINES = (
    b"",
    b"{}",
    b"[]",
    b"null",
    b'"steps"',
    b'{"kind":"future","value":1}',
    b'{"kind":7}',
    b'{"kind":["steps"]}',
    b'{"time":"2026-01-01","level":"info","message":"foreign JSON"}',
    b"[" * 5000,
    b'{"kind":' * 2000,
    b"\xff\xfe\x00\x00\x80",
    b'{"kind":"end"}',
    b'{"kind":"steps","first_step":1,"count":0,"start_ns":0,"duration_ns":[],"phase_ns":{},'
    b'"micro_batches":1,"samples":null,"updates":1}',
    b'{"kind":"header","schema":"traceml-spool/2"}',
)
SCHEMAS = (
    b"traceml-spool/2",
    b"traceml-spool/999999999999999999999999",
    b"traceml-spool/" + b"9" * 5000,
    b"traceml-spool/-1",
    "traceml-spool/\u00b2".encode(),
    "traceml-spool/\u0661".encode(),
    b"other/1",
    b"",
    b"traceml-spool",
)


def damage(files: Files, random_: random.Random) -> Files:
    """The same files after one accident."""
    present = [i for i, content in enumerate(files) if content] or [0]
    index = random_.choice(present)
    how = random_.choice(_DAMAGE[KINDS[index]])
    return (*files[:index], how(files[index], random_), *files[index + 1 :])


def _truncate(data: bytes, random_: random.Random) -> bytes:
    return data[: random_.randint(0, len(data))]


def _flip(data: bytes, random_: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random_.choice((1, 1, 2, 8, 64))):
        if changed:
            changed[random_.randrange(len(changed))] ^= 1 << random_.randrange(8)
    return bytes(changed)


def _junk(data: bytes, random_: random.Random) -> bytes:
    at = random_.randint(0, len(data))
    length = random_.choice((0, 1, 8, 100))
    return data[:at] + random_.randbytes(random_.choice((1, 7, 128))) + data[at + length :]


def _drop_line(data: bytes, random_: random.Random) -> bytes:
    lines = data.split(b"\n")
    del lines[random_.randrange(len(lines))]
    return b"\n".join(lines)


def _repeat_line(data: bytes, random_: random.Random) -> bytes:
    lines = data.split(b"\n")
    lines.insert(random_.randint(0, len(lines)), random_.choice(lines))
    return b"\n".join(lines)


def _shuffle_lines(data: bytes, random_: random.Random) -> bytes:
    head, *rest = data.split(b"\n")
    random_.shuffle(rest)
    return b"\n".join([head, *rest])


def _splice_lines(data: bytes, random_: random.Random) -> bytes:
    """The end of one line behind the beginning of another."""
    lines = data.split(b"\n")
    a, b = random_.choice(lines), random_.choice(lines)
    spliced = a[: random_.randint(0, len(a))] + b[random_.randint(0, len(b)) :]
    lines[random_.randrange(len(lines))] = spliced
    return b"\n".join(lines)


def _foreign_line(data: bytes, random_: random.Random) -> bytes:
    lines = data.split(b"\n")
    lines.insert(random_.randint(0, len(lines)), random_.choice(LINES))
    return b"\n".join(lines)


def _change_value(data: bytes, random_: random.Random) -> bytes:
    """Another value, of another type or size, somewhere in a record."""

    def change(record: Any) -> bytes | None:
        places = list(_places(record))
        if not places:
            return None
        owner, key = random_.choice(places)
        mark = "\ufffcvalue\ufffc"
        owner[key] = mark
        value = random_.choice(SCHEMAS if key == "schema" else (NUMBERS + LINES[:4]))
        value = b'"' + value + b'"' if key == "schema" else value or b'""'
        return orjson.dumps(record).replace(orjson.dumps(mark), value)

    return _change_record(data, random_, change)


def _change_key(data: bytes, random_: random.Random) -> bytes:
    """Another name for a value."""

    def change(record: Any) -> bytes | None:
        owners = [(owner, key) for owner, key in _places(record) if isinstance(owner, dict)]
        if not owners:
            return None
        owner, key = random_.choice(owners)
        value = owner.pop(key)
        owner[random_.choice(("", "kind", "first_step", "\x1b[2J", "x" * 300))] = value
        return orjson.dumps(record)

    return _change_record(data, random_, change)


def _change_record(
    data: bytes, random_: random.Random, change: Callable[[Any], bytes | None]
) -> bytes:
    lines = data.split(b"\n")
    at = random_.randrange(len(lines))
    try:
        changed = change(orjson.loads(lines[at]))
    except orjson.JSONDecodeError:
        return _flip(data, random_)
    if changed is not None:
        lines[at] = changed
    return b"\n".join(lines)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each place in a JSON value: its owner and key."""
    if not isinstance(value, (dict, list)):
        return
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        yield from _places(value[key])


def _change_integer(data: bytes, random_: random.Random) -> bytes:
    """Another 64-bit integer in a ring: in a record, or in its head."""
    if len(data) < 8:
        return data
    at = random_.randrange(len(data) // 8) * 8
    value = random_.choice((0, 1, -1, 2, 33, 1 << 31, 1 << 62, -(1 << 63), (1 << 63) - 1))
    return data[:at] + value.to_bytes(8, "little", signed=True) + data[at + 8 :]


def _change_step(data: bytes, random_: random.Random) -> bytes:
    """Another number at both ends of a record of a ring."""
    count = (len(data) - 64) // RECORD_SIZE
    if count < 1:
        return data
    at = 64 + random_.randrange(count) * RECORD_SIZE
    value = random_.choice((1, 2, 7, 12, 1 << 40, (1 << 63) - 1, -5))
    number = value.to_bytes(8, "little", signed=True)
    record = data[at : at + RECORD_SIZE]
    return data[:at] + number + record[8:-8] + number + data[at + RECORD_SIZE :]


def _inside(data: bytes, random_: random.Random) -> bytes:
    """One part of a digest damaged as a spool, and packed again."""
    parts = list(packed_parts(data))
    if not parts:
        return _flip(data, random_)
    at = random_.randrange(len(parts))
    parts[at] = random_.choice(_DAMAGE["spool"])(parts[at], random_)
    return b"".join(map(packed, parts))


_BYTES = (_truncate, _flip, _junk)
_DAMAGE = {
    "spool": (
        *_BYTES,
        _drop_line,
        _repeat_line,
        _shuffle_lines,
        _splice_lines,
        _foreign_line,
        *[_change_value] * 8,
        _change_key,
    ),
    "ring": (*_BYTES, *[_change_integer] * 3, *[_change_step] * 2),
    "stack": _BYTES,
    "digest": (*_BYTES, *[_inside] * 8),
}


# What must hold

SIGNED = {
    "change_percent",
    "mean",
    "min",
    "max",
    "slope_ms_per_1000_steps",
    "exit_code",
    "temperature_c",
    "peak_temperature_c",
    "gpu_temp_c",
    "overall_abs_delta_bytes",
    "overall_worst_growth_pct",
    "growth_second_third_bytes",
    "start_ts_s",
    "end_ts_s",
    "analysis_start_ts_s",
    "analysis_end_ts_s",
    "observed_start_ts_s",
    "observed_end_ts_s",
}
"""Numbers of a summary that may be negative: differences, degrees, points in time, weights,
and what a program returned."""


def check_run(run_dir: Path) -> Summary | None:
    """What holds for any files: only errors made on purpose, and figures that can be true."""
    for path in run_dir.glob(f"*{SPOOL_SUFFIX}"):
        check_spool(path)
    for path in run_dir.glob(f"*{RING_SUFFIX}"):
        try:
            rows = read_ring(path)
        except (TracemlError, OSError):
            continue
        assert [row[0] for row in rows] == sorted({row[0] for row in rows})
        assert all(min(row[:3]) >= 0 for row in rows), "a negative number from a ring"
    try:
        summary = fold(run_dir)
    except (TracemlError, OSError):
        return None
    without_time(summary.payload)
    check_payload(summary.payload)
    check_text(summary.text)
    return summary


def check_again(run_dir: Path, summary: Summary | None) -> None:
    """A second fold gives the same bytes, and a terminal without UTF-8 the same lines."""
    if summary is not None:
        assert without_time(fold(run_dir).payload) == without_time(summary.payload)
        plain = render_text(summary.payload, ascii_only=True)
        check_text(plain)
        assert plain.isascii()
        assert len(plain.split("\n")) == len(summary.text.split("\n"))


def check_files(root: Path, run_dir: Path) -> None:
    """The summary that is written is the one that was folded, and lists of runs never fail."""
    try:
        written = fold_and_write(run_dir)
    except (TracemlError, OSError):
        written = None
    if written is not None:
        assert without_time(read_summary(run_dir / "final_summary.json")) == without_time(
            written.payload
        )
        assert summary_payload(run_dir)["text"] == written.text
    assert len(list_runs([root])) == is_run_dir(run_dir)


def check_spool(path: Path) -> None:
    """What a reader gives is of the shape that the format promises."""
    try:
        spool = read_spool(path)
    except (TracemlError, OSError):
        return
    for batch in spool.batches:
        assert batch.first_step >= 1
        assert batch.start_ns >= 0
        for column in (batch.duration_ns, *batch.phase_ns.values()):
            assert len(column) == batch.count >= 1
            assert min(column) >= 0
        for column in (batch.micro_batches, batch.samples, batch.updates, batch.d2h_ns):
            numbers = [column] if isinstance(column, int) else column or [0]
            assert min(numbers) >= 0
            assert len(numbers) in (1, batch.count)
    numbers = [step for b in spool.batches for step in range(b.first_step, b.first_step + b.count)]
    assert len(numbers) == len(set(numbers)), "a step counts twice"
    assert all("\n" not in problem for problem in spool.problems)


def without_time(payload: dict[str, Any]) -> bytes:
    """A summary as it is written, without the time of the fold."""
    return orjson.dumps({**payload, "generated_at": None}, option=orjson.OPT_INDENT_2)


def check_payload(value: Any, where: str = "") -> None:
    """No count, duration or size is negative, and none is infinite or no number."""
    name = where.rpartition(".")[2]
    if isinstance(value, dict):
        for key, item in value.items():
            if not (where == ".events.listed" or key == "detail"):
                check_payload(item, f"{where}.{key}")
    elif isinstance(value, list):
        for item in value:
            check_payload(item, where)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        assert value == value, f"{where} is no number"  # NaN
        assert abs(value) != float("inf"), f"{where} is infinite"
        assert value >= 0 or name in SIGNED, f"{where} is {value}"


def check_text(text: str) -> None:
    """Lines that fit a terminal, and nothing in them that moves its cursor."""
    lines = text.split("\n")
    assert text.splitlines() == lines
    assert len(lines) <= MOST_LINES
    assert max(map(len, lines)) <= WIDTH
    assert all(line.isprintable() for line in lines)
