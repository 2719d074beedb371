"""What starts trainings, for real: mpirun of two kinds, accelerate, deepspeed, Ray Train."""

import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.agents.conftest import bin_of  # noqa: F401  # a fixture
from tests.e2e.harness import Result, environment, runs_in
from tests.slurm.cluster import free_port
from traceml_agent.report.automatic import with_automatic
from traceml_agent.report.fold import fold
from traceml_agent.report.span_rows import rows_in
from traceml_agent.report.spans import forest, walk
from traceml_agent.spool.digested import read_spool

TIMEOUT_S = 400
ENGINES = os.environ.get("TEST_ENGINES", "engines")
"""Whose environment the tests run in: `engines`, or with older versions `engines-older`."""
IS_OLDER = ENGINES == "engines-older"
MPIRUN = {
    "openmpi": ("mpirun.openmpi", "--allow-run-as-root", "--oversubscribe"),
    "mpich": ("mpirun.mpich",),
}


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """For sockets, whose paths have a hundred characters at most."""
    with tempfile.TemporaryDirectory(prefix="e-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture
def port() -> str:
    return str(free_port(1))


@dataclass(frozen=True, slots=True)
class Engine:
    """Runs commands with the programs of an environment."""

    bin_dir: Path
    tmp_path: Path
    short_directory: Path

    def run(self, *command: str, enabled: bool = True, **extra: str) -> Result:
        """The command to its end."""
        variables = environment(self.tmp_path, enabled, **extra)
        variables |= {"PATH": f"{self.bin_dir}:/usr/bin:/bin", "TMPDIR": str(self.short_directory)}
        done = subprocess.run(
            command,
            env=variables,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            cwd=self.tmp_path,
        )
        return Result(done.returncode, done.stdout, done.stderr, runs_in(self.tmp_path))


@pytest.fixture
def engine(
    bin_of: Callable[[str], Path],  # noqa: F811
    tmp_path: Path,
    short_directory: Path,
) -> Engine:
    """The environment of Python packages."""
    return Engine(bin_of(ENGINES), tmp_path, short_directory)


@pytest.fixture(params=MPIRUN)
def mpirun(request: pytest.FixtureRequest) -> Sequence[str]:
    """The beginning of a command, for each MPI that is here; in CI both must be."""
    command = MPIRUN[request.param]
    if shutil.which(command[0]) is None:
        reason = f"{command[0]} is not installed"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    return command


def assert_one_run(result: Result, launcher: str, steps: int, ranks: int = 2) -> None:
    """One directory and one summary, in which each rank counted all its steps."""
    headers = [spool.header.identity for spool in result.spools]
    assert [identity.rank for identity in headers] == list(range(ranks))
    assert {identity.world_size for identity in headers} == {ranks}
    assert {identity.launcher for identity in headers} == {launcher}
    assert [spool.end.steps for spool in result.spools] == [steps] * ranks
    summary = fold(result.run_dir).payload
    assert summary["meta"]["world_size"] == ranks
    assert summary["traceml_agent"]["complete"] is True
    assert summary["run_context"]["run"]["status"] == "finished"
    # None where a busy machine took more than the two seconds that an exit waits at most.
    assert result.stderr.count("traceml: Run  ") <= 1, result.stderr


def same_lines(one: str, other: str) -> bool:
    """Whether all ranks printed the same; which of them comes first is chance."""
    return Counter(one.splitlines()) == Counter(other.splitlines())


def outline(result: Result) -> list[tuple[str, int, int]]:
    """Of each root of the tree of the first rank its title, and how many steps and evaluations are
    in it."""
    spool = read_spool(min(result.run_dir.glob("*.jsonl")), whole=True, spans=True)
    rows, _ = rows_in(spool.spans, 10_000)
    found = []
    for root in forest(with_automatic(rows, spool, 10_000)):
        names = Counter(row.name for _, _, row in walk([root]))
        found.append((f"{root.name}[{root.index}]", names["step"], names["evaluation"]))
    return found
