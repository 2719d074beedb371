"""Section system: the hosts and their GPUs, one row a node."""

from typing import Any

from traceml_agent.report.diagnose.gpu import facts_of_gpu
from traceml_agent.report.diagnose.system import NodeFigures, diagnose
from traceml_agent.report.sections.shape import (
    Row,
    Window,
    identity_of,
    metadata,
    sample_window,
    sampled_s,
    section,
)
from traceml_agent.report.stats import mean
from traceml_agent.report.view import RankView, RunView
from traceml_agent.schema.records import GpuSample, HostSample
from traceml_agent.schema.summary import SYSTEM_METRICS


def build(view: RunView, window: Window) -> dict[str, Any]:
    """The section; averages over all samples of the run, and one line a GPU in `gpus`."""
    speakers = _speakers(view)
    figures = [_figures(node, rank, _pids_beside(view, rank)) for node, rank in speakers.items()]
    samples = sum(len(rank.spool.host_samples) for rank in speakers.values())
    gpus = [gpu for figure in figures for gpu in figure.gpus]
    issues = diagnose(figures, samples)
    seen = len(speakers)
    expected = max(seen, _expected_nodes(view))
    return section(
        meta=metadata(
            view,
            window,
            SYSTEM_METRICS,
            samples,
            duration_s=sampled_s(
                speakers.values(), lambda rank: [s.monotonic_ns for s in rank.spool.host_samples]
            ),
            nodes_expected=expected,
            nodes_observed=seen,
            nodes_coverage=f"{seen}/{expected}",
            nodes_partial=seen < expected,
            gpus_observed=len(gpus),
        ),
        issues=issues,
        index_by="node_rank",
        window=sample_window(samples),
        names=SYSTEM_METRICS,
        rows={
            str(figure.node): Row(identity_of(speakers[figure.node]), figure.metrics)
            for figure in figures
        },
        units={"memory": "bytes", "temperature": "C", "power": "W", "util": "%"},
        card=[f"System | samples {samples}", f"- {issues[0].kind}: {issues[0].summary}"],
        extra={"gpus": gpus, "host": {str(f.node): f.host for f in figures}},
    )


def _expected_nodes(view: RunView) -> int:
    identity = view.ranks[0].spool.header.identity
    return max(1, -(-identity.world_size // max(1, identity.local_world_size)))


def _speakers(view: RunView) -> dict[int, RankView]:
    """The rank of each node that sampled its host."""
    found = {
        rank.spool.header.identity.node_rank: rank
        for rank in reversed(view.ranks)
        if rank.spool.host_samples or rank.spool.gpu_samples
    }
    return dict(sorted(found.items()))


def _pids_beside(view: RunView, speaker: RankView) -> frozenset[int]:
    """The processes of this run on the machine of a rank."""
    host = speaker.spool.header.hostname
    headers = [rank.spool.header for rank in view.ranks]
    return frozenset(header.pid for header in headers if header.hostname == host)


def _figures(node: int, rank: RankView, own_pids: frozenset[int]) -> NodeFigures:
    hosts = rank.spool.host_samples
    by_device: dict[int, list[GpuSample]] = {}
    for sample in rank.spool.gpu_samples:
        by_device.setdefault(sample.index, []).append(sample)
    facts = {index: facts_of_gpu(samples, own_pids) for index, samples in by_device.items()}
    gpus = [
        {**_gpu(node, samples), **facts[index].to_json()} for index, samples in by_device.items()
    ]
    used = mean([s.memory_used_bytes for s in hosts if s.memory_used_bytes is not None])
    total = next((s.memory_total_bytes for s in hosts if s.memory_total_bytes), None)
    metrics: dict[str, float | int | None] = {
        "cpu_percent": mean([s.cpu_percent for s in hosts if s.cpu_percent is not None]),
        "ram_bytes": used,
        "ram_percent": None if used is None or not total else 100 * used / total,
        "gpu_util_percent": _over(gpus, "util_percent"),
        "gpu_mem_bytes": _over(gpus, "memory_used_bytes"),
        "gpu_mem_percent": _over(gpus, "memory_percent"),
        "gpu_temp_c": _over(gpus, "temperature_c"),
        "gpu_power_w": _over(gpus, "power_w"),
        "gpu_headroom_bytes": min(
            (g["headroom_bytes"] for g in gpus if g["headroom_bytes"] is not None), default=None
        ),
    }
    return NodeFigures(node, metrics, _host(hosts), gpus, facts)


def _host(hosts: list[HostSample]) -> dict[str, float | int | None]:
    last = hosts[-1] if hosts else None
    first = hosts[0] if hosts else None
    throttled = None
    if last is not None and first is not None and last.throttled_ns is not None:
        throttled = max(0, last.throttled_ns - (first.throttled_ns or 0)) / 1e9
    used = [s.memory_used_bytes for s in hosts if s.memory_used_bytes is not None]
    total = None if last is None else last.memory_total_bytes
    return {
        "cpu_count": None if last is None else last.cpu_count,
        "usable_cpus": None if last is None else last.usable_cpus,
        "memory_total_bytes": total,
        "memory_limit_bytes": None if last is None else last.memory_limit_bytes,
        "memory_peak_percent": 100 * max(used) / total if used and total else None,
        "throttled_s": throttled,
    }


def _gpu(node: int, samples: list[GpuSample]) -> dict[str, Any]:
    def average(name: str) -> float | None:
        return mean([v for s in samples if (v := getattr(s, name)) is not None])

    def peak(name: str) -> float | None:
        return max((v for s in samples if (v := getattr(s, name)) is not None), default=None)

    total, used = peak("memory_total_bytes"), peak("memory_used_bytes")
    reasons: dict[str, str] = {}
    for sample in samples:
        reasons.update(sample.reasons)
    return {
        "node_rank": node,
        "index": samples[0].index,
        "name": next((s.name for s in samples if s.name), None),
        "util_percent": average("util_percent"),
        "memory_used_bytes": average("memory_used_bytes"),
        "memory_percent": 100 * used / total if used is not None and total else None,
        "memory_total_bytes": total,
        "headroom_bytes": max(0, total - used) if used is not None and total else None,
        "temperature_c": average("temperature_c"),
        "peak_temperature_c": peak("temperature_c"),
        "power_w": average("power_w"),
        "power_limit_w": peak("power_limit_w"),
        "samples": len(samples),
        "not_measured": reasons,
    }


def _over(gpus: list[dict[str, Any]], name: str) -> float | None:
    return mean([gpu[name] for gpu in gpus if gpu[name] is not None])
