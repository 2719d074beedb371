"""What the rules about causes look at, and the words in which they say it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from traceml_agent.report.account import Facts
from traceml_agent.report.diagnose.issue import Cost, Place
from traceml_agent.report.spikes import UNEXPLAINED, Periodic, Spike
from traceml_agent.report.trend import Trend
from traceml_agent.schema.records import Event

CRIT = 0.20
"""Share of the time in steps. Source: the step-time policy of the summary contract."""
DOMINANT = 0.5
"""Of a sum: what has this share of it is named."""


CAUSES = {
    "gc": "garbage collection",
    "throttled": "throttling by the CPU quota",
    "contention": "waiting for a core",
    "checkpoint": "saving a checkpoint",
    "eval": "evaluation",
    "compile": "compilation",
    "recompile": "compiling again",
    "logging": "logging",
    "input": "waiting for input",
    "stopped": "the process stood still",
    UNEXPLAINED: "unexplained",
}
"""Causes for people."""


@dataclass(frozen=True, slots=True)
class Lost:
    """What one cause took of the window, on the rank that lost most to it."""

    cause: str
    rank: int
    ms_per_step: float
    share: float
    run_s: float | None
    within: str | None
    steps: int  # in which it took something
    events: tuple[Event, ...]

    @property
    def cost(self) -> Cost:
        """The same as the cost of a finding."""
        return Cost(self.ms_per_step, self.share, self.run_s)


@dataclass(frozen=True, slots=True)
class Regular:
    """Periodic spikes, the cause of them, and its place if its events name one."""

    periodic: Periodic
    cause: str
    follows: bool  # the rank itself only waits for the one that has the cause
    at: tuple[str, str | None] | None  # "train.py:71", and the call there

    def to_json(self) -> dict[str, Any]:
        """The entry in the summary."""
        found, steps = self.periodic, self.periodic.steps
        return {
            "cause": found.cause,
            "rank": found.rank,
            "every": found.every,
            "mean_excess_ms": found.mean_excess_ns / 1e6,
            "count": len(steps),
            "first_step": steps[0],
            "last_step": steps[-1],
            "at": None if self.at is None else self.at[0],
            "call": None if self.at is None else self.at[1],
        }


@dataclass(frozen=True, slots=True)
class Seen:
    """All that the rules look at."""

    losses: dict[str, Lost]
    regular: Sequence[Regular]
    spikes: Sequence[Spike]
    spike_share: float
    largest_share: float  # of it, the largest spike
    trend: Trend | None
    trend_by: tuple[str, float] | None  # cause, and how many ms a step of the change it is
    facts: Facts
    steps: int
    step_ms: float
    compiled: Sequence[Event]


def common_place(events: Sequence[Event]) -> Place | None:
    """The place that most of the time of the events names; None if it is less than half."""
    times: dict[str, int] = {}
    for event in events:
        at = event.detail.get("at")
        if isinstance(at, str):
            times[at] = times.get(at, 0) + _stands_for(event)
    whole = sum(map(_stands_for, events))
    if not times:
        return None
    best = max(times, key=lambda at: times[at])
    return place_of(best, "") if times[best] >= DOMINANT * whole else None


def _stands_for(event: Event) -> int:
    """Its time, with that of the events that were too short to be noted."""
    gathered = event.detail.get("sum_ns")
    return gathered if isinstance(gathered, int) else event.duration_ns or 0


def place_of(at: str, function: str) -> Place | None:
    """The place of `file:line`."""
    file, _, line = at.rpartition(":")
    is_number = line.isascii() and line.isdecimal() and len(line) < 10
    return Place(file, int(line), function) if file and is_number else None


def name_of(place: Place) -> str:
    """`train.py:71`."""
    return f"{place.file.replace(chr(92), '/').rpartition('/')[2]}:{place.line}"


def in_ms(value: float) -> str:
    """Milliseconds for people."""
    if value >= 1000:
        return f"{value / 1000:.1f} s"
    return f"{value:.2f} ms" if value < 10 else f"{value:.0f} ms"


def in_percent(value: float) -> str:
    """A share for people."""
    return f"{value:.1%}" if value < 0.1 else f"{value:.0%}"
