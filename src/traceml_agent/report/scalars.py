"""The summary as plain numbers and words, for trackers that draw one curve a name."""

from collections.abc import Iterator
from typing import Any

Scalar = str | int | float

_TIMES = (
    "step_time", "input_wait", "h2d", "forward", "backward", "optimizer", "eval", "checkpoint",
    "compile", "logging", "residual",
)  # fmt: skip
_QUANTILES = ("p50", "p95", "max")


def scalars_of(payload: dict[str, Any]) -> dict[str, Scalar]:
    """Names without prefix, by which trackers sort them; what was not measured is left out."""
    return {name: value for name, value in _all(payload) if value is not None}


def _all(payload: dict[str, Any]) -> Iterator[tuple[str, Scalar | None]]:
    primary, step_time = payload["primary_diagnosis"], payload["step_time"]
    yield "diagnosis", primary["kind"]
    yield "severity", primary["severity"]
    yield "steps", step_time["metadata"]["training_total_steps"]
    average = step_time["global"]["average"]
    for name in _TIMES:
        yield f"{name}_ms", average.get(f"{name}_ms")
    whole = average.get("step_time_ms")
    for name in _TIMES[1:]:
        part = average.get(f"{name}_ms")
        yield f"{name}_share", part / whole if part is not None and whole else None
    quantiles = (step_time.get("distribution") or {}).get("step_time") or {}
    for name in _QUANTILES:
        yield f"step_time_{name}_ms", quantiles.get(name)
    for name, value in (step_time.get("throughput") or {}).items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield name, value
    system = payload["system"]["global"]["average"]
    for name in ("gpu_util_percent", "cpu_percent"):
        yield name, system.get(name)
    rows = payload["step_memory"]["groups"]["rows"].values()
    for name in ("peak_allocated_bytes", "peak_reserved_bytes", "peak_rss_bytes"):
        known = [row["metrics"].get(name) for row in rows]
        yield name, max((value for value in known if value is not None), default=None)
    for finding in payload["findings"]:
        saving = finding.get("saving")
        if saving and finding["id"] == primary.get("finding") and saving["run_s"] is not None:
            yield "saving_low_s", saving["run_s"] - saving["run_high_s"]
            yield "saving_high_s", saving["run_s"] - saving["run_low_s"]
    overhead = payload["traceml_agent"].get("self_overhead") or {}
    yield "agent_us_per_step", overhead.get("per_step_us")
