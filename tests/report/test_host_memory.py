"""Memory that comes anew in each step, and memory that workers keep."""

from dataclasses import replace

import pytest

from tests.report.synthetic_run import FIRST_STEP_NS, MS, run_of, steps
from traceml_agent.report.fold import fold
from traceml_agent.schema.loaders import Loader
from traceml_agent.schema.records import DeviceSteps, ProcessSample

COUNT = 100
FAULTS, KERNEL_MS = 2_000, 1.5


def samples(count=11, faults=FAULTS, kernel_ms=KERNEL_MS, **more):
    """One each ten steps of 10 ms; so much a step."""
    return [
        ProcessSample(
            FIRST_STEP_NS + i * 100 * MS, 1 + i * 9, 1 << 30, i * MS, 4,
            minor_faults=5 + i * 9 * faults, kernel_ns=round((7 + i * 9 * kernel_ms) * MS),
            **{name: value(i) for name, value in more.items()},
        )
        for i in range(count)
    ]  # fmt: skip


def findings(tmp_path, *more):
    run_of(tmp_path, steps(COUNT), more=more)
    return {f["kind"]: f for f in fold(tmp_path).payload["findings"]}


def test_new_pages_cost_the_time_in_the_kernel(tmp_path):
    found = findings(tmp_path, *samples())["ALLOCATION_CHURN"]
    assert found["evidence"]["new_pages_per_step"] == FAULTS
    assert found["cost"]["ms_per_step"] == pytest.approx(KERNEL_MS)
    assert found["severity"] == "warn"
    assert "in each step: 2,000 new pages, which take the kernel 1.5 ms" in found["summary"]
    bounds = [found["saving"][f"step_{bound}_ms"] for bound in ("low", "high")]
    assert bounds == pytest.approx([10 - 2 * KERNEL_MS, 10 - KERNEL_MS])
    assert "MALLOC_MMAP_MAX_=0" in found["action"]


def test_time_in_the_kernel_without_new_pages_has_another_cause(tmp_path):
    assert "ALLOCATION_CHURN" not in findings(tmp_path, *samples(faults=100))


def test_little_time_in_the_kernel_is_no_finding_nor_a_device_that_goes_on(tmp_path):
    assert "ALLOCATION_CHURN" not in findings(tmp_path / "a", *samples(kernel_ms=0.4))
    device = DeviceSteps(1, COUNT, [10 * MS] * COUNT, {"forward": [3 * MS] * COUNT})
    assert "ALLOCATION_CHURN" not in findings(tmp_path / "b", *samples(), device)


def test_pages_by_which_the_process_grows_are_not_given_back(tmp_path):
    made = [replace(s, rss_bytes=(1 << 30) + (s.step - 1) * FAULTS * 4096) for s in samples()]
    assert "ALLOCATION_CHURN" not in findings(tmp_path, *made)


def test_an_evaluation_between_two_samples_is_no_step(tmp_path):
    quiet = samples(faults=10, kernel_ms=0.1)
    after = [
        replace(s, minor_faults=s.minor_faults + 900_000, kernel_ns=s.kernel_ns + 900 * MS)
        for s in quiet[6:]
    ]
    assert "ALLOCATION_CHURN" not in findings(tmp_path, *quiet[:6], *after)


def test_a_few_samples_say_nothing_of_new_pages(tmp_path):
    assert "ALLOCATION_CHURN" not in findings(tmp_path, *samples(count=5))


def test_workers_that_keep_what_they_load_are_a_leak_of_the_dataset(tmp_path):
    loader = Loader(FIRST_STEP_NS, 0, "Images", False, 2, "active", role="train", batches=COUNT)
    growing = samples(kernel_ms=0.0, workers_grown_bytes=lambda i: (1 << 30) + i * (40 << 20))
    found = findings(tmp_path / "a", *growing, loader)["CREEP_EARLY"]
    assert found["metric"] == "workers_grown_bytes"
    assert found["summary"].startswith("Resident memory of the loader workers of Images grows by")
    assert "persistent_workers=False" in found["action"]
    steady = samples(kernel_ms=0.0, workers_grown_bytes=lambda i: (1 << 30) + i % 3 * (40 << 20))
    assert "CREEP_EARLY" not in findings(tmp_path / "b", *steady, replace(loader, loader=1))
