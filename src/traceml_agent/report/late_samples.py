"""Puts the samples that came late to the line that was at work when they were due.

Plain Python holds the interpreter lock. The sampling thread gets it where the program lets go of
it, or by force after the switch interval (5 ms). So of a line that runs Python for 20 ms the last
quarter is seen at the next line that lets go, though other samples saw it at work: these samples
are its own. Without such a line it is looked which one can have run in between.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from traceml_agent.schema.stacks import FREE_CALLS, RESIDUAL, UNKNOWN, CodeLine, StackRow, Stacks

BLOCKS = 0.05
"""Of the samples that look for their line. Chosen: a line between that was seen more often than
that, and not late, runs in each round; what came late at the next one ran after it."""
LEAST_FORCED = 0.1
"""Of the same: so many samples at least saw the line at work. Chosen: a line of 5.5 ms has a tenth
as many of them as come late; with fewer the lock was held there now and then, by a collection."""

_FREE_CALL = re.compile(rf"(?:\w+\.)*(?:{'|'.join(sorted(FREE_CALLS))})\(\)")
Stack = tuple[CodeLine, ...]


class _Place(NamedTuple):
    """Where a stack stands before another one: larger is nearer."""

    is_same_round: bool  # else in the round of the loop before
    depth: int
    line: int


def placed(stacks: Stacks) -> list[StackRow]:
    """The rows, with late samples where they belong. Time and samples stay the same in all."""
    paths = [tuple(stacks.lines[number] for number in reversed(row.lines)) for row in stacks.rows]
    rows = [_missed(row, path) for row, path in zip(stacks.rows, paths, strict=True)]
    found = list(rows)
    for index, row in enumerate(rows):
        if not row.yielded or not row.lines:
            continue
        at = _cause(index, rows, paths)
        if at is not None:
            found[index] = _less(found[index], row)
            found[at] = _more(found[at], row)
        elif row.prior is not None:
            found[index] = _less(found[index], row)
            moved = replace(
                row, lines=[row.prior, *row.lines[1:]], before=False, callee=None, leaf=None,
                samples=row.yielded, weight_ns=row.yielded_ns, late=row.yielded, yielded=0,
                yielded_ns=0,
            )  # fmt: skip
            found.append(moved)
    return [row for row in found if row.samples]


def _missed(row: StackRow, path: Stack) -> StackRow:
    """A row; of a call that takes no time all late samples came from before."""
    call = path[-1].call if path else None
    if call is None or not _FREE_CALL.fullmatch(call) or row.late == row.yielded:
        return row
    return replace(row, yielded=row.late, yielded_ns=row.weight_ns * row.late // row.samples)


def _cause(index: int, rows: Sequence[StackRow], paths: Sequence[Stack]) -> int | None:
    """The row of the code that ran before the late samples of a row, if that was seen at work."""
    row, path = rows[index], paths[index]
    is_free = row.before or row.phase == UNKNOWN  # the phase it ran in is not known
    ordered = [
        (place, number)
        for number, other in enumerate(rows)
        if number != index and other.lines and not other.before
        for place in [
            _place_before(_from(paths[number], path), path, is_loop=row.phase == RESIDUAL)
        ]
        if place is not None
        and (is_free or other.phase == row.phase or _from(paths[number], path) is paths[number])
        and not (row.before and _is_within(paths[number], path))
        and (row.prior is None or _is_through(paths[number], path[-1]))
    ]
    ordered.sort(key=lambda pair: (pair[0], rows[pair[1]].late - rows[pair[1]].yielded))
    for _, number in reversed(ordered):
        other = rows[number]
        took_lock = other.late - other.yielded
        if took_lock >= max(1, LEAST_FORCED * row.yielded) and (
            is_free or other.phase == row.phase
        ):
            return None if row.late - row.yielded > took_lock else number
        if other.samples - other.late > BLOCKS * row.yielded:
            return None
    return None


def _place_before(other: Stack, path: Stack, *, is_loop: bool) -> _Place | None:
    """Where `other` ran before `path`, both the outermost first; None where it did not."""
    for depth, (one, two) in enumerate(zip(other, path, strict=False)):
        if one == two or _same_line(one, two):
            continue
        if (one.file, one.function) != (two.file, two.function):
            # Two functions that a library called from one line, in an order that is not known.
            return _Place(True, depth, 0) if depth else None
        if one.line < two.line:
            return _Place(True, depth, one.line)
        return _Place(False, depth, one.line) if is_loop else None
    return _Place(True, min(len(other), len(path)), other[-1].line)


def _from(other: Stack, path: Stack) -> Stack:
    """The part of `other` that begins in the function that `path` begins in; all where none does.
    Of an item of a loader only the function that makes it is known."""
    first = (path[0].file, path[0].function)
    starts = (at for at, one in enumerate(other) if (one.file, one.function) == first)
    start = next(starts, 0)
    return other[start:] if start else other


def _same_line(one: CodeLine, two: CodeLine) -> bool:
    """Another expression of one line is the same place."""
    return (one.file, one.function, one.line) == (two.file, two.function, two.line)


def _is_within(other: Stack, path: Stack) -> bool:
    """Whether `other` is the line that `path` ends in, or was called by it."""
    return len(other) >= len(path) and all(map(_same_line, other, path))


def _is_through(other: Stack, line: CodeLine) -> bool:
    """Whether `other` is in the function of this line, or was called from it."""
    return any((one.file, one.function) == (line.file, line.function) for one in other)


def _less(found: StackRow, moved: StackRow) -> StackRow:
    return replace(
        found,
        samples=found.samples - moved.yielded,
        weight_ns=found.weight_ns - moved.yielded_ns,
        late=found.late - moved.yielded,
        yielded=0,
        yielded_ns=0,
    )


def _more(found: StackRow, moved: StackRow) -> StackRow:
    return replace(
        found,
        samples=found.samples + moved.yielded,
        weight_ns=found.weight_ns + moved.yielded_ns,
        late=found.late + moved.yielded,
    )
