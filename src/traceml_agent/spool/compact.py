"""Joins the batches of a spool: a job has millions of steps, and writes a few of them at a time.

A batch of four steps costs 1 KiB as objects of Python; joined, a step costs 8 bytes a column.
"""

from array import array
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, TypeVar, cast

from traceml_agent.schema.records import DeviceSteps, Steps
from traceml_agent.spool.reader import Spool

ARRAY_FROM = 64
"""Steps of a batch on its own that is turned into arrays too. Chosen: below, it saves nothing."""
Batch = TypeVar("Batch", Steps, DeviceSteps)


def compact(spool: Spool) -> Spool:
    """The same spool, its steps in as few batches as the gaps between them allow.

    The columns of joined batches are arrays: read them as sequences.
    """
    spool.batches = _join_all(spool.batches, _follows, _joined)
    spool.device_batches = _join_all(spool.device_batches, _next_in_number, _joined_on_device)
    return spool


def _join_all(
    batches: list[Batch],
    follows: Callable[[Batch, Batch], bool],
    join: Callable[[list[Batch]], Batch],
) -> list[Batch]:
    found: list[Batch] = []
    together: list[Batch] = []
    for batch in batches:
        if together and not follows(together[-1], batch):
            found.append(join(together))
            together = []
        together.append(batch)
    if together:
        found.append(join(together))
    return found


def _follows(before: Steps, after: Steps) -> bool:
    """Whether nothing lies between two batches, and both saw the size of their batches or not."""
    return (
        before.first_step + before.count == after.first_step
        and before.start_ns + sum(before.duration_ns) == after.start_ns
        and (before.samples is None) == (after.samples is None)
    )


def _next_in_number(before: DeviceSteps, after: DeviceSteps) -> bool:
    return before.first_step + before.count == after.first_step


def _joined(parts: list[Steps]) -> Steps:
    first = parts[0]
    if len(parts) == 1 and first.count < ARRAY_FROM:
        return first
    names = {name: None for part in parts for name in part.phase_ns}
    return Steps(
        first_step=first.first_step,
        count=sum(part.count for part in parts),
        start_ns=first.start_ns,
        duration_ns=_column(part.duration_ns for part in parts),
        phase_ns={
            name: _column(part.phase_ns.get(name) or [0] * part.count for part in parts)
            for name in names
        },
        micro_batches=_counts([part.micro_batches for part in parts], parts),
        samples=None
        if first.samples is None
        else _counts([cast(int, part.samples) for part in parts], parts),
        updates=_counts([part.updates for part in parts], parts),
        d2h_ns=_column(part.d2h_ns or [0] * part.count for part in parts)
        if any(part.d2h_ns for part in parts)
        else None,
    )


def _counts(values: Sequence[int | list[int]], parts: Sequence[Steps]) -> int | list[int]:
    """One integer where all steps have the same, else one a step."""
    if isinstance(values[0], int) and values.count(values[0]) == len(values):
        return values[0]
    return _column(
        [value] * part.count if isinstance(value, int) else value
        for value, part in zip(values, parts, strict=True)
    )


def _column(parts: Iterable[Sequence[int]]) -> list[int]:
    together: list[int] = []
    for part in parts:
        together += part
    return cast(list[int], array("q", together))  # twice as fast as an array that grows


def _joined_on_device(parts: list[DeviceSteps]) -> DeviceSteps:
    if len(parts) == 1:
        return parts[0]
    names = {name: None for part in parts for name in part.phase_ns}
    return DeviceSteps(
        first_step=parts[0].first_step,
        count=sum(part.count for part in parts),
        duration_ns=_nullable(part.duration_ns for part in parts),
        phase_ns={
            name: _nullable(part.phase_ns.get(name) or [0] * part.count for part in parts)
            for name in names
        },
    )


def _nullable(parts: Iterable[Sequence[int | None]]) -> list[Any]:
    """An array where every step has a time, else a list."""
    column = list(chain.from_iterable(parts))
    return column if None in column else cast(list[Any], array("q", column))
