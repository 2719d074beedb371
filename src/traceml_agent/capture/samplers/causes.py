"""CauseWatch: what takes time from the training thread beside its own work.

It is a guest in the thread that samples lines, which wakes up as often and knows how long it waited
for the interpreter lock; where that does not run, it has a thread of its own. To wake up is what
costs most.

Nothing is written there: the agent's first thread takes what was found when it next writes.
"""

import contextlib
import threading
import time
from typing import TYPE_CHECKING

from traceml_agent.capture.frames import why_unsafe
from traceml_agent.capture.gc_watch import REMOVED, GcWatch
from traceml_agent.capture.samplers.account import NO_SCHEDSTAT, Account
from traceml_agent.capture.samplers.dynamo import DynamoWatch
from traceml_agent.capture.samplers.proc import ProcFile
from traceml_agent.guard import FAULT_LIMIT, guard, guarded, is_off

if TYPE_CHECKING:
    from traceml_agent.capture.recorder import Recorder
    from traceml_agent.capture.session import Session
    from traceml_agent.schema.records import Record

TICK_S = 0.05
"""20 readings a second. Chosen: 50 us each, so 0.1 % of a core."""
STOOD_NS = 1_000_000_000
"""Woken so much later the process stood still: that says nothing about the interpreter lock."""
GUEST_HZ = 10.0
"""Below, samples are too far apart to tell in which step the training thread waited. Chosen."""
JOIN_S = 0.2
GC, SCHED = "gc", "sched"


class CauseWatch:
    """Started at the first step that closes, stopped at exit."""

    def __init__(self, session: "Session", recorder: "Recorder") -> None:
        self._session = session
        self._recorder = recorder
        skip = session.config.skip
        self._gc = None if GC in skip else GcWatch(session.tracker)
        self._account = None if SCHED in skip else Account(session)
        self._dynamo = DynamoWatch(session)
        hz = session.config.stack_hz
        self.is_guest = hz >= GUEST_HZ and "stacks" not in skip and why_unsafe() is None
        self._status: str | None = None
        self._is_started = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traceml-causes", daemon=True)
        for name in (GC, SCHED):
            if name in skip:
                session.set_status(name, "skipped by TRACEML_SKIP")

    def start(self) -> None:
        """Starts to watch; a second call does nothing."""
        if self._is_started:
            return
        self._is_started = True
        if self._gc is not None:
            self._gc.start()
            self._session.set_status(GC, "active")
        if self._account is not None and self.is_guest:
            self._session.set_status(SCHED, "active")
        elif self._account is not None:
            with contextlib.suppress(RuntimeError):  # no thread can be started any more
                self._thread.start()
        self._recorder.suppliers.append(self._take)

    def collected_since(self, moment: int) -> int:
        """Nanoseconds of the last garbage collection that lie behind this moment."""
        return 0 if self._gc is None else self._gc.since(moment)

    def stop(self) -> None:
        """Ends with a last reading."""
        self._stop.set()
        if self._gc is not None:
            self._gc.stop()
        if self._thread.is_alive():
            self._thread.join(JOIN_S)
        self._dynamo.hurry()

    def _take(self) -> "list[Record]":
        """In the thread that writes."""
        records: list[Record] = []
        with guard("take gc"):
            if self._gc is not None:
                records += self._gc.take()
                if self._gc.was_removed():
                    self._session.set_status(GC, REMOVED)
        with guard("take sched"):
            if self._account is not None:
                records += self._account.take()
        with guard("take dynamo"):
            records += self._dynamo.take()
        return records

    def _run(self) -> None:
        own = ProcFile(f"/proc/self/task/{threading.get_native_id()}/schedstat")
        waited_ns = 0
        while not is_off(SCHED):
            self.look(waited_ns)
            delayed = _delay_ns(own)
            wake_at = time.perf_counter_ns() + int(TICK_S * 1e9)
            if self._stop.wait(TICK_S):
                break
            waited_ns = time.perf_counter_ns() - wake_at - (_delay_ns(own) - delayed)
        self.end()
        own.close()

    def look(self, waited_ns: int) -> None:
        """A reading, in the thread that takes them, which waited so long for the interpreter lock
        when it woke up."""
        account = self._account
        if account is None or is_off(SCHED):
            return
        if waited_ns < STOOD_NS:
            account.probes += 1
            account.probe_wait_ns += max(0, waited_ns)
        guarded(SCHED, account.tick)
        found = "active" if account.source == "schedstat" else NO_SCHEDSTAT
        if found != self._status:
            self._status = found
            self._session.set_status(SCHED, found)
        if not self.is_guest:
            self._recorder.other_threads_cpu_ns[SCHED] = time.thread_time_ns()

    def end(self) -> None:
        """The last reading, in that thread."""
        account = self._account
        if account is None:
            return
        if is_off(SCHED):
            self._session.set_status(SCHED, f"switched off after {FAULT_LIMIT} faults")
        guarded(SCHED, lambda: account.tick(last=True))
        guarded("close sched", account.close)


def _delay_ns(file: ProcFile) -> int:
    """How long the own thread has waited for a core."""
    fields = (file.read() or "").split()
    return int(fields[1]) if len(fields) > 1 else 0
