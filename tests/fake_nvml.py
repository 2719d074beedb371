"""Builds the simulated NVML library, which drives the real ctypes path of nvidia-ml-py."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "nvml" / "fakenvml.c"


def build(directory: Path, *options: str) -> Path:
    """Compiles `libnvidia-ml.so.1` into a directory and returns it; skips without a compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        assert not os.environ.get("CI"), "CI must have a C compiler"
        pytest.skip("no C compiler")
    name = "libnvidia-ml.so.1"
    command = [compiler, "-O1", "-Wall", "-Werror", "-shared", "-fPIC", f"-Wl,-soname,{name}"]
    subprocess.run([*command, *options, "-o", directory / name, SOURCE], check=True, timeout=60)
    return directory


def variables(library: Path, state: str) -> dict[str, str]:
    """The environment in which a child finds the library, with this state."""
    path = library / "state"
    path.write_text(state)
    return {"LD_LIBRARY_PATH": str(library), "FAKE_NVML_STATE": str(path)}
