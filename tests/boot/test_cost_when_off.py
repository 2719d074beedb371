"""An installed agent that is switched off costs one look at a variable."""

import resource
import subprocess
from collections.abc import Callable
from pathlib import Path
from statistics import median

from tests.boot.conftest import Venv

STARTS = 100
BUDGET_S = 0.001
"""Source: the design; a start of Python itself takes 10 to 20 ms."""


def start_s(venv: Venv, environ: dict[str, str]) -> float:
    """CPU time of one interpreter that does nothing: others on the machine take wall time."""
    begun = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([str(venv.python), "-c", ""], env=environ, check=True, timeout=60)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime


def test_starting_python_takes_no_measurable_time_longer(
    make_venv: Callable[..., Venv], wheel: Path
) -> None:
    without, installed = make_venv(name="without"), make_venv(name="with")
    installed.install(str(wheel))
    pairs = [(venv, venv.environ()) for venv in (without, installed)]
    times: list[list[float]] = [[], []]
    # Interleaved: what else the machine does then meets both alike.
    for _ in range(STARTS):
        for (venv, environ), column in zip(pairs, times, strict=True):
            column.append(start_s(venv, environ))
    added = median(b - a for a, b in zip(*times, strict=True))
    assert added <= BUDGET_S, f"{added * 1e3:.3f} ms a start"


def test_no_module_more_is_imported(make_venv: Callable[..., Venv], wheel: Path) -> None:
    without, installed = make_venv(name="without"), make_venv(name="with")
    installed.install(str(wheel))
    show = "import sys; print(*sorted(sys.modules))"
    assert installed.run("-c", show).stdout == without.run("-c", show).stdout
