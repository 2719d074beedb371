"""A run as the rows of tables, spool by spool: what `traceml-agent export` writes.

Names and units are those of the records (docs/spool-format.md). None is "not measured".
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import orjson

from traceml_agent.errors import NoSpools
from traceml_agent.report.parts import one_line, paths_without_copies
from traceml_agent.report.series import is_measured
from traceml_agent.report.stats import differences, sum_columns
from traceml_agent.schema.phases import PHASES
from traceml_agent.schema.records import (
    DeviceMemory,
    GpuSample,
    HostSample,
    ProcessSample,
    Steps,
)
from traceml_agent.spool.digested import read_spool
from traceml_agent.spool.reader import NotASpool, Spool

_WHO = {"run_id": "text", "rank": "int", "attempt": "int", "node_rank": "int", "hostname": "text"}
_WHEN = {"monotonic_ns": "int", "wall_ns": "int"}
_PHASES = {f"{name}_ns": "int" for name in PHASES}
_SAMPLES: dict[str, type] = {
    "process": ProcessSample,
    "device": DeviceMemory,
    "host": HostSample,
    "gpu": GpuSample,
}
_NOT_A_FIGURE = frozenset({"monotonic_ns", "step", "devices"})


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one table. A column that is missing is null in all of them."""

    table: str
    count: int
    constants: Mapping[str, Any]  # the same in every row
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)


def _type_of(hint: Any) -> str:
    """The type of a column that holds a field: int, float, text, ints or json."""
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    if hint == list[int]:
        return "ints"
    return {int: "int", float: "float", str: "text"}.get(hint, "json")


def _figures(kind: str) -> dict[str, tuple[str, str]]:
    """Column of each field of a kind of sample: the field and its type."""
    found = {}
    for name, hint in get_type_hints(_SAMPLES[kind]).items():
        if name != "kind" and name not in _NOT_A_FIGURE:
            type_name = _type_of(hint)
            column = f"{kind}_{name}_json" if type_name == "json" else f"{kind}_{name}"
            found[column] = (name, type_name)
    return found


_FIGURES = {kind: _figures(kind) for kind in _SAMPLES}

TABLES: dict[str, dict[str, str]] = {
    "steps": {
        **_WHO,
        "step": "int",
        "start_ns": "int",
        "start_wall_ns": "int",
        "duration_ns": "int",
        **_PHASES,
        "residual_ns": "int",
        "d2h_ns": "int",
        "device_duration_ns": "int",
        **{f"device_{name}": type_name for name, type_name in _PHASES.items()},
        "micro_batches": "int",
        "samples": "int",
        "updates": "int",
    },
    "step_sums": {
        **_WHO,
        "first_step": "int",
        "count": "int",
        "start_ns": "int",
        "start_wall_ns": "int",
        "duration_ns": "int",
        **_PHASES,
        "d2h_ns": "int",
        "micro_batches": "int",
        "samples": "int",
        "updates": "int",
        "shared_ns": "int",
    },
    "samples": {
        **_WHO,
        **_WHEN,
        "kind": "text",
        "step": "int",
        **{name: kind[1] for figures in _FIGURES.values() for name, kind in figures.items()},
    },
    "events": {
        **_WHO,
        **_WHEN,
        "name": "text",
        "step": "int",
        "duration_ns": "int",
        "detail_json": "text",
    },
    "findings": {
        "run_id": "text",
        "is_primary": "flag",
        "section": "text",
        "kind": "text",
        "severity": "text",
        "summary": "text",
        "action": "text",
        "metric": "text",
        "phase": "text",
        "score": "float",
        "share_pct": "float",
        "skew_pct": "float",
        "ranks": "ints",
        "evidence_json": "text",
    },
    "spools": {
        **_WHO,
        "file": "text",
        "file_bytes": "int",
        "world_size": "int",
        "local_rank": "int",
        "launcher": "text",
        "job_id": "text",
        "pid": "int",
        "process_start_wall_ns": "int",
        "agent_version": "text",
        "python_version": "text",
        "torch_version": "text",
        "end_status": "text",
        "end_wall_ns": "int",
        "exit_code": "int",
        "patches_json": "text",
        "problems": "texts",
    },
}
"""The columns of each table, and what each holds."""


def spools_of(parts: Sequence[Path], problems: list[str]) -> Iterator[Spool]:
    """Each spool of a run, one in memory at a time; files that are none are named in `problems`.

    In the order of one directory, each process once. Raises NoSpools, and NewerSchema: a part
    would look like the whole.
    """
    found = 0
    for path in paths_without_copies(parts):
        try:
            spool = read_spool(path, whole=True)
        except (NotASpool, OSError) as error:
            problems.append(one_line(str(error)))
            continue
        found += 1
        yield spool
        del spool  # before the next one is read
    if not found:
        hint = f" ({problems[0]})" if problems else ""
        where = ", ".join(str(part) for part in parts)
        raise NoSpools(f"no readable spool in {where}{hint}; is it the directory of a run?")


def rows_of(spool: Spool) -> Iterator[Rows]:
    """All rows of a spool, by table."""
    header = spool.header
    who = {
        "run_id": header.run_id,
        "rank": header.identity.rank,
        "attempt": header.identity.attempt,
        "node_rank": header.identity.node_rank,
        "hostname": header.hostname,
    }
    to_wall_ns = header.wall_ns - header.monotonic_ns
    yield _about(spool, who, to_wall_ns)
    if spool.batches:
        yield _steps(spool, who, to_wall_ns)
    yield from _sums(spool, who, to_wall_ns)
    yield from _samples(spool, who, to_wall_ns)
    if spool.events:
        times = [event.monotonic_ns for event in spool.events]
        yield Rows(
            "events",
            len(times),
            who,
            {
                **_when(times, to_wall_ns),
                "name": [event.name for event in spool.events],
                "step": [event.step for event in spool.events],
                "duration_ns": [event.duration_ns for event in spool.events],
                "detail_json": [_json(event.detail) for event in spool.events],
            },
        )


def finding_rows(payload: dict[str, Any], run_id: str) -> Rows:
    """The verdict and the findings of a summary."""
    found = [{**payload["primary_diagnosis"], "is_primary": True}]
    found += [{**finding, "is_primary": False} for finding in payload["findings"]]
    columns = {
        name: [finding.get(name) for finding in found]
        for name in TABLES["findings"]
        if name not in ("run_id", "evidence_json")
    }
    columns["evidence_json"] = [_json(finding.get("evidence", {})) for finding in found]
    return Rows("findings", len(found), {"run_id": run_id}, columns)


def _about(spool: Spool, who: dict[str, Any], to_wall_ns: int) -> Rows:
    header, end = spool.header, spool.end
    facts = {
        "file": one_line(spool.path.name),
        "file_bytes": spool.size,
        "world_size": header.identity.world_size,
        "local_rank": header.identity.local_rank,
        "launcher": header.identity.launcher,
        "job_id": header.identity.job_id,
        "pid": header.pid,
        "process_start_wall_ns": header.process_start_ns + to_wall_ns,
        "agent_version": header.agent_version,
        "python_version": header.python_version,
        "torch_version": header.torch_version,
        "end_status": None if end is None else end.status,
        "end_wall_ns": None if end is None else end.monotonic_ns + to_wall_ns,
        "exit_code": None if end is None else end.exit_code,
        "patches_json": _json(spool.statuses),
        "problems": [one_line(problem) for problem in spool.problems],
    }
    return Rows("spools", 1, who, {name: [value] for name, value in facts.items()})


def _steps(spool: Spool, who: dict[str, Any], to_wall_ns: int) -> Rows:
    batches = sorted(spool.batches, key=lambda batch: batch.first_step)
    starts: list[int] = []
    for batch in batches:
        at_ns = batch.start_ns
        for duration_ns in batch.duration_ns:
            starts.append(at_ns)
            at_ns += duration_ns
    columns: dict[str, Sequence[Any]] = {
        "step": [n for b in batches for n in range(b.first_step, b.first_step + b.count)],
        "start_ns": starts,
        "start_wall_ns": [at_ns + to_wall_ns for at_ns in starts],
        "duration_ns": [ns for batch in batches for ns in batch.duration_ns],
        "d2h_ns": [ns for b in batches for ns in (b.d2h_ns or [0] * b.count)],
        "micro_batches": [n for b in batches for n in _spread(b.micro_batches, b.count)],
        "samples": [n for b in batches for n in _spread(b.samples, b.count)],
        "updates": [n for b in batches for n in _spread(b.updates, b.count)],
    }
    phases = [name for name in PHASES if is_measured(spool, name)]
    for name in phases:
        columns[f"{name}_ns"] = _phase(batches, name)
    if len(phases) == len(PHASES):  # else what is left of a step is the missing phase too
        claimed = sum_columns([columns[f"{name}_ns"] for name in PHASES])
        columns["residual_ns"] = differences(columns["duration_ns"], claimed)
    columns |= _device(spool, phases, columns["step"])
    return Rows("steps", len(starts), who, columns)


def _phase(batches: Sequence[Steps], name: str) -> list[int]:
    return [ns for b in batches for ns in (b.phase_ns.get(name) or [0] * b.count)]


def _spread(column: int | list[int] | None, count: int) -> Sequence[int | None]:
    return column if isinstance(column, list) else [column] * count


def _device(spool: Spool, phases: list[str], steps: Sequence[int]) -> dict[str, list[int | None]]:
    """Device times in the order of `steps`; null where an event did not resolve."""
    if not spool.device_batches:
        return {}
    row_of = {step: row for row, step in enumerate(steps)}
    found: dict[str, list[int | None]] = {
        f"device_{name}_ns": [None] * len(steps) for name in ("duration", *phases)
    }
    for batch in spool.device_batches:
        for offset, duration_ns in enumerate(batch.duration_ns):
            row = row_of.get(batch.first_step + offset)
            if row is None or duration_ns is None:
                continue
            found["device_duration_ns"][row] = duration_ns
            for name in phases:
                column = batch.phase_ns.get(name)
                found[f"device_{name}_ns"][row] = 0 if column is None else column[offset]
    return found


def _sums(spool: Spool, who: dict[str, Any], to_wall_ns: int) -> Iterator[Rows]:
    if not spool.sums:
        return
    plain = ("first_step", "count", "start_ns", "duration_ns", "d2h_ns", "micro_batches",
             "samples", "updates", "shared_ns")  # fmt: skip
    columns: dict[str, list[Any]] = {
        name: [getattr(part, name) for part in spool.sums] for name in plain
    }
    columns["start_wall_ns"] = [part.start_ns + to_wall_ns for part in spool.sums]
    for name in PHASES:
        if is_measured(spool, name):
            columns[f"{name}_ns"] = [part.phase_ns.get(name, 0) for part in spool.sums]
    yield Rows("step_sums", len(spool.sums), who, columns)


def _samples(spool: Spool, who: dict[str, Any], to_wall_ns: int) -> Iterator[Rows]:
    devices = [(s, device) for s in spool.process_samples for device in s.devices or ()]
    found: dict[str, tuple[Sequence[Any], Sequence[Any]]] = {
        "process": (spool.process_samples, spool.process_samples),
        "device": ([sample for sample, _ in devices], [device for _, device in devices]),
        "host": (spool.host_samples, spool.host_samples),
        "gpu": (spool.gpu_samples, spool.gpu_samples),
    }
    for kind, (samples, records) in found.items():
        if not samples:
            continue
        columns: dict[str, Sequence[Any]] = _when([s.monotonic_ns for s in samples], to_wall_ns)
        if kind in ("process", "device"):
            columns["step"] = [sample.step for sample in samples]
        for column, (name, type_name) in _FIGURES[kind].items():
            values = [getattr(record, name) for record in records]
            columns[column] = [_json(v) for v in values] if type_name == "json" else values
        yield Rows("samples", len(samples), {**who, "kind": kind}, columns)


def _when(times_ns: list[int], to_wall_ns: int) -> dict[str, Sequence[Any]]:
    return {"monotonic_ns": times_ns, "wall_ns": [at_ns + to_wall_ns for at_ns in times_ns]}


def _json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()
