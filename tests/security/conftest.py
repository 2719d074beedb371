"""Installations, and a machine whose /etc the tests may write to."""

import shutil
import subprocess

import pytest

from tests.boot.conftest import make_venv, venv, wheel

__all__ = ["make_venv", "own_etc", "venv", "wheel"]

_SCRIPT = """
mount -t tmpfs tmpfs /etc && mkdir /etc/traceml-agent && touch /etc/traceml-agent/disable || exit 99
exec "$@"
"""


@pytest.fixture(scope="session")
def own_etc() -> list[str]:
    """The start of a command that runs the rest where /etc holds nothing but the kill file."""
    for options in (["--mount"], ["--map-root-user", "--mount"]):
        if shutil.which("unshare") is None:
            break
        command = ["unshare", *options, "sh", "-c", _SCRIPT, "sh"]
        done = subprocess.run([*command, "true"], capture_output=True, timeout=30, check=False)
        if done.returncode == 0:
            return command
    pytest.skip("no mount namespace can be made here")
