"""What the agent's own code costs on this machine: the basis of the reported overhead.

Measured once, when recording starts, on a tracker of its own. A loop as tight as this finds all
code and data in the caches of the processor; between two tensor operations it does not, and the
patches around the tracker come on top. The factor for both was measured by putting the patches in
and out inside one process (docs/overhead.md).
"""

import time
from collections.abc import Callable

from traceml_agent.capture.segment import Segment
from traceml_agent.capture.steps import StepTracker

ROUNDS = 5
STEPS_A_ROUND = 20
PHASES_A_STEP = 4
COLD_FACTOR = 7.0
"""Cost of a patch between tensor operations over cost of its tracker in a tight loop: 6.4 to 8.4 in
five runs. Source: tests/overhead/paired.py."""


def phase_cost_ns(close_step: Callable[[int, int, int, Segment, int], None]) -> int:
    """Nanoseconds for one phase of a step, its share of closing the step included."""
    tracker = StepTracker(0, _nothing, close_step)
    best = 1 << 62
    for _ in range(ROUNDS):
        begun = time.perf_counter_ns()
        for _ in range(STEPS_A_ROUND):
            tracker.begin_fetch(1)
            tracker.end_fetch(1)
            previous = tracker.enter(2)
            tracker.end_forward(previous, True)
            previous = tracker.begin_backward()
            tracker.end_backward(previous)
            tracker.begin_update(1)
            tracker.end_update()
        best = min(best, time.perf_counter_ns() - begun)
    return int(COLD_FACTOR * best / (STEPS_A_ROUND * PHASES_A_STEP))


def _nothing() -> None:
    pass


def discard_step(
    step: int, start_ns: int, duration_ns: int, measured: Segment, micro_batches: int
) -> None:
    """Takes a step and does nothing with it."""
