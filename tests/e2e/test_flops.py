"""TRACEML_FLOPS: the operations of one step, exact, in trainings that compute the same."""

import pytest

from tests.e2e.harness import run, write
from traceml_agent.report.efficiency import flops_of, peak_flops
from traceml_agent.report.view import load_run

TRAIN = """
import sys
import torch
from torch import nn

kind, steps = sys.argv[1], 40
torch.manual_seed(0)

class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 10)
    def forward(self, x):
        q, k, v = self.qkv(x).view(4, 16, 3, 2, 16).permute(2, 0, 3, 1, 4)
        x = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(x.transpose(1, 2).reshape(4, 16, 32).mean(1))

if kind == "conv":
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 10))
    shape = (4, 3, 8, 8)
elif kind == "attention":
    model, shape = Attention(), (4, 16, 32)
else:
    model, shape = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10)), (4, 32)
if kind == "compiled":
    model = torch.compile(model, backend="eager")
micro = 2 if kind == "accumulated" else 1
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(steps):
    optimizer.zero_grad()
    for _ in range(micro):
        loss = nn.functional.cross_entropy(model(torch.randn(shape)), torch.randint(10, (4,)))
        loss.backward()
    optimizer.step()
    with torch.no_grad():
        model(torch.randn(shape))  # evaluation is no part of it
    if kind == "fails" and step == 20:
        model(torch.randn(4, 7))
print(loss.item())
"""

LINEAR = 3 * 2 * 4 * (32 * 64 + 64 * 10) - 2 * 4 * 32 * 64
"""Forward, and twice as much backward, but for the gradient of the input of the first layer."""
CONV = 2 * 4 * 36 * 8 * 3 * 9 * 2 + 3 * 2 * 4 * 8 * 36 * 10
QKV, OUT = 2 * 4 * 16 * 32 * 96, 2 * 4 * 32 * 10
PRODUCT = 2 * 4 * 2 * 16 * 16 * 16


def train(tmp_path, kind, **variables):
    (tmp_path / "on").mkdir()
    (tmp_path / "off").mkdir()
    on = run(tmp_path / "on", write(tmp_path / "on", TRAIN), kind, **variables)
    off = run(tmp_path / "off", write(tmp_path / "off", TRAIN), kind, enabled=False)
    assert (on.returncode, on.stdout) == (off.returncode, off.stdout)
    assert on.other_stderr.replace("/on/", "/off/") == off.stderr
    return on


@pytest.mark.parametrize(
    ("kind", "expected"), [("linear", LINEAR), ("accumulated", 2 * LINEAR), ("conv", CONV)]
)
def test_the_operations_of_a_step_are_exact(tmp_path, kind, expected):
    on = train(tmp_path, kind, TRACEML_FLOPS="1")
    found = on.summary["step_time"]["throughput"]
    assert found["flops_per_step"] == expected
    assert found["flops_per_s"] == pytest.approx(expected * found["steps_per_s"])
    assert found["mfu_percent"] is None
    assert "GFLOP/s" in on.stderr


def test_attention_on_the_cpu_is_counted(tmp_path):
    on = train(tmp_path, "attention", TRACEML_FLOPS="1")
    (event,) = [e for e in on.spools[0].events if e.name == "flops"]
    assert event.detail["forward_flops"] == QKV + 2 * PRODUCT + OUT


def test_nothing_is_counted_where_the_program_compiles(tmp_path):
    on = train(tmp_path, "compiled", TRACEML_FLOPS="1")
    assert on.summary["step_time"]["throughput"]["flops_per_step"] is None
    assert on.summary["traceml_agent"]["patches"]["flops"] == "torch.compile is in use"


def test_without_the_setting_nothing_is_counted(tmp_path):
    on = train(tmp_path, "linear")
    assert on.summary["step_time"]["throughput"]["flops_per_step"] is None
    assert flops_of(load_run(on.run_dir).ranks[0]) is None


def test_an_error_in_the_counted_step_is_the_same_error(tmp_path):
    (tmp_path / "on").mkdir()
    (tmp_path / "off").mkdir()
    on = run(tmp_path / "on", write(tmp_path / "on", TRAIN), "fails", TRACEML_FLOPS="1")
    off = run(tmp_path / "off", write(tmp_path / "off", TRAIN), "fails", enabled=False)
    assert (on.returncode, on.stdout) == (off.returncode, off.stdout) == (1, "")
    assert "mat1 and mat2" in off.stderr
    assert on.other_stderr.replace("/on/", "/off/") == off.stderr


@pytest.mark.parametrize(
    ("name", "dtype", "tf32", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", False, 989),
        ("NVIDIA H100 PCIe", "float16", False, 756),
        ("NVIDIA A100-SXM4-80GB", "float32", True, 156),
        ("NVIDIA A100-SXM4-80GB", "float32", False, 19.5),
        ("Tesla V100-SXM2-16GB", "float32", True, 15.7),
        ("Tesla T4", "float16", False, 65),
        ("NVIDIA A1000", "float16", False, None),
        ("Graphics of tomorrow", "float16", False, None),
        ("NVIDIA H200", "float64", False, None),
        (None, "float16", False, None),
    ],
)
def test_the_peak_of_a_device_is_known_or_unknown(name, dtype, tf32, tera):
    found = peak_flops(name, dtype, tf32)
    assert found == (None if tera is None else pytest.approx(tera * 1e12))
