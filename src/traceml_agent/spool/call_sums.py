"""Records of collectives made fewer or shorter: for a digest, and for a spool at its cap."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from traceml_agent.schema.collectives import CollectiveKey, Collectives, CollectiveSums

DIGEST_CALLS = 20_000
"""Single calls that a digest keeps at least, the newest ones. Chosen: half a megabyte."""


def without_calls(record: Collectives) -> Collectives:
    """The same calls, all as sums; exact."""
    sums: dict[tuple[int, int], CollectiveSums] = {}
    single = (
        CollectiveSums(key, part, step, step, 1, duration_ns, size)
        for key, part, step, duration_ns, size in zip(
            record.key, record.part, record.step, record.duration_ns, record.bytes, strict=True
        )
    )
    for added in (*record.sums, *single):
        before = sums.get((added.key, added.part))
        sums[added.key, added.part] = added if before is None else _joined(before, added)
    return replace(
        record,
        key=[],
        step=[],
        seq=[],
        start_ns=[],
        duration_ns=[],
        bytes=[],
        phase=[],
        part=[],
        sums=list(sums.values()),
    )


def _joined(one: CollectiveSums, other: CollectiveSums) -> CollectiveSums:
    known = one.bytes is not None and other.bytes is not None
    return CollectiveSums(
        one.key,
        one.part,
        min(one.first_step, other.first_step),
        max(one.last_step, other.last_step),
        one.calls + other.calls,
        one.duration_ns + other.duration_ns,
        (one.bytes or 0) + (other.bytes or 0) if known else None,
    )


def joined(records: Sequence[Collectives]) -> list[Collectives]:
    """The same calls and sums in one record."""
    if len(records) < 2:
        return list(records)
    keys: dict[CollectiveKey, int] = {}
    place = [[keys.setdefault(key, len(keys)) for key in record.keys] for record in records]

    def column(name: str) -> list[int]:
        return list(chain.from_iterable(getattr(record, name) for record in records))

    return [
        Collectives(
            keys=list(keys),
            key=[of[number] for of, r in zip(place, records, strict=True) for number in r.key],
            step=column("step"),
            seq=column("seq"),
            start_ns=column("start_ns"),
            duration_ns=column("duration_ns"),
            bytes=list(column("bytes")),
            phase=list(column("phase")),
            part=column("part"),
            sums=[
                replace(part, key=of[part.key])
                for of, record in zip(place, records, strict=True)
                for part in record.sums
            ],
            lost=max(record.lost for record in records),
            cost_ns=max(record.cost_ns for record in records),
        )
    ]


def newest_calls(records: list[Collectives]) -> list[Collectives]:
    """The same records, those before the newest DIGEST_CALLS calls as sums, once they are twice
    as many."""
    left = sum(len(record.key) for record in records)
    if left <= 2 * DIGEST_CALLS:
        return records
    found = []
    for record in records:
        left -= len(record.key)
        found.append(without_calls(record) if left >= DIGEST_CALLS else record)
    return found
