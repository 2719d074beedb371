"""Network namespaces that play the nodes of a cluster, joined by a bridge."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.slurm.claims import claim


@dataclass(frozen=True, slots=True)
class Host:
    """One node."""

    name: str
    address: str
    enter: tuple[str, ...]  # the command in front of a program that runs there


@contextlib.contextmanager
def namespaces(count: int, directory: Path) -> Iterator[tuple[str, list[Host]]]:
    """The address of this machine on the bridge, and the hosts. Raises CalledProcessError."""
    free = _free_number()
    tag, net = f"tm{free}", f"10.77.{free}"
    bridge, controller = f"{tag}b", f"{net}.254"
    names = [f"{tag}n{number}" for number in range(1, count + 1)]
    hosts = [f"host{number}" for number in range(1, count + 1)]
    table = directory / "hosts"
    lines = [f"{net}.{number} {host}" for number, host in enumerate(hosts, 1)]
    table.write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
    try:
        _ip("link", "add", bridge, "type", "bridge")
        _ip("addr", "add", f"{controller}/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for number, name in enumerate(names, 1):
            veth = f"{tag}v{number}"
            _ip("netns", "add", name)
            _ip("link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", veth, "master", bridge, "up")
            _ip("-n", name, "addr", "add", f"{net}.{number}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield (
            controller,
            [
                Host(host, f"{net}.{number}", _enter(name, host, table, directory / host))
                for number, (name, host) in enumerate(zip(names, hosts, strict=True), 1)
            ],
        )
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        subprocess.run(["ip", "link", "del", bridge], capture_output=True)


def _free_number() -> int:
    """Of a network that nobody uses, nor left behind when it was killed."""
    links = subprocess.run(["ip", "-o", "link"], check=True, capture_output=True, text=True).stdout
    for number in range(os.getpid() % 250, os.getpid() % 250 + 250):
        if f" tm{number % 250}b:" not in links and claim(f"net-{number % 250}"):
            return number % 250
    raise OSError("no free network")


def _enter(namespace: str, host: str, table: Path, own: Path) -> tuple[str, ...]:
    """Host name, /etc/hosts and /mnt, a directory that only this node has."""
    own.mkdir()
    setup = f'hostname {host}; mount --bind {table} /etc/hosts; mount --bind {own} /mnt; exec "$@"'
    net = f"--net=/run/netns/{namespace}"
    return ("nsenter", net, "unshare", "--uts", "--mount", "sh", "-ec", setup, "sh")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=20)
