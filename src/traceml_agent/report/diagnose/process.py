"""What stands out in the training processes: memory, CPU, and how ranks differ."""

from dataclasses import dataclass

from traceml_agent.report.diagnose.issue import Issue, by_severity

HIGH_PERCENT = 80.0
VERY_HIGH_PERCENT = 90.0
"""Peak memory of device and host, and CPU of what is usable. Source: TraceML's process policy."""
OVERHANG_RATIO = 2.0
OVERHANG_LEAST_PERCENT = 30.0
"""Reserved over allocated device memory, where it matters at all. Source: the same."""
IMBALANCE_WARN_PERCENT = 20.0
IMBALANCE_CRIT_PERCENT = 30.0
IMBALANCE_LEAST_PERCENT = 30.0
"""Difference of peak device memory between ranks. Source: the same."""

ALLOC_RETRIES_LEAST = 1
"""Source: signals.md, "Allocator retry": any."""

Figures = dict[str, float | int | None]


@dataclass(frozen=True, slots=True)
class ProcessFigures:
    """Averages (named as in the summary) and peaks of one process."""

    rank: int
    metrics: Figures
    peak: Figures


def diagnose(ranks: list[ProcessFigures], samples: int) -> list[Issue]:
    """The issues of section process, the worst first; never empty."""
    if not samples:
        return [
            Issue(
                "NO_DATA",
                "info",
                "The process was not sampled.",
                "Runs shorter than one sample interval have none; see TRACEML_SAMPLE_INTERVAL_S.",
            )
        ]
    found = [issue for rank in ranks for issue in _of_rank(rank)]
    found += _imbalance(ranks)
    if found:
        return by_severity(found)
    return [
        Issue(
            "NORMAL",
            "info",
            "CPU and memory of the process are within bounds.",
            "Nothing to do.",
            evidence={"samples_used": samples},
        )
    ]


def _of_rank(rank: ProcessFigures) -> list[Issue]:
    found = []
    reserved = rank.peak.get("gpu_mem_reserved_percent")
    if reserved is not None and reserved >= HIGH_PERCENT:
        very = reserved >= VERY_HIGH_PERCENT
        found.append(
            _issue(
                "VERY_HIGH_PROCESS_GPU_MEMORY" if very else "HIGH_PROCESS_GPU_MEMORY",
                "crit" if very else "warn",
                rank,
                "gpu_mem_reserved_percent",
                "gpu_mem_reserved_peak_percent",
                reserved,
                VERY_HIGH_PERCENT if very else HIGH_PERCENT,
                f"Device memory reserved by the process reached {reserved:.0f} %.",
                "Reduce batch size or activations (checkpointing) before the next increase.",
            )
        )
    used, held = rank.metrics.get("gpu_mem_used_bytes"), rank.metrics.get("gpu_mem_reserved_bytes")
    if (
        used
        and held
        and held / used >= OVERHANG_RATIO
        and (reserved or 0) >= OVERHANG_LEAST_PERCENT
    ):
        found.append(
            _issue(
                "GPU_MEMORY_RESERVED_OVERHANG",
                "warn",
                rank,
                "gpu_mem_reserved_bytes",
                "gpu_mem_reserved_overhang_ratio",
                held / used,
                OVERHANG_RATIO,
                f"The allocator reserves {held / used:.1f} times what is allocated.",
                "Fragmentation: try PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True, and avoid "
                "shapes that change from step to step.",
            )
        )
    retries = rank.peak.get("alloc_retries")
    if retries:
        found.append(
            _issue(
                "ALLOCATOR_RETRIES",
                "warn",
                rank,
                "alloc_retries",
                "alloc_retries",
                retries,
                ALLOC_RETRIES_LEAST,
                f"{retries:.0f} times an allocation on the device failed at first: torch waited "
                "for the device and gave its cached memory back.",
                "The device is full: reduce the batch; against fragmentation set "
                "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True.",
            )
        )
    rss = rank.peak.get("ram_percent")
    if rss is not None and rss >= HIGH_PERCENT:
        found.append(
            _issue(
                "HIGH_PROCESS_RSS",
                "warn",
                rank,
                "ram_percent",
                "ram_peak_percent",
                rss,
                HIGH_PERCENT,
                f"Resident memory reached {rss:.0f} % of what the host or its cgroup has.",
                "Load data lazily or share it between workers; an out-of-memory kill is near.",
            )
        )
    cpu = rank.metrics.get("cpu_capacity_percent")
    if cpu is not None and cpu >= HIGH_PERCENT:
        found.append(
            _issue(
                "HIGH_PROCESS_CPU",
                "info",
                rank,
                "cpu_capacity_percent",
                "cpu_capacity_percent",
                cpu,
                HIGH_PERCENT,
                f"The process keeps {cpu:.0f} % of the usable CPUs busy.",
                "Expected when training on the CPU; else look at the work of the main process.",
            )
        )
    return found


def _imbalance(ranks: list[ProcessFigures]) -> list[Issue]:
    known = [(p, rank.rank) for rank in ranks if (p := rank.peak.get("gpu_mem_reserved_percent"))]
    if len(known) < 2:
        return []
    (low, _), (high, worst) = min(known), max(known)
    skew = 100 * (high - low) / high
    if skew < IMBALANCE_WARN_PERCENT or high < IMBALANCE_LEAST_PERCENT:
        return []
    severity = "crit" if skew >= IMBALANCE_CRIT_PERCENT else "warn"
    return [
        Issue(
            "RANK_GPU_MEMORY_IMBALANCE",
            severity,
            f"Rank {worst} reserves {skew:.0f} % more device memory than the lowest rank.",
            "Balance batch shapes or model parts over the ranks.",
            metric="gpu_mem_reserved_percent",
            score=skew / 100,
            skew_pct=skew / 100,
            ranks=(worst,),
            evidence={
                "rank_gpu_reserved_imbalance_percent": skew,
                "rank_gpu_memory_pressure_percent": high,
                "rank_gpu_memory_pressure_rank": worst,
                "skew_percent": skew,
                "threshold": IMBALANCE_WARN_PERCENT,
            },
        )
    ]


def _issue(
    kind: str,
    severity: str,
    rank: ProcessFigures,
    metric: str,
    evidence_name: str,
    value: float,
    threshold: float,
    summary: str,
    action: str,
) -> Issue:
    return Issue(
        kind,
        severity,
        summary,
        action,
        metric=metric,
        score=None if metric == "alloc_retries" else value / 100,
        ranks=(rank.rank,),
        evidence={
            evidence_name: value,
            "value": value,
            "threshold": threshold,
            "rank": rank.rank,
        },
    )
