"""What records of the program itself can say: where it stood, its scopes, its weights."""

from sys import float_info
from typing import Any

from traceml_agent.schema.loaders import WorkerStacks
from traceml_agent.schema.phases import PHASES
from traceml_agent.schema.snapshots import BINS, Figures, Snapshot
from traceml_agent.schema.spans import Marks, Passes, Spans
from traceml_agent.schema.stacks import StackRow, Stacks
from traceml_agent.spool.bounds import LAST_NS, LAST_STEP, LONGEST_NS, MOST

MOST_VALUE = float_info.max
"""Of an element of a tensor."""


def problem_of_worker_stacks(found: WorkerStacks) -> str | None:
    """What is wrong with where workers stood; None: nothing."""
    lines = (number for row in found.rows for number in row.lines)
    if max(lines, default=-1) >= len(found.lines):
        return "a stack of no line"
    samples = sum(row.samples for row in found.rows)
    return "a count that cannot be" if samples > found.samples else None


def _lines_of(row: StackRow) -> list[int]:
    return row.lines if row.prior is None else [*row.lines, row.prior]


def problem_of_stacks(stacks: Stacks) -> str | None:
    """What is wrong with sampled stacks; None: nothing."""
    most = len(stacks.lines)
    if any(line >= most for row in stacks.rows for line in _lines_of(row)):
        return "a stack of no line"
    if any(not row.yielded <= row.late <= row.samples for row in stacks.rows):
        return "a count that cannot be"
    if any(row.yielded_ns > row.weight_ns for row in stacks.rows):
        return "a count that cannot be"
    times = sum(row.weight_ns for row in stacks.rows) + sum(stacks.other.values())
    counts = sum(row.samples for row in stacks.rows) + sum(stacks.other_samples.values())
    if times != stacks.weight_ns or times > LONGEST_NS:
        return "a time that cannot be"
    return None if counts == stacks.samples else "a count that cannot be"


def problem_of_spans(found: Spans | Marks | Passes) -> str | None:
    """What is wrong with scopes, marks or passes; None: nothing."""
    columns: tuple[list[Any], ...]
    if isinstance(found, Spans):
        columns = (found.id, found.parent, found.name, found.indexes, found.begun_ns,
                   found.duration_ns, found.cpu_ns, found.phase)  # fmt: skip
        times = [found.start_ns, *found.begun_ns, *(d for d in found.duration_ns if d is not None)]
        if any(p is not None and p > len(PHASES) for p in found.phase):
            return "a phase that cannot be"
    elif isinstance(found, Marks):
        columns = (found.span, found.name, found.at_ns, found.values)
        times = found.at_ns
    else:
        columns = (found.loader, found.number, found.start_ns, found.end_ns, found.last_ns,
                   found.batches)  # fmt: skip
        times = [*found.start_ns, *found.last_ns, *(e for e in found.end_ns if e is not None)]
    if any(len(column) != len(columns[0]) for column in columns):
        return "a column of another length"
    if not isinstance(found, Passes) and max(found.name, default=-1) >= len(found.names):
        return "a scope or a mark without a name"
    return "a time that cannot be" if max(times, default=0) > LONGEST_NS else None


def problem_of_snapshot(found: Snapshot) -> str | None:
    """What is wrong with figures of weights and gradients; None: nothing."""
    times = (found.monotonic_ns, found.stall_ns, found.longest_stall_ns, found.reduced_ns)
    if min(times) < 0 or max(times) > LAST_NS:
        return "a time that cannot be"
    if not 0 < found.first_step <= found.last_step <= LAST_STEP or (found.epoch or 1) < 1:
        return "steps with numbers that cannot be"
    if any(not 0 < count <= MOST for count in found.left_out.values()):
        return "a count that cannot be"
    for row in found.tensors:
        sizes = (*row.shape, row.looked, row.elements)
        if min(sizes) < 0 or max(sizes) > MOST or not 0 < row.step <= LAST_STEP:
            return "a tensor that cannot be"
        for figures in (row.weight, row.gradient):
            if figures is not None and _is_odd_figures(figures, row.looked):
                return "figures that cannot be"
    return None


def _is_odd_figures(found: Figures, looked: int) -> bool:
    """The numbers of a model may be of any size, but they are numbers, and counted once."""
    counts = (*found.histogram, found.nan, found.inf)
    if len(found.histogram) != BINS or min(counts) < 0 or sum(counts) != looked:
        return True
    values = (found.mean, found.std, found.min, found.max, found.l2)
    if min(found.std or 0.0, found.l2 or 0.0) < 0:
        return True
    return any(value is not None and not -MOST_VALUE <= value <= MOST_VALUE for value in values)
