"""What a record can say: a line may be whole JSON and still hold numbers that no writer wrote.

A damaged digit must not become a negative duration, a billion missing ranks or an integer that no
JSON holds. So a reader takes only records within these bounds; the others are skipped like lines
that are no records.
"""

from bisect import bisect_right
from typing import Any

from traceml_agent.schema.causes import GcTotals, Sched
from traceml_agent.schema.collectives import Arrivals, Collectives
from traceml_agent.schema.digests import Samples, Sketch
from traceml_agent.schema.loaders import Loader, WorkerBatches, WorkerStacks
from traceml_agent.schema.phases import PHASES
from traceml_agent.schema.records import DeviceSteps, Record, Steps, StepSums
from traceml_agent.schema.snapshots import Snapshot
from traceml_agent.schema.spans import Marks, Passes, Spans
from traceml_agent.schema.stacks import Stacks
from traceml_agent.spool.bounds import (
    LAST_BUCKET,
    LAST_NS,
    LAST_STEP,
    LEAST,
    LONGEST_NS,
    MOST,
    MOST_PER_STEP,
)
from traceml_agent.spool.format import BadRecord
from traceml_agent.spool.layout import RESTED
from traceml_agent.spool.plausible_program import (
    problem_of_snapshot,
    problem_of_spans,
    problem_of_stacks,
    problem_of_worker_stacks,
)

MOST_GENERATIONS = 8
"""Of the garbage collector. Source: CPython has three."""
MOST_WORKERS, MOST_PREFETCH = 1 << 12, 1 << 16
"""Of a loader. Chosen: more than any machine has cores, and than any has memory for."""
MOST_PART = 2
"""Of a call of a collective: see Collectives."""

_SIGNED = frozenset({"exit_code", "temperature_c"})
_FREE = frozenset({"detail", "indexes", "values", "last", "attrs"})
"""Values of the program: any number."""


def check(record: Record) -> None:
    """Raises BadRecord if no writer can have written this."""
    if isinstance(record, Steps):
        problem = _problem_of_steps(record)
    elif isinstance(record, DeviceSteps):
        problem = _problem_of_device_steps(record)
    elif isinstance(record, StepSums):
        problem = _problem_of_sums(record)
    elif isinstance(record, Samples):
        problem = _problem_of_samples(record)
    elif isinstance(record, Sketch):
        problem = _problem_of_sketch(record)
    elif isinstance(record, Snapshot):
        problem = problem_of_snapshot(record)
    else:
        problem = _problem_of_numbers(record)
        if problem is None and isinstance(record, Collectives):
            problem = _problem_of_calls(record)
        elif problem is None and isinstance(record, Arrivals):
            problem = _problem_of_arrivals(record)
        elif problem is None and isinstance(record, Loader):
            problem = _problem_of_loader(record)
        elif problem is None and isinstance(record, WorkerBatches):
            problem = _problem_of_worker_batches(record)
        elif problem is None and isinstance(record, WorkerStacks):
            problem = problem_of_worker_stacks(record)
        elif problem is None and isinstance(record, Stacks):
            problem = problem_of_stacks(record)
        elif problem is None and isinstance(record, (Spans, Marks, Passes)):
            problem = problem_of_spans(record)
        elif problem is None and isinstance(record, Sched):
            problem = _problem_of_intervals(record)
        elif problem is None and isinstance(record, GcTotals):
            problem = _problem_of_collections(record)
    if problem is not None:
        raise BadRecord(f"{record.kind}: {problem}")


def is_plausible_row(row: tuple[int, ...]) -> bool:
    """Whether a record of the ring can be a step. Phases are not looked at."""
    step, start_ns, duration_ns, *_ = row
    d2h_ns, micro_batches, samples, updates = row[-5:-1]
    return (
        0 < step <= LAST_STEP
        and step == row[-1]
        and 0 <= start_ns <= LAST_NS
        and 0 <= duration_ns <= LONGEST_NS
        and RESTED - LONGEST_NS <= d2h_ns <= LONGEST_NS
        and 0 <= micro_batches <= MOST_PER_STEP
        and -1 <= samples <= MOST_PER_STEP
        and 0 <= updates <= MOST_PER_STEP
    )


class StepNumbers:
    """Which steps are known. A step that comes twice would count twice."""

    def __init__(self) -> None:
        self._first: list[int] = []
        self._last: list[int] = []

    def add(self, first: int, count: int) -> bool:
        """Adds these steps; False, and nothing added, if one of them is known."""
        last = first + count - 1
        if self._last and first == self._last[-1] + 1:  # as a writer writes them
            self._last[-1] = last
            return True
        if not self._last or first > self._last[-1]:
            self._first.append(first)
            self._last.append(last)
            return True
        at = bisect_right(self._first, first)
        if (at and self._last[at - 1] >= first) or (
            at < len(self._first) and self._first[at] <= last
        ):
            return False
        self._first.insert(at, first)
        self._last.insert(at, last)
        return True


def _problem_of_steps(batch: Steps) -> str | None:
    problem = _problem_of_range(batch.first_step, batch.count, batch.start_ns)
    if problem is not None:
        return problem
    columns = [batch.duration_ns, *batch.phase_ns.values()]
    if batch.d2h_ns is not None:
        columns.append(batch.d2h_ns)
    for column in columns:
        if len(column) != batch.count:
            return "a column of another length"
        if min(column) < 0 or sum(column) > LONGEST_NS:
            return "a time that cannot be"
    for counts in (batch.micro_batches, batch.samples, batch.updates):
        if counts is None:
            continue
        if isinstance(counts, list):
            if len(counts) != batch.count:
                return "a column of another length"
            low, high = min(counts), max(counts)
        else:
            low = high = counts
        if low < 0 or high > MOST_PER_STEP:
            return "a count that cannot be"
    return None


def _problem_of_device_steps(batch: DeviceSteps) -> str | None:
    problem = _problem_of_range(batch.first_step, batch.count, 0)
    if problem is not None:
        return problem
    for column in (batch.duration_ns, *batch.phase_ns.values()):
        if len(column) != batch.count:
            return "a column of another length"
        known = [value for value in column if value is not None]
        if known and (min(known) < 0 or sum(known) > LONGEST_NS):
            return "a time that cannot be"
    return None


def _problem_of_sums(sums: StepSums) -> str | None:
    problem = _problem_of_range(sums.first_step, sums.count, sums.start_ns)
    if problem is not None:
        return problem
    shared_ns = sums.shared_ns or 0
    times = (sums.duration_ns, sums.d2h_ns, shared_ns, *sums.phase_ns.values())
    if min(times) < 0 or max(times) > LONGEST_NS:
        return "a time that cannot be"
    counts = (sums.micro_batches, sums.updates, sums.samples or 0)
    if min(counts) < 0 or max(counts) > sums.count * MOST_PER_STEP:
        return "a count that cannot be"
    return None


def _problem_of_calls(calls: Collectives) -> str | None:
    count, keys = len(calls.key), len(calls.keys)
    columns: tuple[list[Any], ...] = (calls.step, calls.seq, calls.start_ns, calls.duration_ns,
                                      calls.bytes, calls.phase, calls.part)  # fmt: skip
    if any(len(column) != count for column in columns):
        return "a column of another length"
    if max((*calls.key, *(part.key for part in calls.sums)), default=-1) >= keys:
        return "a call of no operation"
    if max((*calls.part, *(part.part for part in calls.sums)), default=0) > MOST_PART:
        return "a part that cannot be"
    phases = [phase for phase in calls.phase if phase is not None]
    if max(phases, default=0) >= len(PHASES):
        return "a phase that cannot be"
    if any(part.first_step > part.last_step for part in calls.sums):
        return "steps with numbers that cannot be"
    times = sum(calls.duration_ns) + sum(part.duration_ns for part in calls.sums)
    return "a time that cannot be" if times > LONGEST_NS else None


def _problem_of_arrivals(arrivals: Arrivals) -> str | None:
    count = len(arrivals.key)
    if len(arrivals.seq) != count or len(arrivals.entered_ns) != count:
        return "a column of another length"
    if max(arrivals.key, default=-1) >= len(arrivals.keys):
        return "a call of no operation"
    return None


def _problem_of_loader(found: Loader) -> str | None:
    if found.workers > MOST_WORKERS or (found.prefetch or 0) > MOST_PREFETCH:
        return "a number that cannot be"
    times = (found.start_ns, found.first_wait_ns, found.wait_ns, found.made_wait_ns,
             found.transfer_ns, *(sums.fetch_ns for sums in found.sums or ()))  # fmt: skip
    return "a time that cannot be" if sum(times) > LONGEST_NS else None


def _problem_of_worker_batches(found: WorkerBatches) -> str | None:
    columns: tuple[list[Any], ...] = (found.batch, found.worker, found.begun_ns, found.fetch_ns,
                                      found.collate_ns, found.cpu_ns, found.asked_ns,
                                      found.wait_ns)  # fmt: skip
    if any(len(column) != len(found.epoch) for column in columns):
        return "a column of another length"
    times = sum(found.fetch_ns) + sum(wait or 0 for wait in found.wait_ns)
    return "a time that cannot be" if times > LONGEST_NS else None


def _problem_of_intervals(sched: Sched) -> str | None:
    columns = (sched.run_ns, sched.delay_ns, sched.throttled_ns, sched.others_run_ns,
               sched.probes, sched.probe_wait_ns)  # fmt: skip
    if any(column is not None and len(column) != len(sched.duration_ns) for column in columns):
        return "a column of another length"
    sums = [sum(column) for column in (sched.duration_ns, *columns) if column is not None]
    if max(sums) > LONGEST_NS or sched.start_ns > LAST_NS:
        return "a time that cannot be"
    return None


def _problem_of_collections(found: GcTotals) -> str | None:
    if max(len(found.count), len(found.duration_ns)) > MOST_GENERATIONS:
        return "generations that cannot be"
    times = (*found.duration_ns, found.noted_ns, found.other_ns)
    if max(times) > LONGEST_NS:
        return "a time that cannot be"
    return None


def _problem_of_samples(samples: Samples) -> str | None:
    for name, column in samples.columns.items():
        # Integers all of them, or none: as a whole, by C code. Else one by one.
        if set(map(type, column)) == {int} and name not in _SIGNED:
            if min(column) < 0 or max(column) > MOST:
                return f"`{name}` cannot be what it is"
        elif any(_is_odd(item, name in _SIGNED, 2) for item in column):
            return f"`{name}` cannot be what it is"
    return None


def _problem_of_sketch(sketch: Sketch) -> str | None:
    counts = sketch.buckets
    if not all(
        n.isascii() and n.isdecimal() and len(n) < 5 and int(n) <= LAST_BUCKET for n in counts
    ):
        return "a bucket that cannot be"
    is_whole = 0 < sketch.steps == sum(counts.values()) <= LAST_STEP and min(counts.values()) >= 0
    return None if is_whole else "a count that cannot be"


def _is_odd(item: Any, is_signed: bool, depth: int) -> bool:
    """Whether a value, or one that it holds, is a number beyond the bounds, or lies too deep."""
    if isinstance(item, (dict, list)):
        values = item.values() if isinstance(item, dict) else item
        return depth == 0 or any(_is_odd(value, is_signed, depth - 1) for value in values)
    if type(item) is not int and type(item) is not float:
        return False
    size = abs(item) if is_signed else item
    return not (size == 0 or LEAST <= size <= MOST)


def _problem_of_range(first_step: int, count: int, start_ns: int) -> str | None:
    if first_step < 1 or count < 1 or first_step + count > LAST_STEP:
        return "no steps, or steps with numbers that cannot be"
    return None if 0 <= start_ns <= LAST_NS else "a time that cannot be"


def _problem_of_numbers(record: Any) -> str | None:
    """Looks at each number of a record of samples, counters or facts, also in what it holds."""
    for name in record.__slots__:
        value = getattr(record, name)
        if value is None or isinstance(value, str) or name in _FREE:
            continue
        values = value.values() if isinstance(value, dict) else value
        for item in values if isinstance(value, (dict, list, tuple)) else (value,):
            if type(item) is int or type(item) is float:
                size = abs(item) if name in _SIGNED else item
                if not (size == 0 or LEAST <= size <= MOST):
                    return f"`{name}` cannot be {item!r}"
            elif hasattr(item, "__slots__"):
                problem = _problem_of_numbers(item)
                if problem is not None:
                    return problem
    return None
