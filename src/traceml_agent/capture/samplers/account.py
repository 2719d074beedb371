"""Account: what the kernel says the training thread did: ran, or waited for a core.

/proc/self/task/<tid>/schedstat has the nanoseconds on a core and those in the run queue. They are
read 20 times a second in a thread of its own: the agent's first thread may hang in NVML or on a
disk, and then the cause of that would be missing just where it matters.
"""

import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from traceml_agent.capture.samplers.cgroup import cpu_quota, find_cgroup, throttling
from traceml_agent.capture.samplers.proc import ProcFile
from traceml_agent.schema.causes import Sched

if TYPE_CHECKING:
    from traceml_agent.capture.session import Session

LOUD_NS = 5_000_000
"""An interval in which the thread waited so long for a core stands alone. Chosen: a spike is 10 %
of the median step at least, and of steps of 50 ms that is this."""
QUIET_NS = 1_000_000_000
"""Other intervals are joined to 1 s, and once the run is older to a thousandth of its age: a day
leaves some thousands of them."""
AGE_PARTS = 1_000
LOUD_AT_ONCE = 500
"""Loud intervals that may come in a row. Each quiet one gives room for another."""
THREADS_EVERY_NS = 10_000_000_000
"""How often it looks for autograd's threads. Chosen: a list of 500 threads costs 3 ms."""
MOST_THREADS = 512
MOST_AUTOGRAD = 32
WAITING_MOST = 5_000
"""Intervals that wait for the disk."""
AUTOGRAD = "pt_autograd"
"""How the names of autograd's threads begin. Source: torch/csrc/autograd/engine.cpp."""
NO_SCHEDSTAT = "the kernel has no schedstat of threads: waiting for a core is not measured"
NAME_LIMIT = 60


class Reading(NamedTuple):
    """Cumulative figures at one moment."""

    at_ns: int
    run_ns: int
    delay_ns: int
    throttled_ns: int
    others_run_ns: int
    probes: int
    probe_wait_ns: int


class Account:
    """Reads in one thread; `take` may be called in another."""

    def __init__(self, session: "Session", tasks: str = "/proc/self/task") -> None:
        """`tasks`: where the kernel lists the threads of this process."""
        self._session = session
        self._tasks = tasks
        self._owner = 0
        self._native_id = 0
        self._file: ProcFile | None = None
        self._autograd: dict[int, tuple[ProcFile, int]] = {}  # by thread: its delay at the last
        self._look_at = 0
        self._cgroup = find_cgroup()
        quota = None if self._cgroup is None else cpu_quota(self._cgroup)
        self._has_quota = quota is not None
        self._others: dict[int, int] = {}  # other threads of Python: run_ns at the last look
        self._others_look_at = 0
        self._others_run_ns = 0
        self._busiest: str | None = None
        self._begun_ns = 0
        self._opened: Reading | None = None
        self._last: Reading | None = None
        self._autograd_ns = 0
        self._room = LOUD_AT_ONCE
        self.probes = self.probe_wait_ns = 0
        self.source = "schedstat"
        self._closed: deque[tuple[Reading, Reading]] = deque(maxlen=WAITING_MOST)

    def tick(self, *, last: bool = False) -> None:
        """Reads once; closes an interval where there is one to close."""
        owner = self._session.tracker.owner
        if owner != self._owner:
            self._follow(owner)
        now = self._read()
        if now is None:
            self._opened = self._last = None
            return
        opened, before = self._opened, self._last
        if opened is None or before is None:
            self._opened = self._last = now
            self._begun_ns = self._begun_ns or now.at_ns
            return
        is_loud = now.delay_ns - before.delay_ns >= LOUD_NS and self._room > 0
        quiet_ns = max(QUIET_NS, (now.at_ns - self._begun_ns) // AGE_PARTS)
        if is_loud:
            if before.at_ns > opened.at_ns:
                self._closed.append((opened, before))
            self._closed.append((before, now))
            self._room -= 1
            self._opened = now
        elif last or now.at_ns - opened.at_ns >= quiet_ns:
            self._closed.append((opened, now))
            self._room = min(LOUD_AT_ONCE, self._room + 1)
            self._opened = now
        self._last = now

    def take(self) -> list[Sched]:
        """The intervals that were closed since the last call."""
        pairs = [self._closed.popleft() for _ in range(len(self._closed))]
        records: list[Sched] = []
        begin = 0
        for index in range(1, len(pairs) + 1):
            if index == len(pairs) or pairs[index][0].at_ns != pairs[index - 1][1].at_ns:
                records.append(self._record(pairs[begin:index]))
                begin = index
        return records

    def _record(self, pairs: list[tuple[Reading, Reading]]) -> Sched:
        def growth(name: str) -> list[int]:
            return [max(0, getattr(after, name) - getattr(before, name)) for before, after in pairs]

        is_known = self.source == "schedstat"
        return Sched(
            start_ns=pairs[0][0].at_ns,
            source=self.source,
            duration_ns=growth("at_ns"),
            run_ns=growth("run_ns"),
            delay_ns=growth("delay_ns") if is_known else None,
            throttled_ns=growth("throttled_ns") if is_known and self._has_quota else None,
            others_run_ns=growth("others_run_ns"),
            probes=growth("probes"),
            probe_wait_ns=growth("probe_wait_ns"),
            busiest=self._busiest,
        )

    def close(self) -> None:
        """Closes the kept files."""
        for file, _ in self._autograd.values():
            file.close()
        if self._file is not None:
            self._file.close()

    # Reading

    def _follow(self, owner: int) -> None:
        """Another thread trains from now on: its counters are others."""
        self.close()
        self._autograd = {}
        self._owner = owner
        self._opened = self._last = None
        native_id = native_id_of(owner)
        self._native_id = native_id or 0
        self._file = ProcFile(f"{self._tasks}/{native_id}/schedstat")
        self.source = "schedstat" if _schedstat(self._file) is not None else "thread_time"

    def _read(self) -> Reading | None:
        at_ns = time.perf_counter_ns()
        if self.source == "schedstat":
            known = _schedstat(self._file)
            if known is None:
                return None  # the thread has ended
            run_ns, delay_ns = known
            delay_ns += self._autograd_delay(at_ns)
        else:
            cpu_ns = thread_cpu_ns(self._native_id) if self._native_id else None
            if cpu_ns is None:
                return None
            run_ns, delay_ns = cpu_ns, 0
        throttled = 0
        if self._has_quota and self._cgroup is not None:
            throttled = throttling(self._cgroup).throttled_ns or 0
        if at_ns >= self._others_look_at:
            self._others_look_at = at_ns + QUIET_NS
            self._look_at_others()
        return Reading(
            at_ns, run_ns, delay_ns, throttled, self._others_run_ns, self.probes, self.probe_wait_ns
        )

    def _autograd_delay(self, at_ns: int) -> int:
        """What the training thread waited for because autograd's thread waited for a core.

        One of them a device: where several waited at once, the longest wait counts.
        """
        if at_ns >= self._look_at:
            self._look_at = at_ns + THREADS_EVERY_NS
            self._find_autograd()
        longest = 0
        for thread, (file, before) in tuple(self._autograd.items()):
            known = _schedstat(file)
            if known is None:
                file.close()
                del self._autograd[thread]
                continue
            longest = max(longest, known[1] - before)
            self._autograd[thread] = (file, known[1])
        self._autograd_ns += longest
        return self._autograd_ns

    def _find_autograd(self) -> None:
        try:
            threads = os.listdir(self._tasks)[:MOST_THREADS]
        except OSError:
            return
        for name in threads:
            thread = int(name)
            if thread in self._autograd or len(self._autograd) >= MOST_AUTOGRAD:
                continue
            comm = ProcFile(f"{self._tasks}/{name}/comm")
            if (comm.read() or "").startswith(AUTOGRAD):
                file = ProcFile(f"{self._tasks}/{name}/schedstat")
                known = _schedstat(file)
                if known is not None:
                    self._autograd[thread] = (file, known[1])
            comm.close()

    def _look_at_others(self) -> None:
        """CPU time of other threads of Python: they need the interpreter lock too."""
        found: dict[int, int] = {}
        most = 0
        for ident, thread in tuple(getattr(threading, "_active", {}).items())[:MOST_THREADS]:
            name, native_id = thread.name, thread.native_id
            if ident == self._owner or native_id is None or name.startswith("traceml"):
                continue
            run_ns = thread_cpu_ns(native_id)
            if run_ns is None:
                continue
            found[native_id] = run_ns
            growth = run_ns - self._others.get(native_id, run_ns)
            self._others_run_ns += max(0, growth)
            if growth > most:
                most = growth
                self._busiest = _name(name)
        self._others = found


def native_id_of(ident: int) -> int | None:
    """The kernel's name for a thread of Python; None of one that `threading` does not know."""
    thread = getattr(threading, "_active", {}).get(ident)  # without the lock of `enumerate`
    found: int | None = getattr(thread, "native_id", None)
    return found


def thread_cpu_ns(native_id: int) -> int | None:
    """CPU time of a thread of this process; None where it has ended or cannot be asked.

    The clock is that of pthread_getcpuclockid(3), which must not be asked for a thread that ended.
    Source of its number: CPUCLOCK_SCHED and CPUCLOCK_PERTHREAD_MASK of the Linux kernel.
    """
    try:
        return time.clock_gettime_ns(~native_id << 3 | 6)
    except (OSError, OverflowError, AttributeError):
        return None


def _schedstat(file: ProcFile | None) -> tuple[int, int] | None:
    """Nanoseconds on a core and in the run queue."""
    fields = "" if file is None else file.read()
    parts = (fields or "").split()
    return (int(parts[0]), int(parts[1])) if len(parts) > 1 else None


def _name(name: str) -> str:
    from traceml_agent.redact import own_secrets, printable, redact

    return printable(redact(name, own_secrets()))[:NAME_LIMIT]
