"""Figures of the allocator as torch gives them, and of NVML as nvidia-smi shows them."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from tests.gpu.conftest import assert_clean, train

pytestmark = pytest.mark.gpu

TRAINING = """
import json, subprocess, sys, time
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Linear(4096, 4096).to("cuda")
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

def train(rows, seconds=0.0):
    until = time.perf_counter() + seconds
    x = torch.randn(rows, 4096, device="cuda")
    while True:
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        if time.perf_counter() >= until:
            return

def peaks():
    return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
"""

PEAKS = (
    TRAINING
    + """
train(256)
train(16384)
train(256)
print(json.dumps(peaks()))
"""
)

RESET = (
    TRAINING
    + """
train(16384, seconds=0.3)
time.sleep(0.5)
first = peaks()
torch.cuda.empty_cache()
torch.cuda.reset_peak_memory_stats()
train(256)
assert peaks()[0] < first[0]
print(json.dumps(first))
"""
)


@pytest.mark.parametrize("script", [PEAKS, RESET], ids=["whole run", "reset by the program"])
def test_peaks_are_those_that_torch_gives(tmp_path: Path, script: str) -> None:
    result = train(tmp_path, script, TRACEML_SAMPLE_INTERVAL_S="0.05")
    allocated, reserved = json.loads(result.stdout)
    row = result.summary["step_memory"]["groups"]["rows"]["0"]["metrics"]
    assert (row["peak_allocated_bytes"], row["peak_reserved_bytes"]) == (allocated, reserved)
    peak = result.summary["process"]["peak"]["0"]
    assert peak["gpu_mem_allocated_bytes"] == allocated
    assert peak["gpu_mem_reserved_bytes"] == reserved


COLUMNS = {
    "uuid": "uuid",
    "name": "name",
    "memory.total": "memory_total_bytes",
    "memory.used": "memory_used_bytes",
    "enforced.power.limit": "power_limit_w",
    "power.draw": "power_w",
    "temperature.gpu": "temperature_c",
    "utilization.gpu": "util_percent",
    "clocks.max.sm": "max_sm_clock_mhz",
    "pcie.link.gen.max": "pcie_gen_max",
    "pcie.link.width.max": "pcie_width_max",
}
"""Columns of nvidia-smi and the fields of ours that say the same."""
MAY_DIFFER = {
    "memory_total_bytes": 1 << 20,  # nvidia-smi shows MiB
    "memory_used_bytes": 64 << 20,
    "power_limit_w": 0.01,
    "power_w": 100.0,
    "temperature_c": 5.0,
    "util_percent": 30.0,
}
"""How far two looks at one GPU under an even load, 0.2 s apart, may differ; 0 otherwise."""

UNDER_LOAD = (
    TRAINING
    + f"""
train(8192, seconds=3)
columns = {",".join(COLUMNS)!r}
query = subprocess.Popen(
    ["nvidia-smi", "--query-gpu=" + columns, "--format=csv,noheader,nounits"],
    stdout=subprocess.PIPE, text=True,
)
while query.poll() is None:
    train(8192)
print(time.perf_counter_ns())
print(query.stdout.read())
train(8192, seconds=1)
"""
)


def test_nvml_says_what_nvidia_smi_shows(tmp_path: Path) -> None:
    if shutil.which("nvidia-smi") is None:
        pytest.skip("no nvidia-smi on this machine")
    result = train(tmp_path, UNDER_LOAD, TRACEML_SAMPLE_INTERVAL_S="0.1")
    assert_clean(result)
    asked_ns, *table = result.stdout.splitlines()
    rows = [row for row in csv.reader(table, skipinitialspace=True) if row]
    (spool,) = result.spools
    assert len({sample.index for sample in spool.gpu_samples}) == len(rows)
    wrong = {}
    for index, row in enumerate(rows):
        samples = [sample for sample in spool.gpu_samples if sample.index == index]
        nearest = min(samples, key=lambda sample: abs(sample.monotonic_ns - int(asked_ns)))
        for (column, field), shown in zip(COLUMNS.items(), row, strict=True):
            value = getattr(nearest, field)
            if not says_the_same(field, value, shown.strip()):
                wrong[f"{index} {column}"] = (shown, value)
    assert wrong == {}
    assert max(sample.util_percent or 0 for sample in spool.gpu_samples) > 50
    assert result.summary["meta"]["gpus_observed"] == len(rows)


def says_the_same(field: str, value: object, shown: str) -> bool:
    if shown.startswith("["):  # [N/A], [Not Supported]
        return value is None
    if isinstance(value, str):
        return value == shown
    if value is None:
        return False
    wanted = float(shown) * (1 << 20 if field.startswith("memory_") else 1)
    return abs(float(str(value)) - wanted) <= MAY_DIFFER.get(field, 0)
