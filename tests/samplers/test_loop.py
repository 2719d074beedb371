"""The sampler loop: what fails in one sampler stays there."""

import json
import sys
import time
from types import SimpleNamespace

import pytest

from traceml_agent.capture.recorder import Recorder
from traceml_agent.capture.samplers.gpu import SILENT_LIMIT
from traceml_agent.capture.samplers.loop import SamplerLoop
from traceml_agent.capture.session import Session
from traceml_agent.config import Config
from traceml_agent.guard import FAULT_LIMIT, faults, forget_faults
from traceml_agent.spool.writer import SpoolWriter

GPU_IS_LOST = 15
DEADLINE_S = 30


class NVMLError(Exception):
    def __init__(self, value):
        super().__init__(value)
        self.value = value


def fails(error):
    def call(*arguments):
        raise error

    return call


def bindings(**functions):
    """A pynvml that has one GPU and these functions."""
    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlErrorString=lambda value: b"GPU is lost" if value == GPU_IS_LOST else b"Unknown Error",
        **functions,
    )


def torch(is_initialized=lambda: False):
    return SimpleNamespace(cuda=SimpleNamespace(is_initialized=is_initialized))


@pytest.fixture(autouse=True)
def no_faults():
    forget_faults()
    yield
    forget_faults()


@pytest.fixture
def record(tmp_path, monkeypatch):
    def run(torch, pynvml, until):
        """Statuses and number of records of each kind, once `until` holds for them."""
        monkeypatch.setitem(sys.modules, "pynvml", pynvml)
        session = Session()
        session.torch = torch
        session.config = Config(sample_interval_s=0.05, flush_interval_s=0.05)
        path = tmp_path / "spool.jsonl"
        loop = SamplerLoop(session, Recorder(path, SpoolWriter(path, 10**7), None), 0)
        loop.start()
        deadline = time.monotonic() + DEADLINE_S
        while not until(session.statuses, counts(path)) and time.monotonic() < deadline:
            time.sleep(0.02)
        loop.stop()
        return session.statuses, counts(path)

    return run


def counts(path):
    found = dict.fromkeys(("process", "host", "gpu", "overhead", "stacks"), 0)
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            kind = json.loads(line)["kind"]
            found[kind] = found.get(kind, 0) + 1
    return found


def test_gpus_that_fail_at_each_sample_are_dropped_and_the_others_go_on(record):
    pynvml = bindings(nvmlDeviceGetPowerUsage=fails(RuntimeError("broken")))
    statuses, found = record(torch(), pynvml, lambda _, found: found["host"] > 2 * FAULT_LIMIT)
    assert (found["gpu"], statuses["gpu"]) == (0, f"switched off after {FAULT_LIMIT} faults")
    assert min(found["process"], found["host"], found["overhead"]) > 2 * FAULT_LIMIT
    assert [(fault.where, fault.count) for fault in faults()] == [("sample gpu", FAULT_LIMIT)]


def test_a_process_sampler_that_fails_is_dropped_and_the_others_go_on(record):
    broken = torch(is_initialized=fails(RuntimeError("broken")))
    pynvml = bindings(nvmlDeviceGetPowerUsage=lambda handle: 350_000)
    statuses, found = record(broken, pynvml, lambda _, found: found["host"] > 2 * FAULT_LIMIT)
    assert (found["process"], statuses["process"]) == (
        0,
        f"switched off after {FAULT_LIMIT} faults",
    )
    assert min(found["host"], found["gpu"], found["overhead"]) > 2 * FAULT_LIMIT
    assert statuses["gpu"] == "active"


def test_gpus_that_never_give_a_value_are_dropped_without_a_fault(record):
    lost = fails(NVMLError(GPU_IS_LOST))
    pynvml = bindings(nvmlDeviceGetPowerUsage=lost, nvmlDeviceGetUtilizationRates=lost)
    statuses, found = record(torch(), pynvml, lambda _, found: found["host"] > 2 * SILENT_LIMIT)
    assert statuses["gpu"] == f"no value in {SILENT_LIMIT} samples: GPU is lost"
    assert found["gpu"] == SILENT_LIMIT
    assert faults() == []


def test_a_sampler_that_does_not_start_leaves_the_others(record):
    pynvml = bindings()
    pynvml.nvmlInit = fails(RuntimeError("broken"))
    statuses, found = record(torch(), pynvml, lambda _, found: found["host"] > 1)
    assert statuses.pop("gpu") == "failed to start"
    names = ("process", "stacks", "host", "gc", "sched")
    assert statuses == dict.fromkeys(names, "active")
    assert min(found["process"], found["host"]) > 1
