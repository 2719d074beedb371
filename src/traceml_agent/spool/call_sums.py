"""A record of collectives without its single calls: what a spool at its cap keeps of it."""

from dataclasses import replace

from traceml_agent.schema.collectives import Collectives, CollectiveSums


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
