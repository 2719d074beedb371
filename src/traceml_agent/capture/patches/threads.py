"""Looks at how many threads torch computes with: in the training thread, since each has its own."""

import os
import time
from typing import Any

from traceml_agent.capture.session import SESSION


def install(torch: Any) -> str:
    """Looks when the agent looks at what is not told: seldom, between two steps."""
    count_threads = torch.get_num_threads
    told: list[int] = []

    def look(_at_end: bool) -> Any:
        from traceml_agent.schema.records import THREADS_EVENT, Event

        threads = count_threads()
        if told and told[-1] == threads:
            return []
        told[:] = [threads]
        detail: dict[str, str | int | float | None] = {"torch": threads}
        asked = os.environ.get("OMP_NUM_THREADS", "")
        if asked.isascii() and asked.isdecimal() and len(asked) < 6:
            detail["omp"] = int(asked)
        step = SESSION.tracker.step + 1
        return [Event(THREADS_EVENT, time.perf_counter_ns(), None, step, detail)]

    SESSION.looks["threads"] = look
    return "active"
