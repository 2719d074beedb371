"""What a digest holds of causes: the kernel's account in one long record."""

from collections.abc import Sequence
from dataclasses import replace

from traceml_agent.schema.causes import Sched
from traceml_agent.schema.records import Record
from traceml_agent.spool.reader import Spool


def causes_of(spool: Spool) -> list[Record]:
    """The records of a spool on what took time of the training thread, events included."""
    sums = [] if spool.gc is None else [spool.gc]
    return [*sums, *joined_intervals(spool.sched), *spool.events]


def joined_intervals(records: Sequence[Sched]) -> list[Sched]:
    """The same intervals in as few records as the gaps between them allow."""
    groups: list[list[Sched]] = []
    for record in sorted(records, key=lambda found: found.start_ns):
        if groups and _follows(groups[-1][-1], record):
            groups[-1].append(record)
        else:
            groups.append([record])
    return [_joined(group) for group in groups]


def _follows(before: Sched, after: Sched) -> bool:
    """Whether nothing lies between two records, and both know the same."""
    return (
        before.start_ns + sum(before.duration_ns) == after.start_ns
        and before.source == after.source
        and (before.delay_ns is None) == (after.delay_ns is None)
        and (before.throttled_ns is None) == (after.throttled_ns is None)
    )


def _joined(group: list[Sched]) -> Sched:
    if len(group) == 1:
        return group[0]
    return replace(
        group[0],
        duration_ns=[value for record in group for value in record.duration_ns],
        run_ns=[value for record in group for value in record.run_ns],
        delay_ns=_nullable([record.delay_ns for record in group]),
        throttled_ns=_nullable([record.throttled_ns for record in group]),
        others_run_ns=[value for record in group for value in record.others_run_ns],
        probes=[value for record in group for value in record.probes],
        probe_wait_ns=[value for record in group for value in record.probe_wait_ns],
        busiest=next((r.busiest for r in reversed(group) if r.busiest is not None), None),
    )


def _nullable(columns: list[list[int] | None]) -> list[int] | None:
    known = [column for column in columns if column is not None]
    return [value for column in known for value in column] if known else None
