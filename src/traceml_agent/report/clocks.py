"""How far the wall clocks of the machines of a run are apart, from the ends of common steps.

Ranks that synchronise in each step cannot finish it before every other one has begun it. Over many
steps this bounds the offset between two clocks from both sides (causality); what ends at nearly
the same moment estimates it within these bounds. Ranks that do not synchronise drift apart by more
than a step, the bounds cross, and the offset stays unknown. Only the time line uses it, no
duration does.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from traceml_agent.report.membership import Attempt, Life, anchors_of, machine_of
from traceml_agent.report.series import RankSeries
from traceml_agent.report.stats import Column, middle, subtracted, sum_columns

LEAST_STEPS = 20
"""Common steps below which nothing is estimated. Source: as for all that is said to be certain."""
MOST_STEPS = 2000
"""Chosen: more of them narrow the bounds no further than a quick step is long."""


@dataclass(frozen=True, slots=True)
class Clock:
    """The wall clock of a machine against the one of the reference machine."""

    machine: str
    hostname: str
    offset_ns: int | None  # to subtract; None: unknown
    error_ns: int | None  # the true offset lies within this of `offset_ns`
    steps: int  # common steps that say so


def clocks_of(attempt: Attempt, series: dict[int, RankSeries]) -> list[Clock]:
    """One clock a machine, that of the lowest rank first: it is the reference, with offset 0."""
    leads: dict[str, Life] = {}
    for rank in sorted(attempt.lives):
        life = attempt.lives[rank]
        known = leads.get(life.machine)
        if known is None or (not series[known.rank].steps and series[rank].steps):
            leads[life.machine] = life
    found: list[Clock] = []
    anchors = anchors_of(life.spool for life in attempt.lives.values())
    reference: Life | None = None
    for machine, lead in leads.items():
        hostname = lead.spool.header.hostname
        if reference is None:
            reference = lead
            found.append(Clock(machine, hostname, 0, 0, len(series[lead.rank].steps)))
            continue
        shift = anchors[machine] - anchors[machine_of(reference.spool.header)]
        offset, error, steps = _offset(series[reference.rank], series[lead.rank])
        known_offset = None if offset is None else offset + shift
        found.append(Clock(machine, hostname, known_offset, error, steps))
    return found


def _offset(one: RankSeries, other: RankSeries) -> tuple[int | None, int | None, int]:
    """Of the other clock against the first one, its error, and the number of common steps."""
    at, at_other = _common(one.steps, other.steps)
    if len(at) < LEAST_STEPS:
        return None, None, len(at)
    begins, ends = _times(one, at)
    other_begins, other_ends = _times(other, at_other)
    low = max(subtracted(other_begins, ends))
    high = min(subtracted(other_ends, begins))
    if low > high:
        return None, None, len(at)
    estimate = min(high, max(low, int(middle(subtracted(other_ends, ends)) or 0)))
    return estimate, max(estimate - low, high - estimate), len(at)


def _common(steps: Sequence[int], others: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    """Where the steps that are in both stand in each."""
    if steps == others:
        return range(len(steps)), range(len(steps))
    position = {step: at for at, step in enumerate(steps)}
    pairs = [(position[step], at) for at, step in enumerate(others) if step in position]
    return [a for a, _ in pairs], [b for _, b in pairs]


def _times(series: RankSeries, at: Sequence[int]) -> tuple[Column, Column]:
    """Begins and ends of these steps, of every n-th where they are many."""
    chosen = at[:: -(-len(at) // MOST_STEPS)]
    begins = array("q", [series.start_ns[index] for index in chosen])
    durations = array("q", [series.duration_ns[index] for index in chosen])
    return begins, sum_columns([begins, durations])
