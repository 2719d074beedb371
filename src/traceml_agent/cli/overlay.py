"""Brings the agent into an interpreter that does not have it, by way of PYTHONPATH.

The overlay is a directory with two parts: one for PYTHONPATH, which holds nothing but a
`sitecustomize.py`, and one with links to the agent and what it needs. The second is appended to
`sys.path`, so that whatever the user's own environment holds comes first.
"""

import contextlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from traceml_agent.cli.interpreter import own_tag
from traceml_agent.errors import TracemlError

PACKAGES = ("traceml_agent", "_traceml_boot", "wrapt", "psutil", "pynvml", "orjson", "platformdirs")
"""The agent and its dependencies: all that a process needs in order to record."""


@contextlib.contextmanager
def overlay(environ: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """The environment with the overlay in it; the directory is removed at the end.

    Raises TracemlError where this installation lacks a part, and OSError.
    """
    sources = {name: _location(name) for name in PACKAGES}
    sitecustomize = _sitecustomize(sources["_traceml_boot"])
    root = Path(tempfile.mkdtemp(prefix="traceml-overlay-"))
    try:
        start, packages = root / "start", root / own_tag()
        start.mkdir()
        packages.mkdir()
        (start / sitecustomize.name).symlink_to(sitecustomize)
        for source in sources.values():
            (packages / source.name).symlink_to(source)
        path = environ.get("PYTHONPATH")
        yield {**environ, "PYTHONPATH": f"{start}{os.pathsep}{path}" if path else str(start)}
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _location(name: str) -> Path:
    """The file or directory that `import name` would load here."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise TracemlError(f"this installation of traceml-agent lacks `{name}`; install it again")
    origin = Path(spec.origin)
    return origin.parent if spec.submodule_search_locations else origin


def _sitecustomize(boot: Path) -> Path:
    """The startup file of the overlay, which is installed beside the boot module."""
    path = boot.with_name("_traceml_overlay") / "sitecustomize.py"
    if not path.is_file():
        raise TracemlError(f"this installation of traceml-agent lacks {path}; install it again")
    return path
