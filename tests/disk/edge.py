"""Builds edge.c, and says how a job gets to feel it."""

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("edge.c")


def build(directory: Path) -> str:
    """The shared object for LD_PRELOAD; skips the test where there is no C compiler, but in CI."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("no C compiler")
    target = directory / "edge.so"
    command = [compiler, "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(target)]
    subprocess.run([*command, str(SOURCE), "-ldl"], check=True, timeout=60)
    return str(target)


def number(name: str) -> str:
    """`ENOSPC` as edge.c wants it."""
    return str(getattr(errno, name))
