"""Names of the summary: `final_summary.json`, a superset of TraceML's format."""

FORMAT_VERSION = 1.9
"""Version of the TraceML format that the file is a superset of."""
SUMMARY_SCHEMA = "traceml-agent-summary/1"
"""Our own version, in `traceml_agent.schema`."""
SUMMARY_JSON = "final_summary.json"
SUMMARY_TEXT = "final_summary.txt"

SYSTEM_METRICS = (
    "cpu_percent",
    "ram_bytes",
    "ram_percent",
    "gpu_util_percent",
    "gpu_mem_bytes",
    "gpu_mem_percent",
    "gpu_temp_c",
    "gpu_power_w",
    "gpu_headroom_bytes",
)
PROCESS_METRICS = (
    "cpu_percent",
    "cpu_capacity_percent",
    "ram_bytes",
    "ram_percent",
    "gpu_mem_used_bytes",
    "gpu_mem_reserved_bytes",
    "gpu_mem_reserved_percent",
    "gpu_mem_headroom_bytes",
)
STEP_TIME_METRICS = (
    "input_wait_ms",
    "step_time_ms",
    "traced_step_time_ms",
    "step_time_cpu_ms",
    "step_time_gpu_ms",
    "traced_step_time_cpu_ms",
    "traced_step_time_gpu_ms",
    "dataloader_fetch_cpu_ms",
    "h2d_ms",
    "compute_ms",
    "residual_ms",
    "forward_ms",
    "backward_ms",
    "optimizer_ms",
    "eval_ms",
    "checkpoint_ms",
    "compile_ms",
    "logging_ms",
)
STEP_MEMORY_METRICS = ("peak_allocated_bytes", "peak_reserved_bytes", "peak_rss_bytes")

LOWEST_IS_WORST = frozenset({"gpu_headroom_bytes", "gpu_mem_headroom_bytes"})
