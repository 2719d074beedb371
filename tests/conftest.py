"""Common to all tests."""

import signal


def pytest_configure() -> None:
    """Signals reach the child processes of the tests.

    A shell starts background jobs with SIGINT and SIGQUIT ignored, and children inherit that.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGQUIT) == signal.SIG_IGN:
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
