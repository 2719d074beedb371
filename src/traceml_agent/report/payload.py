"""The payload of a summary: the sections, and what is said about the run as a whole."""

import os
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any

from traceml_agent.report import costing, findings
from traceml_agent.report.costed import LINES
from traceml_agent.report.diagnose.causes import explained as explained_residual
from traceml_agent.report.diagnose.communication import explained
from traceml_agent.report.diagnose.input_pipeline import explained as explained_input
from traceml_agent.report.diagnose.primary import primary_diagnosis
from traceml_agent.report.next_limit import with_next_limit
from traceml_agent.report.parts import one_line
from traceml_agent.report.sections import (
    causes,
    communication,
    frameworks,
    goodput,
    hangs,
    hotspots,
    input_pipeline,
    ledger,
    process,
    run,
    scopes,
    snapshots,
    step_memory,
    step_time,
    system,
)
from traceml_agent.report.sections.ranks import compare
from traceml_agent.report.sections.shape import Window, mode_of, nodes_of, wall_s
from traceml_agent.report.view import RankView, RunView
from traceml_agent.schema.records import FACT_EVENTS
from traceml_agent.schema.summary import FORMAT_VERSION, SUMMARY_SCHEMA
from traceml_agent.version import __version__

EVENTS_LIMIT = 200
"""Events listed one by one in the summary; their number by name is exact."""
_EVENT_FIELDS = ("rank", "name", "step", "duration_ms")


def payload_of(view: RunView) -> dict[str, Any]:
    """All of final_summary.json but its text."""
    window = step_time.analysis_window(view)
    compared = compare(view, window, step_time.is_on_device(view))
    sections = {
        "system": system.build(view, window),
        "process": process.build(view, window),
        "step_time": step_time.build(view, window, compared),
        "step_memory": step_memory.build(view, window),
    }
    lines = hotspots.build(view, window)
    sections["step_time"] = hotspots.with_lines(sections["step_time"], lines)
    primary = primary_diagnosis(sections["step_time"], sections["system"], sections["step_memory"])
    talk = communication.build(view, window)
    read = causes.read_causes(view, window)
    lost = causes.with_site(causes.build(view, window, read), view)
    primary = explained(primary, talk, sections["step_time"]["global"]["average"])
    loaders = input_pipeline.build(view, window)
    tensors = snapshots.build(view)
    losses = [loss for found in read for loss in found.losses]
    costing.fill(view, window, compared, losses, [*sections.values(), talk, lost, loaders])
    primary = explained_input(primary, loaders["issues"])
    primary = explained_residual(primary, lost["issues"])
    typical = sections["step_time"].get("distribution") or {}
    primary = with_next_limit(primary, typical, loaders["loaders"])
    sums = {id(rank.spool): rank.sums for rank in view.ranks}
    parts = {
        id(life.spool): ledger.parts_of(life.spool, sums.get(id(life.spool)))
        for attempt in view.members.attempts
        for life in attempt.lives.values()
    }
    ledgers = [ledger.build(rank, parts[id(rank.spool)]) for rank in view.ranks]
    whole = goodput.build(view.members.attempts, parts, view.attempt_statuses)
    issues = [{"section": "run", **issue.to_json()} for issue in run.issues_of(view, whole)] + [
        {"section": name, **issue}
        for name, built in {
            **sections,
            "communication": talk,
            "input_pipeline": loaders,
            "causes": lost,
            snapshots.SECTION: tensors or {"issues": []},
        }.items()
        for issue in built["issues"]
        if issue["severity"] != "info" or issue["kind"] in LINES
    ]
    stalls = hangs.build(view, view.attempt_statuses[-1], max(entry["wall_s"] for entry in ledgers))
    primary = stalls.primary or primary
    issues += [{"section": hangs.SECTION, **i} for i in stalls.issues if i["severity"] != "info"]
    found = findings.ranked(issues)
    primary["finding"] = findings.behind(primary, found)
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
        "causes": lost,
        "text": "",
        "traceml_agent": _about(view),
        "ledger": {"ranks": ledgers, "attempts": whole.attempts, "goodput": whole.goodput},
        "clocks": run.clocks(view),
        "findings": found,
        "hangs": stalls.listed,
        "hotspots": hotspots.listed(lines),
        "input_pipeline": loaders,
        "snapshots": tensors,
        "events": _events(view),
        "provenance": _provenance(view),
        "metrics": {},
        "scopes": scopes.build(view, [entry["wall_s"] for entry in ledgers]),
        "marks": scopes.marks(view),
    }


def _run_context(view: RunView) -> dict[str, Any]:
    identity = view.ranks[0].spool.header.identity
    local = max(rank.spool.header.identity.local_world_size for rank in view.ranks)
    return {
        "run": {"status": view.attempt_statuses[-1], "profile": "run"},
        "execution": {
            "expected_nodes": max(1, -(-view.world_size // max(1, local))),
            "processes_per_node": local,
            "expected_world_size": view.world_size,
            "launcher": identity.launcher,
        },
        "frameworks": frameworks.build(view),
        "exit": {
            str(rank.rank): {
                "status": rank.status,
                "exit_code": rank.exit_code,
                "exception": rank.exception,
                "last_step": rank.series.steps[-1] if rank.series.steps else 0,
                "ended_ts_s": run.ended_ts_s(view, rank),
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
        "attempt": view.attempt,
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
        summed = rank.spool.summed_steps
        rested = sum(part.count for part in rank.spool.sums if part.shared_ns is not None)
        thinned = sum(part.count for part in rank.spool.sums) - summed - rested
        lost = dict(rank.spool.end.dropped) if rank.spool.end is not None else {}
        if thinned:
            lost["thinned_steps"] = thinned
        else:
            lost.pop("thinned_steps", None)  # the digest has them one by one
        if summed:
            lost["summed_steps"] = summed
        if rested:
            lost["rested_steps"] = rested
        lost |= rank.spool.spans.dropped
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
        "patches around them by a measured ratio; plus the CPU time of the sampler threads, over "
        "the time in steps",
    }


def _events(view: RunView) -> dict[str, Any]:
    found = [
        (rank.rank, event)
        for rank in view.ranks
        for event in rank.spool.events
        if event.name not in FACT_EVENTS  # said elsewhere
    ]
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
