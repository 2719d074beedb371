"""Folds the spools of a run into its summary: a pure function from files to a payload."""

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import orjson

from traceml_agent.errors import NewerSchema, NoRun, TracemlError
from traceml_agent.report.diagnose.communication import explained
from traceml_agent.report.diagnose.primary import primary_diagnosis
from traceml_agent.report.render.text import render_text
from traceml_agent.report.sections import (
    communication,
    ledger,
    process,
    step_memory,
    step_time,
    system,
)
from traceml_agent.report.sections.shape import Window, mode_of, nodes_of, wall_s
from traceml_agent.report.view import RankView, RunView, load_run, one_line
from traceml_agent.schema.summary import FORMAT_VERSION, SUMMARY_JSON, SUMMARY_SCHEMA, SUMMARY_TEXT
from traceml_agent.spool.format import SPOOL_SUFFIX
from traceml_agent.spool.reader import version_of
from traceml_agent.version import __version__

STATUS_ORDER = ("failed", "killed", "terminated", "interrupted", "running", "unknown", "finished")
"""The status of a run is the first of these that any rank has."""
EVENTS_LIMIT = 200
"""Events listed one by one in the summary; their number by name is exact."""
_EVENT_FIELDS = ("rank", "name", "step", "duration_ms")


@dataclass(frozen=True, slots=True)
class Summary:
    """The content of final_summary.json and of final_summary.txt."""

    payload: dict[str, Any]
    text: str


def fold(run_dir: Path, *, own_spool: Path | None = None) -> Summary:
    """The summary of a run, whatever state it is in. Raises NoRun, NoSpools, NewerSchema."""
    view = load_run(run_dir, own_spool=own_spool)
    payload = _payload(view)
    payload["text"] = render_text(payload)
    return Summary(payload, payload["text"])


def fold_and_write(run_dir: Path, *, own_spool: Path | None = None) -> Summary:
    """The same, written into the run directory. Raises OSError too."""
    summary = fold(run_dir, own_spool=own_spool)
    write_whole(run_dir / SUMMARY_JSON, orjson.dumps(summary.payload, option=orjson.OPT_INDENT_2))
    write_whole(run_dir / SUMMARY_TEXT, f"{summary.text}\n".encode())
    return summary


def read_summary(path: Path) -> dict[str, Any]:
    """The payload of an existing final_summary.json. Raises TracemlError and NewerSchema."""
    try:
        payload: dict[str, Any] = orjson.loads(path.read_bytes())
    except OSError as error:
        raise NoRun(f"cannot read {path}: {error.strerror or error}") from None
    except orjson.JSONDecodeError as error:
        raise TracemlError(f"{path} is not JSON ({error}); is it a final_summary.json?") from None
    own = payload.get("traceml_agent") if isinstance(payload, dict) else None
    if not isinstance(own, dict) or not isinstance(own.get("schema"), str):
        raise TracemlError(f"{path} is no summary of this agent: it has no `traceml_agent.schema`")
    version = version_of(own["schema"], SUMMARY_SCHEMA)
    if version is not None and version > int(SUMMARY_SCHEMA.partition("/")[2]):
        raise NewerSchema(f"{path} has schema {own['schema']}; update traceml-agent to read it")
    if version is None or not isinstance(payload.get("primary_diagnosis"), dict):
        raise TracemlError(f"{path} is no summary of this agent (schema {own['schema'][:80]!r})")
    return payload


def is_folded(run_dir: Path) -> bool:
    """Whether the summary of a run is there, final, and made of all that its spools hold.

    By the content of the spools, never by time stamps: clocks jump, and a time stamp is as coarse
    as 10 ms, in which several ranks leave.
    """
    try:
        payload = read_summary(run_dir / SUMMARY_JSON)
        spools = run_dir.glob(f"*{SPOOL_SUFFIX}")
        found = {one_line(path.name): path.stat().st_size for path in spools}
    except (TracemlError, OSError):
        return False
    folded, context = payload["traceml_agent"].get("spools"), payload.get("run_context")
    ranks = context.get("exit") if isinstance(context, dict) else None
    return (
        isinstance(folded, dict)
        and isinstance(ranks, dict)
        and all(folded.get(name) == size for name, size in found.items())
        and all(isinstance(r, dict) and r.get("status") != "running" for r in ranks.values())
    )


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file (0600) so that a reader finds the old content or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _payload(view: RunView) -> dict[str, Any]:
    window = step_time.analysis_window(view)
    sections = {
        "system": system.build(view, window),
        "process": process.build(view, window),
        "step_time": step_time.build(view, window),
        "step_memory": step_memory.build(view, window),
    }
    primary = primary_diagnosis(sections["step_time"], sections["system"], sections["step_memory"])
    ledgers = [ledger.build(rank) for rank in view.ranks]
    talk = communication.build(view, window)
    residual_ms = sections["step_time"]["global"]["average"]["residual_ms"]
    primary = explained(primary, talk, residual_ms)
    issues = [
        {"section": name, **issue}
        for name, built in {**sections, "communication": talk}.items()
        for issue in built["issues"]
        if issue["severity"] != "info"
    ]
    return {
        "schema_version": FORMAT_VERSION,
        "generated_at": datetime.now(timezone.utc).isoformat(),
        "duration_s": max(entry["wall_s"] for entry in ledgers),
        "meta": {
            "run_name": view.run_name or view.run_id,
            "mode": mode_of(view),
            "world_size": view.world_size,
            "nodes_observed": len(nodes_of(view)),
            "gpus_observed": sections["system"]["metadata"]["gpus_observed"],
        },
        "run_context": _run_context(view),
        "analysis_window": _analysis_window(view, window, sections),
        "primary_diagnosis": primary,
        **sections,
        "communication": talk,
        "text": "",
        "traceml_agent": _about(view),
        "ledger": {"ranks": ledgers},
        "findings": issues,
        "hotspots": [],
        "input_pipeline": {},
        "events": _events(view),
        "provenance": _provenance(view),
        "metrics": {},
        "scopes": [],
    }


def run_status(view: RunView) -> str:
    """One word for all ranks: the worst."""
    found = {rank.status for rank in view.ranks}
    return next((status for status in STATUS_ORDER if status in found), "unknown")


def _run_context(view: RunView) -> dict[str, Any]:
    identity = view.ranks[0].spool.header.identity
    local = max(rank.spool.header.identity.local_world_size for rank in view.ranks)
    return {
        "run": {"status": run_status(view), "profile": "run"},
        "execution": {
            "expected_nodes": max(1, -(-view.world_size // max(1, local))),
            "processes_per_node": local,
            "expected_world_size": view.world_size,
            "launcher": identity.launcher,
        },
        "exit": {
            str(rank.rank): {
                "status": rank.status,
                "exit_code": rank.exit_code,
                "exception": rank.exception,
                "last_step": rank.series.steps[-1] if rank.series.steps else 0,
                "stack": rank.stack,
            }
            for rank in view.ranks
        },
    }


def _analysis_window(
    view: RunView, window: Window, sections: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    has_steps = window.start_ts_s is not None and window.end_ts_s is not None
    lead = view.ranks[0]
    times = {
        "system": [s.monotonic_ns for s in lead.spool.host_samples],
        "process": [s.monotonic_ns for s in lead.spool.process_samples],
        "step_memory": [s.monotonic_ns for s in lead.spool.process_samples],
    }
    covered = {
        name: {
            "samples": sections[name]["metadata"]["samples"],
            "observed_start_ts_s": wall_s(lead, found[0]) if found else None,
            "observed_end_ts_s": wall_s(lead, found[-1]) if found else None,
        }
        for name, found in times.items()
    }
    covered["step_time"] = {
        "samples": window.steps_analyzed,
        "observed_start_ts_s": window.start_ts_s,
        "observed_end_ts_s": window.end_ts_s,
    }
    return {
        "anchor": "step_time"
        if has_steps
        else ("periodic_telemetry" if times["process"] else None),
        "retention_s": None,  # the whole run
        "start_ts_s": window.start_ts_s,
        "end_ts_s": window.end_ts_s,
        "duration_s": max(0.0, (window.end_ts_s or 0) - (window.start_ts_s or 0))
        if has_steps
        else None,
        "start_step": window.start_step,
        "end_step": window.end_step,
        "sections": covered,
    }


def _about(view: RunView) -> dict[str, Any]:
    dropped: dict[str, int] = {}
    for rank in view.ranks:
        thinned = sum(part.count for part in rank.spool.sums)
        lost = dict(rank.spool.end.dropped) if rank.spool.end is not None else {}
        if thinned:
            lost["thinned_steps"] = thinned
        for name, count in lost.items():
            dropped[name] = dropped.get(name, 0) + count
    return {
        "schema": SUMMARY_SCHEMA,
        "version": __version__,
        "run_id": view.run_id,
        "run_dir": one_line(str(view.run_dir)),
        "attempt": view.attempt,
        "complete": view.complete,
        "missing_ranks": view.missing_ranks,
        "patches": view.ranks[0].spool.statuses,
        "dropped": dropped,
        "faults": [
            {"rank": rank.rank, "where": fault.where, "error": fault.error, "count": fault.count}
            for rank in view.ranks
            for fault in {f.where: f for f in rank.spool.faults}.values()
        ],
        "problems": view.problems,
        "spools": view.spool_bytes,
        "self_overhead": _overhead(view.ranks[0]),
    }


def _overhead(rank: RankView) -> dict[str, Any]:
    """The agent's own cost, in microseconds a step and percent of the time in steps."""
    cost = rank.spool.overhead
    steps_ns = sum(rank.series.duration_ns) + sum(s.duration_ns for s in rank.series.sums)
    if cost is None or not cost.steps or cost.hot_path_ns is None or not steps_ns:
        return {"per_step_us": None, "share_percent": None, "thread_cpu_s": None, "method": None}
    total = cost.hot_path_ns + cost.thread_cpu_ns
    return {
        "per_step_us": cost.hot_path_ns / cost.steps / 1e3,
        "share_percent": 100 * total / steps_ns,
        "thread_cpu_s": cost.thread_cpu_ns / 1e9,
        "activate_ms": cost.activate_ns / 1e6,
        "spool_bytes_per_step": cost.spool_bytes / cost.steps,
        "method": "the agent's own methods timed in the training for 50 steps of 1,000, the "
        "patches around them by a measured ratio; plus the CPU time of the sampler thread, over "
        "the time in steps",
    }


def _events(view: RunView) -> dict[str, Any]:
    found = [(rank.rank, event) for rank in view.ranks for event in rank.spool.events]
    counts: dict[str, int] = {}
    for _, event in found:
        counts[event.name] = counts.get(event.name, 0) + 1
    return {
        "counts": counts,
        "listed": [
            {
                "rank": rank,
                "name": event.name,
                "step": event.step,
                "duration_ms": None if event.duration_ns is None else event.duration_ns / 1e6,
                **{k: v for k, v in event.detail.items() if k not in _EVENT_FIELDS},
            }
            for rank, event in found[:EVENTS_LIMIT]
        ],
    }


def _provenance(view: RunView) -> dict[str, Any]:
    header = view.ranks[0].spool.header
    return {
        "python": header.python_version,
        "torch": header.torch_version,
        "cuda": header.cuda_version,
        "script": os.path.basename(header.script) if header.script else None,
        "hostnames": sorted({rank.spool.header.hostname for rank in view.ranks}),
        "other_agents": _names(rank.spool.header.other_agents for rank in view.ranks),
        "tracers": _names(rank.spool.header.tracers for rank in view.ranks),
    }


def _names(of_ranks: Iterable[tuple[str, ...] | None]) -> list[str] | None:
    """What any rank names; None where no rank looked."""
    known = [names for names in of_ranks if names is not None]
    return sorted({name for names in known for name in names}) if known else None
