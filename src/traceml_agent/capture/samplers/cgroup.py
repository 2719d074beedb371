"""The control group of this process: limits of CPU and memory, and how often it was throttled.

Knows version 1, version 2 and the hybrid of both. A limit may stand in any parent, so the
tightest one on the way up to the mount counts.
"""

from dataclasses import dataclass
from pathlib import Path

from traceml_agent.capture.samplers.proc import keyed_numbers

UNLIMITED_BYTES = 1 << 60
"""Version 1 says "no limit" with a number near 2**63."""


@dataclass(frozen=True, slots=True)
class Cgroup:
    """Directories of the group in each hierarchy; None where that controller is not mounted."""

    cpu: Path | None
    memory: Path | None
    cpu_mount: Path | None
    memory_mount: Path | None
    unified: bool  # version 2


@dataclass(frozen=True, slots=True)
class Throttling:
    """Cumulative figures of cpu.stat."""

    periods: int | None
    throttled_ns: int | None


def find_cgroup(root: Path = Path("/")) -> Cgroup | None:
    """The group of this process, from /proc/self/cgroup and the mounts under `root`."""
    try:
        entries = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return None
    groups = {}
    for entry in entries:
        parts = entry.split(":", 2)
        if len(parts) == 3:
            for controller in parts[1].split(","):
                groups[controller] = parts[2]
    points = _mount_points(mounts)
    cpu = _locate(root, points, groups, "cpu")
    memory = _locate(root, points, groups, "memory")
    if cpu is None and memory is None:
        both = _locate(root, points, groups, "")
        if both is None:
            return None
        return Cgroup(both[0], both[0], both[1], both[1], unified=True)
    return Cgroup(
        cpu[0] if cpu else None,
        memory[0] if memory else None,
        cpu[1] if cpu else None,
        memory[1] if memory else None,
        unified=False,
    )


def cpu_quota(group: Cgroup) -> float | None:
    """CPUs that the group may use, None without a limit."""
    quotas = []
    for directory in _upwards(group.cpu, group.cpu_mount):
        if group.unified:
            fields = (_read(directory / "cpu.max") or "").split()
        else:
            fields = [
                (_read(directory / "cpu.cfs_quota_us") or "-1").strip(),
                (_read(directory / "cpu.cfs_period_us") or "0").strip(),
            ]
        if len(fields) == 2 and fields[0].isdigit() and fields[1].isdigit() and int(fields[1]):
            quotas.append(int(fields[0]) / int(fields[1]))
    return min(quotas, default=None)


def memory_limit_bytes(group: Cgroup) -> int | None:
    """The tightest limit, None without one."""
    name = "memory.max" if group.unified else "memory.limit_in_bytes"
    limits = []
    for directory in _upwards(group.memory, group.memory_mount):
        text = (_read(directory / name) or "").strip()
        if text.isdigit() and int(text) < UNLIMITED_BYTES:
            limits.append(int(text))
    return min(limits, default=None)


def memory_used_bytes(group: Cgroup) -> int | None:
    """What the group uses now, page cache included."""
    if group.memory is None:
        return None
    name = "memory.current" if group.unified else "memory.usage_in_bytes"
    text = (_read(group.memory / name) or "").strip()
    return int(text) if text.isdigit() else None


def throttling(group: Cgroup) -> Throttling:
    """How often and how long the group was held back by its quota."""
    if group.cpu is None:
        return Throttling(None, None)
    stat = keyed_numbers(_read(group.cpu / "cpu.stat"))
    micro = stat.get("throttled_usec")
    nano = stat.get("throttled_time") if micro is None else micro * 1000
    return Throttling(stat.get("nr_throttled"), nano)


def _mount_points(mounts: list[str]) -> dict[str, tuple[str, str]]:
    """Controller ("" for version 2) -> mount point, and the group that is its root."""
    points: dict[str, tuple[str, str]] = {}
    for line in mounts:
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2":
            points.setdefault("", (fields[4], fields[3]))
        elif kind[0] == "cgroup":
            for option in kind[2].split(","):
                points.setdefault(option, (fields[4], fields[3]))
    return points


def _locate(
    root: Path, points: dict[str, tuple[str, str]], groups: dict[str, str], controller: str
) -> tuple[Path, Path] | None:
    if controller not in points or controller not in groups:
        return None
    point, mounted = points[controller]
    inside = groups[controller]
    if mounted != "/" and inside.startswith(mounted):
        inside = inside[len(mounted) :]  # a container sees its own group as the root
    mount = root / point.lstrip("/")
    directory = mount / inside.lstrip("/")
    if directory.is_dir():
        return directory, mount
    return (mount, mount) if mount.is_dir() else None


def _upwards(directory: Path | None, mount: Path | None) -> list[Path]:
    if directory is None or mount is None:
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
