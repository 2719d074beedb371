"""A job of several ranks whose first step does not come: the watch begins without it.

A thread may exist from `init_process_group` on and not before: Python warns of a fork in a process
that has threads, and from that call on c10d has some of its own.
docs/decisions/0008-first-step.md says what is left out for that.
"""

import os
import sys
import threading
import time
from typing import TYPE_CHECKING

from traceml_agent.guard import guarded

if TYPE_CHECKING:
    from traceml_agent.capture.session import Session

TICK_S = 0.5
LATE_NS = 5_000_000_000
"""A sleep that took so much longer: the process was stopped, which is no time of waiting."""


def expect_first_step(session: "Session") -> None:
    """Starts to wait for the first step, once in a process; called in the thread that trains."""
    if session.expects_step or session.recorder is not None or not session.config.hang_s:
        return
    session.expects_step = True
    begun_ns = time.perf_counter_ns()
    threading.Thread(
        target=guarded,
        args=("first step", lambda: _wait(session, begun_ns)),
        name="traceml-first-step",
        daemon=True,
    ).start()


def _wait(session: "Session", begun_ns: int) -> None:
    """Opens the recorder, and lets its watch begin, if no step was closed for long."""
    floor_ns = int(session.config.hang_s * 1e9)
    pid = os.getpid()
    before = time.perf_counter_ns()
    was_member = False
    while session.pid == pid:
        recorder = session.recorder
        is_member = _is_member()
        if (recorder is not None and recorder.last_step) or (was_member and not is_member):
            session.expects_step = False
            return
        was_member = was_member or is_member
        now = time.perf_counter_ns()
        late_ns = now - before - int(TICK_S * 1e9)
        if late_ns > LATE_NS:
            begun_ns += late_ns
        if now - begun_ns >= floor_ns:
            break
        before = now
        time.sleep(min(TICK_S, session.config.hang_s / 4))
    if session.pid == pid and not _parent_trains(session):
        session.begin_without_step(begun_ns)


def _is_member() -> bool:
    """Whether there is a process group: when all are destroyed, their threads are gone too."""
    module = sys.modules.get("torch.distributed.distributed_c10d")
    return bool(getattr(getattr(module, "_world", None), "pg_map", None))


def _parent_trains(session: "Session") -> bool:
    """Whether this is a child of a training, as one that writes its checkpoints: no rank."""
    process = sys.modules.get("multiprocessing.process")
    if process is None or process.parent_process() is None:
        return False
    from traceml_agent.capture.nothing import headers

    return any(header.get("pid") == session.parent_pid for _, header in headers())
