"""mpirun of Open MPI and of MPICH, on one node and on two."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.harness import Result, environment, runs_in, write
from tests.engines.conftest import TIMEOUT_S, assert_one_run, same_lines
from tests.engines.trainings import MPI, STEPS
from tests.slurm.network import namespaces
from traceml_agent.report.fold import fold

pytestmark = pytest.mark.slow


def run(
    tmp_path: Path, command: Sequence[str], temporary: Path, *, enabled: bool = True, **extra: str
) -> Result:
    done = subprocess.run(
        command,
        env=environment(tmp_path, enabled, **extra) | {"TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        cwd=tmp_path,
    )
    return Result(done.returncode, done.stdout, done.stderr, runs_in(tmp_path))


@pytest.mark.parametrize("how", ["arguments", "variables"])
def test_ranks_of_mpirun_are_one_run_and_compute_the_same(
    tmp_path: Path, short_directory: Path, mpirun: Sequence[str], port: str, how: str
) -> None:
    script = write(tmp_path, MPI)
    command = [*mpirun, "-np", "2", sys.executable, script, how, "127.0.0.1", port]
    on = run(tmp_path, command, short_directory)
    assert on.returncode == 0, on.stderr
    assert_one_run(on, "mpi", STEPS)
    identities = [spool.header.identity for spool in on.spools]
    assert [(i.local_rank, i.node_rank, i.local_world_size) for i in identities] == [
        (0, 0, 2),
        (1, 0, 2),
    ]
    if how == "arguments":
        off = run(tmp_path, command, short_directory, enabled=False)
        assert off.returncode == 0, off.stderr
        assert same_lines(on.stdout, off.stdout)


@dataclass(frozen=True, slots=True)
class Nodes:
    """Two nodes with a network of their own, and the program by which mpirun enters them."""

    controller: str
    addresses: list[str]
    agent: Path


@pytest.fixture
def nodes(short_directory: Path) -> Iterator[Nodes]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root rights")
    with ExitStack() as stack:
        try:
            controller, hosts = stack.enter_context(namespaces(2, short_directory))
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            pytest.skip(f"no network namespaces: {error}")
        agent = short_directory / "rsh"
        cases = [f'{h.address}) exec {shlex.join(h.enter)} sh -c "$*" ;;' for h in hosts]
        lines = ["#!/bin/sh", '[ "$1" = -x ] && shift', "host=$1; shift", 'case "$host" in']
        agent.write_text("\n".join([*lines, *cases, "esac", ""]))
        agent.chmod(0o755)
        yield Nodes(controller, [host.address for host in hosts], agent)


def test_ranks_that_are_dealt_out_in_turn_over_two_nodes_are_one_run(
    tmp_path: Path, short_directory: Path, mpirun: Sequence[str], port: str, nodes: Nodes
) -> None:
    """Without MASTER_ADDR: by what mpirun told its daemons alone."""
    first = nodes.addresses[0]
    if "openmpi" in mpirun[0]:
        slots = ",".join(f"{address}:2" for address in nodes.addresses)
        network = ["--mca", "oob_tcp_if_include", f"{nodes.controller}/24"]
        where = ["--mca", "plm_rsh_agent", str(nodes.agent), *network, "--map-by", "node"]
        where += ["--host", slots]
    else:
        where = ["-launcher", "ssh", "-launcher-exec", str(nodes.agent)]
        where += ["-localhost", nodes.controller, "-hosts", ",".join(nodes.addresses)]
    command = [sys.executable, write(tmp_path, MPI), "arguments", first, port]
    on = run(
        tmp_path, [*mpirun, *where, "-np", "4", *command], short_directory,
        GLOO_SOCKET_IFNAME="eth0",
    )  # fmt: skip
    assert on.returncode == 0, on.stderr
    assert_one_run(on, "mpi", STEPS, ranks=4)
    headers = [spool.header for spool in on.spools]
    assert [header.hostname for header in headers] == ["host1", "host2", "host1", "host2"]
    assert [header.identity.local_rank for header in headers] == [0, 0, 1, 1]
    found = [header.identity.node_rank for header in headers]
    assert found == [found[0], found[0] + 1] * 2
    assert fold(on.run_dir).payload["meta"]["nodes_observed"] == 2
