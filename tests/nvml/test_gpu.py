"""GPUs by NVML through the real ctypes path, on a simulated library."""

import json
import os
import subprocess
import sys

import pynvml
import pytest

from tests.e2e.harness import run, write
from tests.fake_nvml import build, variables

OLD_BINDINGS = """
import importlib.util, os, sys
from importlib.machinery import PathFinder
here = os.path.dirname(os.path.abspath(__file__))
spec = PathFinder.find_spec("pynvml", [p for p in sys.path if os.path.abspath(p) != here])
spec = importlib.util.spec_from_file_location("installed_pynvml", spec.origin)
new = sys.modules["installed_pynvml"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(new)
globals().update({n: v for n, v in vars(new).items() if not n.startswith("__")})
for name in (
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetTotalEnergyConsumption",
    "NVML_CLOCK_MEM",
    "NVMLLibraryMismatchError",
    "nvmlEventSetWait_v2",
):
    globals().pop(name, None)
def nvmlDeviceGetMemoryInfo(handle): return new.nvmlDeviceGetMemoryInfo(handle)
def nvmlDeviceGetName(handle): return new.nvmlDeviceGetName(handle).encode()
def nvmlDeviceGetUUID(handle): return new.nvmlDeviceGetUUID(handle).encode()
def nvmlErrorString(code): return original(code).encode()
original, new.nvmlErrorString = new.nvmlErrorString, nvmlErrorString
NVMLError._errcode_to_string.clear()
"""
"""The installed bindings without what older ones lack, and with their bytes for text."""

SAMPLE = """
import json, sys
from dataclasses import asdict
from traceml_agent.capture.samplers.gpu import GpuSampler
sampler = GpuSampler()
status = sampler.start()
samples = []
for tick, state in enumerate(sys.argv[1:]):
    if state:
        open(__import__("os").environ["FAKE_NVML_STATE"], "w").write(state)
    samples.append([asdict(s) for s in sampler.sample(tick)])
sampler.close()
print(json.dumps([status, samples]))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build(tmp_path_factory.mktemp("nvml"))


def sample(library, state="", then=("",), bindings=""):
    """Status of the sampler, and one list of device samples for each state in `then`."""
    env = {**os.environ, **variables(library, state)}
    if bindings:
        env["PYTHONPATH"] = os.pathsep.join([bindings, env.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", SAMPLE, *then],
        env=env, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_two_devices_are_sampled_with_every_value(library):
    status, ((first, second),) = sample(library, "gpu1.util 12\ngpu0.pid 4321\n")
    assert status == "active"
    assert (first["util_percent"], second["util_percent"]) == (87.0, 12.0)
    assert first["memory_used_bytes"] == 20_000_000_000  # not what the driver reserves
    assert (first["power_w"], first["power_limit_w"]) == (350.0, 700.0)
    assert (first["pcie_gen"], first["pcie_gen_max"]) == (4, 5)
    assert first["pcie_rx_bytes_per_s"] == 2000 * 1024
    assert first["throttle_reasons"] == 4
    assert first["processes"] == [4321]
    assert first["uuid"] == "GPU-0000-0"
    assert first["reasons"] == {}


def test_a_lost_device_does_not_disturb_the_other(library):
    _, ticks = sample(library, then=("", "gpu1.rc 15\n", "gpu1.rc 15\n", "rc 0\n"))
    assert [tick[0]["util_percent"] for tick in ticks] == [87.0] * 4
    assert [tick[1]["util_percent"] for tick in ticks] == [87.0, None, None, 87.0]
    assert ticks[1][1]["reasons"]["util_percent"] == "GPU is lost"
    assert ticks[2][1]["reasons"] == {}  # told once


def test_what_is_not_supported_is_null_with_a_reason_and_not_asked_again(library):
    _, ticks = sample(library, "power.rc 3\n", then=("", "power.rc 0\n"))
    assert [tick[0]["power_w"] for tick in ticks] == [None, None]
    assert ticks[0][0]["reasons"] == {"power_w": "Not Supported"}
    assert ticks[0][0]["temperature_c"] == 61.0


def test_an_old_driver_without_version_2_of_memory_still_gives_memory(library):
    _, ((first, _),) = sample(library, "memory_v2.rc 3\n")
    assert first["memory_used_bytes"] == 20_500_000_000


def test_an_absent_function_falls_back_to_its_older_name(tmp_path):
    library = build(tmp_path, "-DWITHOUT_EVENT_REASONS")
    _, ((first, _),) = sample(library)
    assert first["throttle_reasons"] == 8


def test_an_old_driver_whose_processes_have_an_older_name_still_lists_them(tmp_path):
    if not hasattr(pynvml, "nvmlDeviceGetComputeRunningProcesses_v2"):
        pytest.skip("the installed bindings know one version alone")
    library = build(tmp_path, "-DWITHOUT_PROCESSES_V3")
    _, ticks = sample(library, "gpu0.pid 4321\n", then=("",) * 4)
    assert [tick[0]["processes"] for tick in ticks] == [[4321]] * 4
    assert ticks[0][0]["reasons"] == {}


def test_errors_of_the_driver_are_taken_once_and_given_to_their_device(library):
    two = "gpu1.xid 79\ngpu1.xid_count 2\n"
    _, ticks = sample(library, then=("", two, two, "gpu1.xid 31\ngpu1.xid_count 3\n"))
    assert [tick[0]["xids"] for tick in ticks] == [[]] * 4
    assert [tick[1]["xids"] for tick in ticks] == [[], [79, 79], [], [31]]


def test_a_device_that_reports_no_errors_says_so_once(library):
    _, ticks = sample(library, "gpu1.events.rc 3\n", then=("", "gpu0.xid 48\ngpu0.xid_count 1\n"))
    assert [tick[1]["xids"] for tick in ticks] == [None, None]
    assert [tick[1]["reasons"] for tick in ticks] == [{"xids": "Not Supported"}, {}]
    assert ticks[1][0]["xids"] == [48]


@pytest.fixture
def old_bindings(tmp_path):
    (tmp_path / "pynvml.py").write_text(OLD_BINDINGS)
    return str(tmp_path)


def test_old_bindings_give_what_they_have_and_one_reason_for_the_rest(library, old_bindings):
    _, ticks = sample(library, then=("",) * 4, bindings=old_bindings)
    first = ticks[0][0]
    assert (first["uuid"], first["name"]) == ("GPU-0000-0", "Simulated GPU 0")
    assert first["memory_used_bytes"] == 20_500_000_000
    assert first["throttle_reasons"] == 8
    assert (first["energy_mj"], first["memory_clock_mhz"]) == (None, None)
    assert first["reasons"] == {
        "memory_clock_mhz": "not supported by the installed pynvml: no NVML_CLOCK_MEM",
        "energy_mj": "not supported by the installed pynvml: "
        "no nvmlDeviceGetTotalEnergyConsumption",
        "xids": first["reasons"]["xids"],
    }
    assert first["xids"] is None
    assert "nvmlEventSetWait_v2" in first["reasons"]["xids"]
    assert [tick[0]["util_percent"] for tick in ticks] == [87.0] * 4
    assert [tick[0]["reasons"] for tick in ticks[1:]] == [{}] * 3


def test_the_bytes_of_old_bindings_are_text_in_the_reasons(library, old_bindings):
    _, ((_, second),) = sample(library, "gpu1.rc 15\n", bindings=old_bindings)
    assert second["reasons"]["throttle_reasons"] == "GPU is lost"


@pytest.mark.parametrize(
    ("state", "words"),
    [("init.rc 9", "driver is not loaded"), ("init.rc 18", "differ in version"),
     ("init.rc 999", "NVML says Unknown Error"), ("count 0", "no GPU")],
)  # fmt: skip
def test_a_machine_whose_nvml_does_not_start_is_told_in_words(library, state, words):
    status, _ = sample(library, f"{state}\n", then=())
    assert words in status


def test_a_reason_is_told_once_though_pcie_is_asked_for_in_some_samples_alone(library):
    _, ticks = sample(library, "pcie.rc 3\npower.rc 3\n", then=("",) * 12)
    assert [set(tick[0]["reasons"]) for tick in ticks] == [
        {"power_w", "pcie_rx_bytes_per_s", "pcie_tx_bytes_per_s"},
        *[set()] * 11,
    ]


def test_pcie_throughput_is_asked_for_every_tenth_sample_alone(library):
    _, ticks = sample(library, then=("",) * 11)
    asked = [tick[0]["pcie_rx_bytes_per_s"] is not None for tick in ticks]
    assert asked == [True] + [False] * 9 + [True]


TRAINING = """
import time
import torch
weights = torch.zeros(8, requires_grad=True)
optimizer = torch.optim.SGD([weights], lr=0.1)
for _ in range(12):
    (weights - 1).pow(2).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    time.sleep(0.02)
"""


def test_the_summary_of_a_run_shows_each_gpu_and_what_is_lost(library, tmp_path):
    extra = variables(library, "gpu1.rc 15\ngpu0.util 20\n")
    result = run(tmp_path, write(tmp_path, TRAINING), TRACEML_SAMPLE_INTERVAL_S="0.05", **extra)
    system = result.summary["system"]
    assert system["metadata"]["gpus_observed"] == 2
    assert system["groups"]["rows"]["0"]["metrics"]["gpu_util_percent"] == 20.0
    assert system["gpus"][1]["util_percent"] is None
    assert system["gpus"][1]["not_measured"]["util_percent"] == "GPU is lost"
    assert system["diagnosis"]["kind"] == "LOW_GPU_UTILIZATION"
    assert any("GPU 0" in line and "20 % busy" in line for line in result.own_lines)


def test_without_nvml_the_run_says_that_gpus_are_not_measured(tmp_path):
    result = run(tmp_path, write(tmp_path, TRAINING), LD_LIBRARY_PATH="")
    assert result.summary["system"]["global"]["average"]["gpu_util_percent"] is None
    if "no NVML library" not in result.stderr:
        assert result.summary["system"]["gpus"]  # a machine with GPUs


def test_a_gpu_that_is_held_back_is_a_finding(library, tmp_path):
    extra = variables(library, "count 1\nreasons 64\nclock 990\npcie_width 8\n")
    result = run(tmp_path, write(tmp_path, TRAINING), TRACEML_SAMPLE_INTERVAL_S="0.05", **extra)
    found = {issue["kind"]: issue for issue in result.summary["system"]["issues"]}
    assert "heat (hardware limit)" in found["GPU_THROTTLED"]["summary"]
    assert found["GPU_THROTTLED"]["evidence"]["clock_drop"] == 0.5
    assert found["PCIE_DEGRADED"]["severity"] == "warn"


@pytest.mark.parametrize(("xid", "severity"), [(79, "crit"), (31, "warn"), (150, "crit")])
def test_an_error_that_the_driver_reports_is_a_finding(library, tmp_path, xid, severity):
    extra = variables(library, f"count 1\nxid {xid}\nxid_count 1\n")
    result = run(tmp_path, write(tmp_path, TRAINING), TRACEML_SAMPLE_INTERVAL_S="0.05", **extra)
    (found,) = [f for f in result.summary["findings"] if f["kind"] == "GPU_XID"]
    assert (found["severity"], found["evidence"]["xids"]) == (severity, {str(xid): 1})
    assert f"GPU 0 during the run: Xid {xid}" in found["summary"]
    assert result.summary["system"]["gpus"][0]["xids"] == {str(xid): 1}
