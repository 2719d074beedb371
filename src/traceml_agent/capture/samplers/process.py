"""Samples the training process: memory, CPU, IO, context switches, page faults."""

import os
from collections.abc import Callable
from typing import Any

from traceml_agent.capture.samplers.proc import ProcFile, keyed_numbers
from traceml_agent.schema.records import DeviceMemory, ProcessSample

# Fields of /proc/self/stat after the command name, counted from 0; see proc(5).
_MINOR_FAULTS, _MAJOR_FAULTS, _USER_TICKS, _SYSTEM_TICKS, _THREADS = 7, 9, 11, 12, 17


class ProcessSampler:
    """Reads the counters of this process; where there is no /proc, those that psutil has."""

    def __init__(
        self,
        training_thread_native_id: int | None,
        device_memory: Callable[[], list[DeviceMemory] | None],
        workers_memory: Callable[[], int | None],
    ) -> None:
        self._device_memory = device_memory
        self._workers_memory = workers_memory
        self._tick_ns = 10**9 // os.sysconf("SC_CLK_TCK")
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")
        self._stat = ProcFile("/proc/self/stat")
        self._statm = ProcFile("/proc/self/statm")
        self._io = ProcFile("/proc/self/io")
        thread = training_thread_native_id or os.getpid()
        self._status = ProcFile(f"/proc/self/task/{thread}/status")
        self._schedstat = ProcFile(f"/proc/self/task/{thread}/schedstat")
        self._fallback = None if self._stat.read() else _portable_process()

    def sample(self, monotonic_ns: int, step: int) -> ProcessSample:
        """The counters now; `step` is the last closed step."""
        if self._fallback is not None:
            return self._portable(self._fallback, monotonic_ns, step)
        stat = (self._stat.read() or "").rpartition(")")[2].split()
        numbers = [int(field) for field in stat[1:20]] if len(stat) >= 20 else None
        pages = (self._statm.read() or "").split()
        io = keyed_numbers(self._io.read())
        # Switches of the training thread: those of the loader threads would drown them.
        status = keyed_numbers(self._status.read())
        schedstat = (self._schedstat.read() or "").split()
        return ProcessSample(
            monotonic_ns=monotonic_ns,
            step=step,
            rss_bytes=int(pages[1]) * self._page_bytes if len(pages) > 1 else None,
            cpu_ns=None
            if numbers is None
            else (numbers[_USER_TICKS - 1] + numbers[_SYSTEM_TICKS - 1]) * self._tick_ns,
            threads=None if numbers is None else numbers[_THREADS - 1],
            read_bytes=io.get("read_bytes"),
            write_bytes=io.get("write_bytes"),
            voluntary_switches=status.get("voluntary_ctxt_switches"),
            involuntary_switches=status.get("nonvoluntary_ctxt_switches"),
            minor_faults=None if numbers is None else numbers[_MINOR_FAULTS - 1],
            major_faults=None if numbers is None else numbers[_MAJOR_FAULTS - 1],
            run_delay_ns=int(schedstat[1]) if len(schedstat) > 1 else None,
            devices=self._device_memory(),
            kernel_ns=None if numbers is None else numbers[_SYSTEM_TICKS - 1] * self._tick_ns,
            workers_grown_bytes=self._workers_memory(),
        )

    def _portable(self, process: Any, monotonic_ns: int, step: int) -> ProcessSample:
        import psutil

        try:
            with process.oneshot():
                times = process.cpu_times()
                return ProcessSample(
                    monotonic_ns=monotonic_ns,
                    step=step,
                    rss_bytes=process.memory_info().rss,
                    cpu_ns=int((times.user + times.system) * 1e9),
                    threads=process.num_threads(),
                    devices=self._device_memory(),
                    kernel_ns=int(times.system * 1e9),
                    workers_grown_bytes=self._workers_memory(),
                )
        except psutil.Error:
            return ProcessSample(monotonic_ns, step, None, None, None)

    def close(self) -> None:
        """Closes the kept files."""
        for file in (self._stat, self._statm, self._io, self._status, self._schedstat):
            file.close()


def _portable_process() -> Any:
    # Only where it is needed: its import brings modules in that a program may have its own of.
    import psutil

    return psutil.Process()
