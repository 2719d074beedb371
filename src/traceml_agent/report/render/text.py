"""The summary as text: the verdict first, then the figures it rests on.

At most 40 lines of 90 columns, so that a prefix fits beside them in a terminal of 100.
"""

import textwrap
from typing import Any

from traceml_agent.errors import TracemlError
from traceml_agent.report.diagnose.causes import is_of_logging
from traceml_agent.report.render.attempts import attempt_lines
from traceml_agent.report.render.communication import communication_text
from traceml_agent.report.render.frameworks import framework_lines
from traceml_agent.report.render.ranks import rank_table
from traceml_agent.report.render.saving import saving_text
from traceml_agent.report.render.scopes import scope_texts
from traceml_agent.report.render.snapshots import snapshots_text
from traceml_agent.report.render.throughput import throughput_text
from traceml_agent.report.render.units import milliseconds, percent, seconds, size
from traceml_agent.report.render.where import where_lines
from traceml_agent.schema.phases import PHASES

WIDTH = 90
MOST_LINES = 40
TEXT_LIMIT = 2000
"""Characters of a message that are looked at: more than fit on the lines it may take."""
SEVERITY_WORDS = {"crit": "critical", "warn": "warning", "info": "info"}
_LABELS = {"input_wait": "input wait", "h2d": "copy to device", "eval": "eval (no grad)"}
_OFTEN_ZERO = ("h2d", "eval", "checkpoint", "compile", "logging")
"""Left out where they took nothing."""
_GPU_LINES = 4
_FINDING_LINES = 3
_STALL_LINES = 5
_PLACES_TOLD = 2  # in the line above
_PROBLEM_LINES = 2
_ATTEMPT_LINES = 3
_COMMUNICATION_LINES = 3
_SCOPE_LINES = 2
_SNAPSHOT_LINES = 2


def render_text(payload: dict[str, Any], *, ascii_only: bool = False) -> str:
    """The text of a summary payload; `ascii_only` for a stream that takes nothing else."""
    lines = [
        *_verdict(payload),
        *_stall(payload),
        "",
        *_step_table(payload),
        *rank_table(payload["step_time"]),
        *_where(payload),
        *_scopes(payload),
        *_wrapped("", throughput_text(payload)),
        *_frameworks(payload),
        *_communication(payload),
        *_resources(payload),
        *_other_findings(payload),
        *_snapshots(payload),
        *_attempts(payload),
        *_wall_time(payload),
        *_not_measured(payload),
        *_overhead(payload),
    ]
    where = _run(payload)
    lines = lines[: MOST_LINES - len(where)] + where
    text = "\n".join(_printable(line)[:WIDTH].rstrip() for line in lines)
    if ascii_only:
        text = text.replace("·", "|").replace("…", "~").encode("ascii", "replace").decode()
    return text


def render_stored(payload: dict[str, Any], *, ascii_only: bool = False) -> str:
    """The text of a summary that was read from a file. Raises TracemlError if it is damaged."""
    try:
        return render_text(payload, ascii_only=ascii_only)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise TracemlError(
            f"the summary is damaged ({type(error).__name__}: {error}); remove final_summary.json, "
            "and the next `traceml-agent view` makes it anew from the spools"
        ) from None


def _printable(line: str) -> str:
    """The line without what would move the cursor: messages of programs may hold anything."""
    return line if line.isprintable() else "".join(c if c.isprintable() else " " for c in line)


def _wrapped(label: str, text: str) -> list[str]:
    return textwrap.wrap(
        f"{label}{text[:TEXT_LIMIT]}",
        WIDTH,
        subsequent_indent=" " * len(label),
        break_on_hyphens=False,
    )


def _verdict(payload: dict[str, Any]) -> list[str]:
    primary = payload["primary_diagnosis"]
    status = payload["run_context"]["run"]["status"]
    lines = [f"{primary['status']} ({SEVERITY_WORDS[primary['severity']]})"]
    lines += _wrapped("Why:  ", primary["summary"])
    lines += _wrapped("Next: ", primary["action"])
    lines += _gain(payload)
    if status != "finished":
        lines += _wrapped("Run:  ", _how_it_ended(payload, status))
    return lines


def _gain(payload: dict[str, Any]) -> list[str]:
    """What fixing it would save; absent in summaries of older versions."""
    wanted = payload["primary_diagnosis"].get("finding")
    for finding in payload["findings"]:
        if wanted is not None and finding.get("id") == wanted and finding.get("saving"):
            return _wrapped("Gain: ", saving_text(finding["saving"]))[:2]
    return []


def _stall(payload: dict[str, Any]) -> list[str]:
    """Where the ranks stand while no step is closed; absent in summaries of older versions."""
    lasting = [found for found in payload.get("hangs", ()) if not found["ended"]]
    if not lasting:
        return []
    is_told = lasting[0]["kind"] == payload["primary_diagnosis"]["kind"]
    if is_told and len(lasting[0]["places"]) <= _PLACES_TOLD:
        return []
    places = lasting[0]["places"]
    lines: list[str] = []
    for place in places[:_STALL_LINES]:
        who = f"rank{'s' if place['count'] > 1 else ''} {place['ranks']}: "
        who = who if len(places) > 1 else ""
        lines.append(f"{'      ' if lines else 'At:   '}{who}{place['at']}")
    if len(places) > _STALL_LINES:
        lines.append(f"      and {len(places) - _STALL_LINES} more places")
    return lines


def _how_it_ended(payload: dict[str, Any], status: str) -> str:
    for rank, how in payload["run_context"]["exit"].items():
        if how["status"] == status:
            text = f"rank {rank} {status}" if len(payload["run_context"]["exit"]) > 1 else status
            if how["exit_code"] is not None:
                text += f" with exit code {how['exit_code']}"
            if how["exception"]:
                text += f": {how['exception'].splitlines()[0]}"
            return f"{text} (last step {how['last_step']})"
    return status


def _step_table(payload: dict[str, Any]) -> list[str]:
    section = payload["step_time"]
    window = section["global"]["window"]
    if not window["steps_analyzed"]:
        return ["No step was closed."]
    average = section["global"]["average"]
    clock = "device clock" if window.get("diagnosis_clock") == "gpu" else "host clock"
    title = f"Steps {window['start_step']}-{window['end_step']} · {clock}"
    if section["warmup_steps"]:
        title += f" · {section['warmup_steps']} warm-up cut"
    lines = [f"{title:<42}{'average':>12}{'p50':>12}{'p95':>12}{'share':>8}"]
    step_ms = average["step_time_ms"]
    for name in ("step_time", *PHASES, "residual"):
        value = average.get(f"{name}_ms")  # absent in summaries of older versions
        if value is None or (value == 0 and name in _OFTEN_ZERO):
            continue
        spread = section["distribution"].get(name, {})
        share = percent(100 * value / step_ms) if step_ms else "-"
        label = _LABELS.get(name, name.replace("step_time", "step"))
        indent = "" if name == "step_time" else "  "
        lines.append(
            f"{indent + label:<42}{milliseconds(value):>12}"
            f"{milliseconds(spread.get('p50')):>12}{milliseconds(spread.get('p95')):>12}{share:>8}"
        )
    return lines


def _where(payload: dict[str, Any]) -> list[str]:
    label = "Where         "
    return [f"{' ' * len(label) if i else label}{t}" for i, t in enumerate(where_lines(payload))]


def _scopes(payload: dict[str, Any]) -> list[str]:
    found = scope_texts(payload)
    return [line for label, text in found for line in _wrapped(label, text)[:_SCOPE_LINES]]


def _frameworks(payload: dict[str, Any]) -> list[str]:
    found = framework_lines(payload)
    return [line for text in found for line in _wrapped("Framework     ", text)[:2]]


def _communication(payload: dict[str, Any]) -> list[str]:
    label = "Communication "
    lines = []
    for text in communication_text(payload):
        lines += _wrapped(label, text)[:_COMMUNICATION_LINES]
        label = " " * len(label)
    return lines


def _snapshots(payload: dict[str, Any]) -> list[str]:
    text = snapshots_text(payload)
    return [] if text is None else _wrapped("Snapshots     ", text)[:_SNAPSHOT_LINES]


def _resources(payload: dict[str, Any]) -> list[str]:
    process, system = payload["process"], payload["system"]
    lines = []
    peak: dict[str, Any] = next(iter(process["peak"].values()), {})
    average = process["global"]["average"]
    if average["ram_bytes"] is not None:
        text = f"Memory        RSS {size(average['ram_bytes'])} average"
        text += f", {size(peak['ram_bytes'])} peak"
        if peak.get("gpu_mem_allocated_bytes") is not None:
            text += (
                f"; CUDA {size(peak['gpu_mem_allocated_bytes'])} allocated, "
                f"{size(peak['gpu_mem_reserved_bytes'])} reserved at peak"
            )
        lines.append(text)
    host = next(iter(system["host"].values()), None)
    if host is not None:
        cpu = system["global"]["average"]["cpu_percent"]
        own = average["cpu_percent"]
        parts = []
        if own is not None:
            parts.append(f"process {percent(own)} of a core")
        if cpu is not None:
            parts.append(f"all {host['cpu_count']} cores {percent(cpu)} busy")
        if host["usable_cpus"] is not None and host["usable_cpus"] < (host["cpu_count"] or 0):
            parts.append(f"{host['usable_cpus']:g} usable")
        if host["memory_peak_percent"] is not None:
            total = size(host["memory_total_bytes"])
            parts.append(f"memory {percent(host['memory_peak_percent'])} of {total}")
        if host["throttled_s"]:
            parts.append(f"throttled {seconds(host['throttled_s'])}")
        if parts:
            lines.append(f"Host          {', '.join(parts)}")
    for gpu in system["gpus"][:_GPU_LINES]:
        lines.append(
            f"GPU {gpu['index']:<9} {percent(gpu['util_percent'])} busy, memory "
            f"{percent(gpu['memory_percent'])} of {size(gpu['memory_total_bytes'])}, "
            f"{_plain(gpu['power_w'], 'W')}, {_plain(gpu['temperature_c'], 'C')}"
        )
    if len(system["gpus"]) > _GPU_LINES:
        lines.append(f"              and {len(system['gpus']) - _GPU_LINES} more GPUs")
    return lines


def _plain(value: float | None, unit: str) -> str:
    return f"- {unit}" if value is None else f"{value:.0f} {unit}"


def _other_findings(payload: dict[str, Any]) -> list[str]:
    """Warnings beside the verdict."""
    primary = payload["primary_diagnosis"]
    behind, cause = primary.get("finding"), primary["evidence"].get("cause")
    has_cost = any(found["kind"] == "LOGGING_COST" for found in payload["findings"])
    others = [
        found
        for found in payload["findings"]
        if (found.get("id") != behind if behind else found["kind"] != primary["kind"])
        and found["kind"] != cause
        and not (has_cost and is_of_logging(found))  # which says it
    ]
    lines = []
    for finding in others[:_FINDING_LINES]:
        lines += _wrapped("Also          ", f"{finding['status']}: {finding['summary']}")[:2]
    return lines


def _attempts(payload: dict[str, Any]) -> list[str]:
    return [
        line
        for label, text in attempt_lines(payload["ledger"])
        for line in _wrapped(label, text)[:_ATTEMPT_LINES]
    ]


def _wall_time(payload: dict[str, Any]) -> list[str]:
    entry = payload["ledger"]["ranks"][0]
    parts = sorted(entry["parts"].items(), key=lambda item: -item[1]["seconds"])
    shown = [
        f"{name} {seconds(part['seconds'])} ({percent(part['percent'])})"
        for name, part in parts
        if part["percent"] is not None and part["percent"] >= 0.05
    ]
    return _wrapped("Wall time     ", f"{seconds(entry['wall_s'])} = {' + '.join(shown)}")


def _not_measured(payload: dict[str, Any]) -> list[str]:
    section, about = payload["step_time"], payload["traceml_agent"]
    reasons = []
    patches = about["patches"]
    for name, status in patches.items():
        if status not in ("active", "left to the program"):
            reasons.append(f"{name}: {status}")
    if section["global"]["window"].get("diagnosis_clock") != "gpu":
        cuda = payload["provenance"]["cuda"]
        reasons.append(
            "device time: " + ("events not resolved for every step" if cuda else "no CUDA in torch")
        )
    if section["throughput"]["samples_per_s"] is None and section["throughput"]["steps_per_s"]:
        reasons.append("samples: batch size not seen")
    lines = _wrapped("Not measured  ", "; ".join(reasons))[:4] if reasons else []
    dropped = about["dropped"]
    if dropped.get("thinned_steps"):
        lines.append(
            f"Thinned       {dropped['thinned_steps']:,} old steps are kept as exact sums only"
        )
    if dropped.get("rested_steps"):
        text = (
            f"{dropped['rested_steps']:,} of the short steps were only counted and timed, or seen "
            "for a line; phases as in the others (TRACEML_MAX_OVERHEAD=0 looks into all)"
        )
        lines += _wrapped("Sampled       ", text)[:2]
    kept = ("thinned_steps", "rested_steps")
    lost = {name: count for name, count in dropped.items() if name not in kept}
    if lost:
        lines.append(f"Lost          {', '.join(f'{n} {k}' for k, n in lost.items())} not written")
    if about["missing_ranks"]:
        lines.append(f"Missing       ranks {', '.join(map(str, about['missing_ranks'][:20]))}")
    tracers = payload["provenance"].get("tracers")
    if tracers:
        text = f"a tracer was active ({', '.join(tracers)}): times include its cost"
        lines += _wrapped("Note          ", text)[:2]
    for problem in about["problems"][:_PROBLEM_LINES]:
        lines += _wrapped("Note          ", problem)[:2]
    if about["faults"]:
        fault = about["faults"][0]
        lines += _wrapped(
            "Fault         ",
            f"in the agent, {len(about['faults'])} place(s): {fault['where']}: {fault['error']}",
        )[:2]
    return lines


def _overhead(payload: dict[str, Any]) -> list[str]:
    cost = payload["traceml_agent"]["self_overhead"]
    if cost["per_step_us"] is None:
        return []
    return [
        f"Agent         {cost['per_step_us']:.1f} us a step, "
        f"{percent(cost['share_percent'])} of the time in steps"
    ]


def _run(payload: dict[str, Any]) -> list[str]:
    about = payload["traceml_agent"]
    path = about["run_dir"]
    room = WIDTH - len("Run           ")
    shown = path if len(path) <= room else "…" + path[-(room - 1) :]
    return [f"Run           {shown}"]
