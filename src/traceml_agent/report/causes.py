"""Losses by cause: what took time of each step of a rank beside its own work.

Exact: garbage collections, checkpoints, evaluations, compilations, logging, stops of the process,
waiting for input. Waiting for a core is known by intervals of the kernel's account,
exact as a sum; where an interval spans several steps, those get it that took longer than their
neighbours.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from traceml_agent.report.losses import Loss
from traceml_agent.report.series import RankSeries
from traceml_agent.report.spikes import baseline_of
from traceml_agent.report.stats import Column, differences, sum_columns, total
from traceml_agent.report.view import RankView
from traceml_agent.schema.records import Event

EXACT_PHASES = ("checkpoint", "eval", "compile", "logging")
"""Phases that are a cause of their own."""
PRIORITY = (
    "stopped", "gc", "checkpoint", "eval", "recompile", "compile", "logging", "throttled",
    "contention", "input",
)  # fmt: skip
"""Which cause a spike is first given to: what is measured exactly, then what contains others."""
LOUD_NS = 5_000_000
"""A shorter wait in an interval makes no spike, and is spread. Source: that of the account."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A stretch of time in which a thread waited."""

    begin_ns: int
    end_ns: int
    amount_ns: int


def losses_of(rank: RankView) -> list[Loss]:
    """What each cause took of each step, in the order of PRIORITY; causes that took nothing are
    left out."""
    series = rank.series
    if not series.steps:
        return []
    found: dict[str, Column] = {}
    within: dict[str, str | None] = {}
    columns = {name: series.phase_ns[name] for name in (*EXACT_PHASES, "input_wait")}
    # Of another thread the training thread feels a collection only where it needs the lock then.
    collections = [
        event
        for event in rank.spool.events
        if event.name == "gc" and event.duration_ns and event.detail.get("thread") is None
    ]
    # What is collected while Dynamo compiles is its own garbage.
    pauses = [event for event in collections if event.detail.get("phase") != "compile"]
    _take_out_gc(columns, series, pauses)
    found["stopped"] = _of_events(series, (e for e in rank.spool.events if e.name == "pause"))
    found["gc"], within["gc"] = _of_gc(rank, pauses, collections), _phase_of(pauses)
    for name in EXACT_PHASES:
        found[name] = columns[name] or ()
        within[name] = name
    found["recompile"] = _recompiled(rank, found["compile"])
    within["recompile"] = "compile"
    if found["recompile"]:
        found["compile"] = differences(found["compile"], found["recompile"])
    throttled, contended = _waits(rank)
    if throttled or contended:
        known = [c for name, c in found.items() if c]
        explained = sum_columns(known) if known else array("q", bytes(8 * len(series.steps)))
        excess = _excess(series, explained)
        found["throttled"] = _poured(series, throttled, excess)
        if found["throttled"]:
            excess = differences(excess, found["throttled"])
        found["contention"] = _poured(series, contended, excess)
    found["input"] = columns["input_wait"] or ()
    within["input"] = "input_wait"
    return [
        Loss(cause, rank.rank, column, within.get(cause))
        for cause in PRIORITY
        if any(column := found.get(cause, ()))
    ]


# Events


def steps_over(series: RankSeries, begin_ns: int, end_ns: int) -> Iterator[tuple[int, int]]:
    """Indices of the steps that a stretch of time touches, each with the nanoseconds in it."""
    starts, durations = series.start_ns, series.duration_ns
    index = max(0, bisect_right(starts, begin_ns) - 1)
    while index < len(starts) and starts[index] < end_ns:
        end = starts[index] + durations[index]
        overlap = min(end, end_ns) - max(starts[index], begin_ns)
        if overlap > 0:
            yield index, overlap
        index += 1


def _of_events(series: RankSeries, events: Iterable[Event]) -> Column:
    """What the events took of each step; nothing where there are none."""
    lost: array[int] | None = None
    for event in events:
        for index, overlap in steps_over(
            series, event.monotonic_ns, event.monotonic_ns + (event.duration_ns or 0)
        ):
            if lost is None:
                lost = array("q", bytes(8 * len(series.steps)))
            lost[index] = min(lost[index] + overlap, series.duration_ns[index])
    return () if lost is None else lost


def _of_gc(rank: RankView, pauses: list[Event], known: list[Event]) -> Column:
    """Pauses by their time; what the exact sum has beyond those that are known one by one is spread
    over all steps alike."""
    series, sums = rank.series, rank.spool.gc
    lost = _of_events(series, pauses)
    rest = 0 if sums is None else sum(sums.duration_ns) - sum(e.duration_ns or 0 for e in known)
    done = rank.sums
    each = rest // max(1, done.count if done is not None else len(series.steps))
    if each <= 0:
        return lost
    pauses_ns = lost or [0] * len(series.steps)
    return array("q", map(min, [ns + each for ns in pauses_ns], series.duration_ns))


def _take_out_gc(
    columns: dict[str, Sequence[int] | None], series: RankSeries, pauses: list[Event]
) -> None:
    """A collection inside a phase is no cost of that phase."""
    for name, column in columns.items():
        inside = [e for e in pauses if e.detail.get("phase") == name]
        if inside and column is not None and (taken := _of_events(series, inside)):
            columns[name] = differences(column, taken)


def _phase_of(pauses: list[Event]) -> str | None:
    """The phase in which most of the time of the pauses lies; None: in none."""
    times: dict[str | None, int] = {}
    for event in pauses:
        phase = event.detail.get("phase")
        name = phase if isinstance(phase, str) else None
        times[name] = times.get(name, 0) + (event.duration_ns or 0)
    return max(times, key=lambda name: times[name]) if times else None


def compile_events(rank: RankView) -> list[Event]:
    """The compilations that were timed."""
    return [e for e in rank.spool.events if e.name == "compile" and e.duration_ns is not None]


def is_recompilation(event: Event) -> bool:
    """Whether Dynamo compiled this frame before: the number behind the slash says how often."""
    number = str(event.detail.get("id", "")).rpartition("/")[2]
    return number.isascii() and number.isdecimal() and number.strip("0") != ""


def _recompiled(rank: RankView, compiled: Column) -> Column:
    if not any(compiled):
        return ()
    lost = _of_events(rank.series, (e for e in compile_events(rank) if is_recompilation(e)))
    return array("q", map(min, lost, compiled)) if lost else ()


# The kernel's account


def _waits(rank: RankView) -> tuple[list[Interval], list[Interval]]:
    """Intervals in which the thread was throttled, and in which it waited for a core otherwise."""
    throttled: list[Interval] = []
    contended: list[Interval] = []
    for record in rank.spool.sched:
        begin = record.start_ns
        for row, duration in enumerate(record.duration_ns):
            end = begin + duration
            delay = 0 if record.delay_ns is None else record.delay_ns[row]
            held = 0 if record.throttled_ns is None else min(delay, record.throttled_ns[row])
            if held:
                throttled.append(Interval(begin, end, held))
            if delay > held:
                contended.append(Interval(begin, end, delay - held))
            begin = end
    return throttled, contended


def _excess(series: RankSeries, explained: Column) -> Column:
    """What each step took beyond its neighbours, less what is explained."""
    rest = differences(series.duration_ns, explained)
    levels = baseline_of(rest, 0).column(len(rest))
    return differences(rest, levels)


def _poured(series: RankSeries, waits: list[Interval], excess: Column) -> Column:
    """Gives each wait to steps that took longer, then to all steps of its interval alike."""
    if not waits:
        return ()
    lost = array("q", bytes(8 * len(series.steps)))
    room = array("q", excess)
    for wait in waits:
        if wait.amount_ns < LOUD_NS:
            _spread(series, wait, lost)
            continue
        # The kernel books a wait when it ends: it may have begun before the interval.
        begin_ns = wait.begin_ns - wait.amount_ns
        touched = list(steps_over(series, begin_ns, wait.end_ns))
        fits = [room[index] if room[index] < overlap else overlap for index, overlap in touched]
        fitting = sum(fits)
        first = min(wait.amount_ns, fitting)
        for (index, _), fit in zip(touched, fits, strict=True):
            part = first * fit // fitting if fit else 0
            room[index] -= part
            lost[index] += part
        # What does not fit lies in no step in particular, or between the steps.
        _spread(series, Interval(begin_ns, wait.end_ns, wait.amount_ns - first), lost)
    return array("q", map(min, lost, series.duration_ns))


def _spread(series: RankSeries, wait: Interval, lost: "array[int]") -> None:
    """Adds a wait to all steps of its interval alike."""
    span = wait.end_ns - wait.begin_ns
    if wait.amount_ns <= 0 or span <= 0:
        return
    rate = wait.amount_ns / span
    starts, durations = series.start_ns, series.duration_ns
    first = max(0, bisect_right(starts, wait.begin_ns) - 1)
    last = bisect_left(starts, wait.end_ns) - 1
    for index in {first, last}:
        if 0 <= index < len(starts):
            end = min(starts[index] + durations[index], wait.end_ns)
            lost[index] += int(rate * max(0, end - max(starts[index], wait.begin_ns)))
    if last - first > 1:
        inner = slice(first + 1, last)
        pairs = zip(lost[inner], durations[inner], strict=True)
        lost[inner] = array("q", [ns + int(rate * duration) for ns, duration in pairs])


def lost_in(loss: Loss, part: slice) -> int:
    """What a cause took of some steps, in nanoseconds."""
    return total(loss.lost_ns[part])
