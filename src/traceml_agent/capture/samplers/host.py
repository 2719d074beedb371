"""Samples the host: CPU, memory, pressure, and the limits of the control group."""

import os

from traceml_agent.capture.samplers.cgroup import (
    Throttling,
    cpu_quota,
    find_cgroup,
    memory_limit_bytes,
    memory_used_bytes,
    throttling,
)
from traceml_agent.capture.samplers.proc import ProcFile, keyed_numbers
from traceml_agent.schema.records import HostSample


class HostSampler:
    """Reads /proc and the control group; where there is no /proc, what psutil has."""

    def __init__(self) -> None:
        self._stat = ProcFile("/proc/stat")
        self._meminfo = ProcFile("/proc/meminfo")
        self._pressure = {
            name: ProcFile(f"/proc/pressure/{name}") for name in ("cpu", "memory", "io")
        }
        self._cgroup = find_cgroup()
        quota = None if self._cgroup is None else cpu_quota(self._cgroup)
        self._usable_cpus = _usable_cpus(quota)
        self._limit_bytes = None if self._cgroup is None else memory_limit_bytes(self._cgroup)
        self._cpu_count = os.cpu_count()
        self._before = self._cpu_ticks()

    def sample(self, monotonic_ns: int) -> HostSample:
        """The figures now; CPU in percent of all cores since the previous sample."""
        total, available = self._memory()
        group = self._cgroup
        held = Throttling(None, None) if group is None else throttling(group)
        return HostSample(
            monotonic_ns=monotonic_ns,
            cpu_percent=self._cpu_percent(),
            cpu_count=self._cpu_count,
            usable_cpus=self._usable_cpus,
            memory_total_bytes=total,
            memory_used_bytes=None if total is None or available is None else total - available,
            memory_limit_bytes=self._limit_bytes,
            memory_cgroup_bytes=None if group is None else memory_used_bytes(group),
            load_1m=_load(),
            throttled_periods=held.periods,
            throttled_ns=held.throttled_ns,
            pressure_cpu_percent=_some_avg10(self._pressure["cpu"].read()),
            pressure_memory_percent=_some_avg10(self._pressure["memory"].read()),
            pressure_io_percent=_some_avg10(self._pressure["io"].read()),
        )

    def _cpu_ticks(self) -> tuple[int, int] | None:
        """All ticks, and the idle ones (waiting for IO is idle)."""
        first = (self._stat.read() or "").partition("\n")[0].split()
        if len(first) < 6 or first[0] != "cpu":
            return None
        ticks = [int(field) for field in first[1:9]]
        return sum(ticks), ticks[3] + ticks[4]

    def _cpu_percent(self) -> float | None:
        before, self._before = self._before, self._cpu_ticks()
        if self._before is None:
            import psutil

            return float(psutil.cpu_percent())
        if before is None or self._before[0] <= before[0]:
            return None
        passed = self._before[0] - before[0]
        return round(100 * (1 - (self._before[1] - before[1]) / passed), 2)

    def _memory(self) -> tuple[int | None, int | None]:
        numbers = keyed_numbers(self._meminfo.read())
        if "MemTotal" in numbers and "MemAvailable" in numbers:
            return numbers["MemTotal"] * 1024, numbers["MemAvailable"] * 1024
        import psutil

        try:
            memory = psutil.virtual_memory()
        except (psutil.Error, OSError):
            return None, None
        return int(memory.total), int(memory.available)

    def close(self) -> None:
        """Closes the kept files."""
        for file in (self._stat, self._meminfo, *self._pressure.values()):
            file.close()


def _usable_cpus(quota: float | None) -> float | None:
    """CPUs of the affinity mask or of the quota, whichever is fewer."""
    try:
        allowed: float | None = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # no affinity on this platform
        allowed = os.cpu_count()
    if quota is None or allowed is None:
        return allowed if quota is None else quota
    return min(quota, allowed)


def _load() -> float | None:
    try:
        return os.getloadavg()[0]
    except OSError:
        return None


def _some_avg10(text: str | None) -> float | None:
    """Share of the last 10 s in which some task waited, in percent."""
    for line in (text or "").splitlines():
        if line.startswith("some "):
            for field in line.split():
                name, _, value = field.partition("=")
                if name == "avg10":
                    try:
                        return float(value)
                    except ValueError:
                        return None
    return None
