"""What stands out on the hosts and their GPUs."""

from dataclasses import dataclass, field
from typing import Any

from traceml_agent.report.diagnose.gpu import GpuFacts, gpu_issues
from traceml_agent.report.diagnose.issue import Issue, by_severity

LOW_UTIL_PERCENT = 30.0
MODERATE_UTIL_PERCENT = 70.0
HIGH_PERCENT = 80.0
VERY_HIGH_PERCENT = 90.0
HOT_C = 85.0
HIGH_POWER_PERCENT = 80.0
"""Mean utilisation, peak memory, peak temperature, power of its limit. Source: TraceML's system
policy. High power alone is no fault: it says that the GPU works near its limit."""


@dataclass(frozen=True, slots=True)
class NodeFigures:
    """Averages (named as in the summary), host facts and GPUs of one node."""

    node: int
    metrics: dict[str, float | int | None]
    host: dict[str, float | int | None]
    gpus: list[dict[str, Any]]
    gpu_facts: dict[int, GpuFacts] = field(default_factory=dict)  # by index


def diagnose(nodes: list[NodeFigures], samples: int) -> list[Issue]:
    """The issues of section system, the worst first; never empty."""
    if not samples and not any(node.gpus for node in nodes):
        return [
            Issue(
                "NO_DATA",
                "info",
                "The host was not sampled.",
                "Runs shorter than one sample interval have no samples.",
            )
        ]
    found = [issue for node in nodes for issue in (*_of_host(node), *_of_gpus(node))]
    if found:
        return by_severity(found)
    return [
        Issue(
            "NORMAL",
            "info",
            "The hosts are within bounds.",
            "Nothing to do.",
            evidence={"samples_used": samples},
        )
    ]


def _of_host(node: NodeFigures) -> list[Issue]:
    found = []
    cpu = node.metrics.get("cpu_percent")
    if cpu is not None and cpu >= HIGH_PERCENT:
        found.append(
            _issue(
                "HIGH_CPU",
                "info",
                node,
                "cpu_percent",
                "cpu_avg_percent",
                cpu,
                HIGH_PERCENT,
                f"All cores of the host are {cpu:.0f} % busy on average.",
                "More loader workers will not help; make the work per item cheaper.",
            )
        )
    memory = node.host.get("memory_peak_percent")
    if memory is not None and memory >= HIGH_PERCENT:
        found.append(
            _issue(
                "HIGH_HOST_MEMORY",
                "warn",
                node,
                "ram_percent",
                "ram_peak_percent",
                memory,
                HIGH_PERCENT,
                f"Memory of the host reached {memory:.0f} %.",
                "Use fewer workers or load lazily, before the kernel kills a process.",
            )
        )
    return found


def _of_gpus(node: NodeFigures) -> list[Issue]:
    found = []
    utils = [g["util_percent"] for g in node.gpus if g["util_percent"] is not None]
    util = sum(utils) / len(utils) if utils else None
    if util is not None and util <= MODERATE_UTIL_PERCENT:
        low = util < LOW_UTIL_PERCENT
        found.append(
            _issue(
                "LOW_GPU_UTILIZATION" if low else "MODERATE_GPU_UTILIZATION",
                "info" if not low else "warn",
                node,
                "gpu_util_percent",
                "gpu_util_avg_percent",
                util,
                LOW_UTIL_PERCENT if low else MODERATE_UTIL_PERCENT,
                f"The GPUs ran a kernel in {util:.0f} % of the time.",
                "See the step table for what they wait for.",
            )
        )
    for gpu in node.gpus:
        found += _of_gpu(node, gpu)
    for index, facts in node.gpu_facts.items():
        found += gpu_issues(index, facts)
    return found


def _of_gpu(node: NodeFigures, gpu: dict[str, Any]) -> list[Issue]:
    found = []
    name = f"GPU {gpu['index']}"
    memory = gpu["memory_percent"]
    if memory is not None and memory >= HIGH_PERCENT:
        very = memory >= VERY_HIGH_PERCENT
        found.append(
            _issue(
                "VERY_HIGH_GPU_MEMORY" if very else "HIGH_GPU_MEMORY",
                "crit" if very else "warn",
                node,
                "gpu_mem_percent",
                "gpu_mem_peak_percent",
                memory,
                VERY_HIGH_PERCENT if very else HIGH_PERCENT,
                f"Memory of {name} reached {memory:.0f} %.",
                "Reduce batch size or activations before something larger comes by.",
                gpu["index"],
            )
        )
    heat = gpu["peak_temperature_c"]
    if heat is not None and heat >= HOT_C:
        found.append(
            _issue(
                "HIGH_GPU_TEMPERATURE",
                "warn",
                node,
                "gpu_temp_c",
                "gpu_temp_peak_c",
                heat,
                HOT_C,
                f"{name} reached {heat:.0f} C and may lower its clocks.",
                "Check the cooling and the neighbours of the device.",
                gpu["index"],
            )
        )
    if gpu["power_w"] is not None and gpu["power_limit_w"]:
        power = 100 * gpu["power_w"] / gpu["power_limit_w"]
        if power >= HIGH_POWER_PERCENT:
            found.append(
                _issue(
                    "HIGH_GPU_POWER",
                    "info",
                    node,
                    "gpu_power_w",
                    "gpu_power_avg_limit_percent",
                    power,
                    HIGH_POWER_PERCENT,
                    f"{name} draws {power:.0f} % of its power limit on average.",
                    "Expected for a busy device; a higher limit may raise the clocks.",
                    gpu["index"],
                )
            )
    return found


def _issue(
    kind: str,
    severity: str,
    node: NodeFigures,
    metric: str,
    evidence_name: str,
    value: float,
    threshold: float,
    summary: str,
    action: str,
    gpu: int | None = None,
) -> Issue:
    scope = {"level": "node", "node": str(node.node), "node_rank": node.node}
    if gpu is not None:
        scope |= {"level": "gpu", "gpu_idx": gpu}
    return Issue(
        kind,
        severity,
        summary,
        action,
        metric=metric,
        score=value / 100,
        evidence={
            evidence_name: value,
            "value": value,
            "threshold": threshold,
            "node_rank": node.node,
            "scope": scope,
        },
    )
