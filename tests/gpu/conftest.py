"""Tests on a real GPU: `make gpu`. Elsewhere each is skipped, and torch is not even imported."""

import ctypes
import subprocess
import sys
from collections.abc import Generator
from functools import cache
from pathlib import Path

import pytest

from tests.e2e.harness import Result, run, write

NO_DEVICE = "no CUDA device"
RESULTS_NOTE = pytest.StashKey[list[str]]()
"""Lines that a test wants to show at the very end."""


@pytest.fixture(autouse=True, scope="session")
def cuda_device() -> None:
    """Skips every test of this directory on a machine without a CUDA device."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)


@cache
def why_not() -> str | None:
    """Why nothing here can run. Asks the driver; torch only where the driver knows a device."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return NO_DEVICE
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return NO_DEVICE
    if count.value == 0:
        return NO_DEVICE
    done = subprocess.run(
        [sys.executable, "-c", "import torch; assert torch.cuda.is_available()"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode == 0:
        return None
    last = (done.stderr.strip().splitlines() or ["no reason"])[-1]
    return f"{NO_DEVICE} that this torch can use ({last})"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter,
) -> Generator[None, None, None]:
    """One plain line, last of all, for who asked for these tests and got none."""
    yield
    config = terminalreporter.config
    if config.option.markexpr == "gpu":
        reason = why_not()
        if reason is not None:
            terminalreporter.write_line(f"GPU tests did NOT run: {reason}")
        for line in config.stash.get(RESULTS_NOTE, []):
            terminalreporter.write_line(line)


DETERMINISTIC = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "TRACEML_MAX_OVERHEAD": "0"}
"""For equal results, and for tests in which no patch may switch itself off."""


def train(directory: Path, script: str, enabled: bool = True, **variables: str) -> Result:
    """Runs a script in a directory of its own, to an exit code of 0."""
    directory.mkdir(parents=True, exist_ok=True)
    # Loaders put sockets into TMPDIR, and the paths of sockets have a limit.
    settings = {"TMPDIR": "/tmp", "TRACEML_TEST_RAISE": "1", **DETERMINISTIC, **variables}
    result = run(directory, write(directory, script), enabled=enabled, **settings)
    assert result.returncode == 0, result.stderr
    return result


def off_and_on(tmp_path: Path, script: str, **variables: str) -> tuple[Result, Result]:
    """The same script without and with the agent, in this order."""
    off = train(tmp_path / "off", script, enabled=False, **variables)
    return off, train(tmp_path / "on", script, **variables)


def device_steps(result: Result) -> dict[int, tuple[int | None, dict[str, int | None]]]:
    """Step -> duration and phases on the device, in nanoseconds."""
    (spool,) = result.spools
    return {
        batch.first_step + offset: (
            duration,
            {name: column[offset] for name, column in batch.phase_ns.items()},
        )
        for batch in spool.device_batches
        for offset, duration in enumerate(batch.duration_ns)
    }


def assert_clean(result: Result) -> None:
    """No error of the agent, and nothing switched off."""
    about = result.summary["traceml_agent"]
    assert (about["faults"], about["problems"], about["dropped"]) == ([], [], {})
    names = ("dataloader", "transfer", "forward", "backward", "optimizer")
    assert {about["patches"][name] for name in names} == {"active"}
