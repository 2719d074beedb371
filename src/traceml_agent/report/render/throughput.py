"""The line on how fast the training goes."""

from typing import Any

from traceml_agent.report.render.units import percent, rate


def throughput_text(payload: dict[str, Any]) -> str:
    """Steps, samples, tokens and operations a second; empty where no step was timed."""
    found = payload["step_time"]["throughput"]
    if found["steps_per_s"] is None:
        return ""
    text = f"Throughput    {rate(found['steps_per_s'])} steps/s"
    if found["samples_per_s"] is not None:
        text += f", {rate(found['samples_per_s'])} samples/s"
    if found.get("tokens_per_s") is not None:
        text += f", {rate(found['tokens_per_s'])} tokens/s"
    if found.get("flops_per_s") is not None:
        text += f", {rate(found['flops_per_s'] / 1e9)} GFLOP/s"
    if found.get("mfu_percent") is not None:
        text += f" (MFU {percent(found['mfu_percent'])})"
    if found.get("joules_per_sample") is not None:
        text += f", {rate(found['joules_per_sample'])} J a sample"
    batches = found["micro_batches_per_step"]
    if batches and batches > 1.01:
        text += f", {rate(batches)} micro-batches a step"
    return text
