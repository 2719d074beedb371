"""Common to all tests."""

import signal

import pytest

MEASURED = (
    "e2e/test_attempts.py",
    "e2e/test_causes.py",
    "e2e/test_collectives.py",
    "e2e/test_examples.py",
    "e2e/test_flops.py",
    "e2e/test_input_pipeline.py",
    "e2e/test_lines.py",
    "e2e/test_loader_replay.py",
    "e2e/test_phases.py",
    "e2e/test_rest_time.py",
    "e2e/test_retained.py",
    "e2e/test_tokens.py",
    "engines/test_frameworks.py",
    "engines/test_mpirun.py",
    "ranks/test_healthy.py",
    "ranks/test_real_jobs.py",
    "ranks/test_straggler.py",
    "report/test_peer_reads_ours.py",
    "samplers/",
    "truth/",
)
"""Tests that compare what the agent measured of a real program with a clock of their own: where
something else takes the processor, both are right and differ. Once more, up to twice, and each time
told (R in the report). A crash of the program is no such thing, and is never tried again."""
RERUNS = 2
ABORTED = "terminate called without an active exception"
"""But for this one, of any test: about one job of several ranks in a hundred aborts at its end in a
thread of torch, without the agent as well."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lets measured tests be tried again where an assertion fails, and all where torch aborts."""
    for item in items:
        measured = item.nodeid.removeprefix("tests/").startswith(MEASURED)
        failures = "AssertionError" if measured else ABORTED
        item.add_marker(pytest.mark.flaky(reruns=RERUNS, only_rerun=failures))


def pytest_configure() -> None:
    """Signals reach the child processes of the tests.

    A shell starts background jobs with SIGINT and SIGQUIT ignored, and children inherit that.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGQUIT) == signal.SIG_IGN:
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
