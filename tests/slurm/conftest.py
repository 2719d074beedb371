"""Clusters for the tests: as it comes, with cgroups, and of nodes with networks of their own."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, Node, cluster, free_port
from tests.slurm.network import namespaces

REPOSITORY = Path(__file__).resolve().parents[2]
SLURM_FILES = REPOSITORY / "agent" / "slurm"
PARTS = ("slurmctld", "slurmd", "srun", "munged", "ip")


@pytest.fixture(scope="session")
def slurm() -> None:
    """Slurm is there, or the test is left out; in CI it must be there."""
    missing = [part for part in PARTS if shutil.which(part) is None]
    if os.geteuid() != 0:
        missing.append("root rights")
    if missing:
        reason = f"a cluster needs {', '.join(missing)}"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


def site(directory: Path) -> str:
    """The hooks of the cluster as a site installs them, with a directory for notes of their own."""
    shutil.copytree(SLURM_FILES, directory)
    conf = directory / "site.conf"
    conf.write_text(conf.read_text().replace("NOTES=/run/", f"NOTES={directory}/run/"))
    (directory / "run").mkdir()
    hooks = {"Prolog": "prolog.sh", "TaskProlog": "task_prolog.sh", "Epilog": "epilog.sh"}
    return "\n".join(f"{name}={directory / script}" for name, script in hooks.items())


def on_loopback(proctrack: str) -> Iterator[Cluster]:
    """A cluster of two nodes that differ by name only. Ordinary users can read its directory."""
    with tempfile.TemporaryDirectory(prefix="cluster-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield from _on_loopback(directory, proctrack)


def _on_loopback(directory: Path, proctrack: str) -> Iterator[Cluster]:
    port = free_port(10)
    nodes = [Node(f"n{number}", "127.0.0.1", port + 1 + number) for number in (1, 2)]
    hooks = site(directory / "site")
    with cluster(directory / "c", nodes, port, "127.0.0.1", proctrack, hooks) as started:
        yield started


@pytest.fixture(scope="session")
def plain_cluster(slurm: None) -> Iterator[Cluster]:
    """Processes are found by their parents."""
    yield from on_loopback("linuxproc")


@pytest.fixture(scope="session")
def cgroup_cluster(slurm: None) -> Iterator[Cluster]:
    """As sites run it: processes are found by their cgroup, and none outlives its job."""
    if not Path("/sys/fs/cgroup/freezer").is_dir():
        pytest.skip("this machine has no cgroup v1 freezer")
    yield from on_loopback("cgroup")


@pytest.fixture(scope="session")
def network_cluster(slurm: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes with their own network, host name and /node directory."""
    directory = tmp_path_factory.mktemp("network")
    try:
        with namespaces(2, directory) as (controller, hosts):
            port = free_port(2)
            nodes = [Node(h.name, h.address, port + 1, h.enter) for h in hosts]
            with cluster(directory / "c", nodes, port, controller, "linuxproc", "") as started:
                yield started
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces: {error.stderr}")
