"""What holds a GPU back: from samples of NVML to findings."""

from dataclasses import replace

import pytest

from tests.report.synthetic_run import (
    FIRST_STEP_NS,
    HEADER,
    MS,
    host_samples,
    process_samples,
    run_of,
    steps,
)
from traceml_agent.report.fold import fold
from traceml_agent.schema.records import DeviceMemory, GpuSample

BUSY = GpuSample(
    FIRST_STEP_NS,
    0,
    "GPU-1",
    "H200",
    95.0,
    sm_clock_mhz=1950,
    max_sm_clock_mhz=1980,
    throttle_reasons=0,
    ecc_corrected=7,
    ecc_uncorrected=0,
    pcie_gen=5,
    pcie_gen_max=5,
    pcie_width=16,
    pcie_width_max=16,
    processes=[HEADER.pid],
)
KINDS = {"GPU_THROTTLED", "PCIE_DEGRADED", "GPU_SHARED", "GPU_ECC_ERRORS"}


def issues(tmp_path, *samples, count=40):
    """The findings about the GPU of a run; the last sample repeats."""
    known = [*samples, *[samples[-1]] * (count - len(samples))]
    more = [replace(s, monotonic_ns=FIRST_STEP_NS + i * MS) for i, s in enumerate(known)]
    run_of(tmp_path, steps(50), more=[*host_samples(), *more])
    found = fold(tmp_path).payload["system"]["issues"]
    return {issue["kind"]: issue for issue in found if issue["kind"] in KINDS}


def test_a_healthy_gpu_has_no_finding(tmp_path):
    idle = replace(BUSY, util_percent=0.0, pcie_gen=1, sm_clock_mhz=345, throttle_reasons=1)
    awakening = replace(BUSY, util_percent=3.0, pcie_gen=1)
    assert issues(tmp_path, BUSY, idle, awakening, BUSY) == {}


@pytest.mark.parametrize(
    ("bits", "words", "severity"),
    [
        (0x20, "heat (software limit)", "warn"),
        (0x40, "heat (hardware limit)", "warn"),
        (0x08, "hardware slowdown", "warn"),
        (0x80, "power brake", "warn"),
        (0x04, "the power limit", "info"),
    ],
)
def test_lower_clocks_name_their_reason(tmp_path, bits, words, severity):
    held = replace(BUSY, throttle_reasons=bits, sm_clock_mhz=1485)
    found = issues(tmp_path, *[held] * 4, BUSY)
    assert found["GPU_THROTTLED"]["severity"] == severity
    assert words in found["GPU_THROTTLED"]["summary"]
    assert found["GPU_THROTTLED"]["evidence"]["clock_drop"] == pytest.approx(0.25)


def test_a_reason_without_lower_clocks_is_none(tmp_path):
    assert issues(tmp_path, replace(BUSY, throttle_reasons=0x04)) == {}


def test_a_narrow_link_is_a_finding_and_a_slow_one_only_under_load(tmp_path):
    idle = replace(BUSY, util_percent=0.0, pcie_gen=1)
    found = issues(tmp_path, replace(BUSY, pcie_width=8), idle, replace(BUSY, pcie_width=8))
    assert "generation 5 with 8 lanes" in found["PCIE_DEGRADED"]["summary"]


def test_another_process_on_the_gpu_is_a_finding_where_ours_is_seen_too(tmp_path):
    both = replace(BUSY, processes=[HEADER.pid, 4242])
    assert issues(tmp_path / "a", both)["GPU_SHARED"]["evidence"]["other_processes"] == 1
    assert issues(tmp_path / "b", replace(BUSY, processes=[4242])) == {}  # other numbers inside


def test_errors_of_its_memory_count_from_the_first_sample(tmp_path):
    after = replace(BUSY, ecc_uncorrected=2, ecc_corrected=9)
    found = issues(tmp_path, BUSY, after)["GPU_ECC_ERRORS"]
    assert found["severity"] == "warn"
    assert found["evidence"]["ecc_uncorrected_errors"] == 2
    assert found["evidence"]["ecc_corrected_errors"] == 2


def test_retries_of_the_allocator_are_a_finding(tmp_path):
    def device(retries):
        return DeviceMemory(0, 1 << 30, 2 << 30, 1 << 30, 2 << 30, 80 << 30, retries)

    samples = [
        replace(sample, devices=[device(number)])
        for number, sample in enumerate(process_samples([1 << 30] * 4))
    ]
    run_of(tmp_path, steps(50), more=samples)
    found = {i["kind"]: i for i in fold(tmp_path).payload["process"]["issues"]}
    assert "3 times" in found["ALLOCATOR_RETRIES"]["summary"]


def test_a_leak_says_when_memory_is_full(tmp_path):
    grown = [(1 << 30) + i * (10 << 20) for i in range(60)]  # 1 MiB a step of 10 ms
    run_of(tmp_path, steps(600), more=[*process_samples(grown), *host_samples()])
    (finding,) = [f for f in fold(tmp_path).payload["findings"] if f["kind"].startswith("CREEP")]
    left = (16 << 30) - grown[-1]
    assert finding["evidence"]["steps_to_limit"] == pytest.approx(left / (1 << 20), rel=0.01)
    assert finding["evidence"]["seconds_to_limit"] == pytest.approx(left / (100 << 20), rel=0.01)
    assert "full in at most" in finding["summary"]
