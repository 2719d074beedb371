"""The control group of this process: limits of CPU and memory, and how often it was throttled.

Knows version 1, version 2 and the hybrid of both, in which each controller has its own place. A
limit may stand in any parent, so the tightest one on the way up to the mount counts, and usage and
throttling are those of the group that holds it: a group without a quota is never throttled itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from traceml_agent.capture.samplers.proc import keyed_numbers

UNLIMITED_BYTES = 1 << 60
"""Version 1 says "no limit" with a number near 2**63."""

_UNIFIED = ""
"""What /proc/self/cgroup has in place of a controller for the hierarchy of version 2."""


@dataclass(frozen=True, slots=True)
class Group:
    """One group in the hierarchy of one controller."""

    directory: Path
    unified: bool  # version 2


@dataclass(frozen=True, slots=True)
class Cgroup:
    """For each controller the group with the tightest limit; the own one if there is no limit.

    None where the controller is not mounted.
    """

    cpu: Group | None
    memory: Group | None


@dataclass(frozen=True, slots=True)
class Throttling:
    """Cumulative figures of cpu.stat."""

    periods: int | None
    throttled_ns: int | None


def find_cgroup(root: Path = Path("/")) -> Cgroup | None:
    """The groups that bind this process, from /proc/self/cgroup and the mounts under `root`.

    To be found once: cpu.stat is cumulative, so all samples must read that of one group.
    """
    try:
        entries = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return None
    paths = {}
    for entry in entries:
        parts = entry.split(":", 2)
        if len(parts) == 3:
            for controller in parts[1].split(","):
                paths[controller] = parts[2]
    points = _mount_points(mounts)
    cpu = _tightest(_groups(root, points, paths, "cpu"), _quota)
    memory = _tightest(_groups(root, points, paths, "memory"), _limit_bytes)
    return None if cpu is None and memory is None else Cgroup(cpu, memory)


def cpu_quota(group: Cgroup) -> float | None:
    """CPUs that the group may use, None without a limit."""
    return None if group.cpu is None else _quota(group.cpu)


def memory_limit_bytes(group: Cgroup) -> int | None:
    """The tightest limit, None without one."""
    return None if group.memory is None else _limit_bytes(group.memory)


def memory_used_bytes(group: Cgroup) -> int | None:
    """What the group with the tightest limit uses now, page cache included."""
    if group.memory is None:
        return None
    name = "memory.current" if group.memory.unified else "memory.usage_in_bytes"
    text = (_read(group.memory.directory / name) or "").strip()
    return int(text) if text.isdigit() else None


def throttling(group: Cgroup) -> Throttling:
    """How often and how long the group with the tightest quota was held back by it."""
    if group.cpu is None:
        return Throttling(None, None)
    stat = keyed_numbers(_read(group.cpu.directory / "cpu.stat"))
    micro = stat.get("throttled_usec")
    nano = stat.get("throttled_time") if micro is None else micro * 1000
    return Throttling(stat.get("nr_throttled"), nano)


def _tightest(groups: list[Group], limit: Callable[[Group], float | None]) -> Group | None:
    """Of equal limits the one nearest to the process, which comes first."""
    limits = [(found, group) for group in groups if (found := limit(group)) is not None]
    if limits:
        return min(limits, key=lambda pair: pair[0])[1]
    return groups[0] if groups else None


def _quota(group: Group) -> float | None:
    if group.unified:
        fields = (_read(group.directory / "cpu.max") or "").split()
    else:
        fields = [
            (_read(group.directory / "cpu.cfs_quota_us") or "-1").strip(),
            (_read(group.directory / "cpu.cfs_period_us") or "0").strip(),
        ]
    if len(fields) == 2 and fields[0].isdigit() and fields[1].isdigit() and int(fields[1]):
        return int(fields[0]) / int(fields[1])
    return None


def _limit_bytes(group: Group) -> int | None:
    name = "memory.max" if group.unified else "memory.limit_in_bytes"
    text = (_read(group.directory / name) or "").strip()
    return int(text) if text.isdigit() and int(text) < UNLIMITED_BYTES else None


def _mount_points(mounts: list[str]) -> dict[str, tuple[str, str]]:
    """Controller, or _UNIFIED -> mount point, and the group that is its root."""
    points: dict[str, tuple[str, str]] = {}
    for line in mounts:
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2":
            points.setdefault(_UNIFIED, (fields[4], fields[3]))
        elif kind[0] == "cgroup":
            for option in kind[2].split(","):
                points.setdefault(option, (fields[4], fields[3]))
    return points


def _groups(
    root: Path, points: dict[str, tuple[str, str]], paths: dict[str, str], controller: str
) -> list[Group]:
    """The group of this process and its parents up to the mount, nearest first."""
    # A controller that version 1 has taken is not in version 2, whatever files may lie there.
    for name in (controller, _UNIFIED):
        if name in points and name in paths:
            chain = _upwards(root, *points[name], paths[name])
            if chain:
                return [Group(directory, unified=name == _UNIFIED) for directory in chain]
    return []


def _upwards(root: Path, point: str, mounted: str, path: str) -> list[Path]:
    """Directories from the group `path` to the mount point, at which the group `mounted` lies."""
    mount, inside = root / point.lstrip("/"), Path(path)
    if inside.is_relative_to(mounted):
        inside = inside.relative_to(mounted)  # a container sees its own group as the root
    directory = mount / str(inside).lstrip("/")
    if not directory.is_dir():
        directory = mount
    if not directory.is_dir():
        return []
    chain = [directory]
    while chain[-1] != mount and mount in chain[-1].parents:
        chain.append(chain[-1].parent)
    return chain


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
