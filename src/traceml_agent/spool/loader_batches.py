"""Records of single batches of loaders made fewer: for a digest."""

from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import chain
from typing import Any

from traceml_agent.schema.loaders import WorkerBatches
from traceml_agent.schema.records import Record
from traceml_agent.spool.reader import Spool

DIGEST_BATCHES = 4_000
"""Rows of one loader that a digest keeps in whole records, the oldest ones, where every batch of
a run is still there. Chosen: 100 KB, of which a packed digest has a third."""
_SHIFTED = ("begun_ns", "asked_ns")


def loader_records(spool: Spool) -> list[Record]:
    """All that a spool says of loaders, in as few records as can be."""
    batches = joined_batches(fewer_batches(spool.worker_batches))
    return [*spool.loaders.values(), *batches, *spool.worker_stacks.values()]


def fewer_batches(records: Sequence[WorkerBatches]) -> list[WorkerBatches]:
    """The first records of each loader, up to DIGEST_BATCHES rows; and the last one."""
    counts: dict[int, int] = {}
    kept: list[WorkerBatches] = []
    last: dict[int, WorkerBatches] = {}
    for record in records:
        if counts.get(record.loader, 0) < DIGEST_BATCHES:
            counts[record.loader] = counts.get(record.loader, 0) + len(record.batch)
            kept.append(record)
        else:
            last[record.loader] = record
    return [*kept, *last.values()]


def joined_batches(records: Sequence[WorkerBatches]) -> list[WorkerBatches]:
    """The same rows, one record a loader."""
    by_loader: dict[int, list[WorkerBatches]] = {}
    for record in records:
        by_loader.setdefault(record.loader, []).append(record)
    return [_joined(found) for found in by_loader.values()]


def _joined(records: list[WorkerBatches]) -> WorkerBatches:
    if len(records) == 1:
        return records[0]
    start_ns = min(record.start_ns for record in records)
    columns: dict[str, Any] = {}
    for field in fields(WorkerBatches):
        if field.name in ("loader", "start_ns"):
            continue
        parts = (
            _shifted(getattr(record, field.name), record.start_ns - start_ns)
            if field.name in _SHIFTED
            else getattr(record, field.name)
            for record in records
        )
        columns[field.name] = list(chain.from_iterable(parts))
    return replace(records[0], start_ns=start_ns, **columns)


def _shifted(column: list[int | None], by_ns: int) -> list[int | None]:
    return [None if value is None else value + by_ns for value in column]
