"""Steps as the ring has them, one row each, into the records of a spool; and what is known of the
phases of steps at which the patches rested."""

from dataclasses import replace
from operator import add, eq

from traceml_agent.schema.phases import INPUT_WAIT, PHASES, UNUSUAL
from traceml_agent.schema.records import Steps, StepSums
from traceml_agent.spool.bounds import LONGEST_NS
from traceml_agent.spool.layout import RESTED
from traceml_agent.spool.ring import Row
from traceml_agent.spool.writer import sums_of

SLOW_RATIO = 3
"""What a step takes beyond so many medians of its neighbours belongs to no phase: nobody saw what
it was. Source: the ratio from which signals.md calls a step a spike."""
STEADY_STEP = 50
"""Steps before this one, which may be warm-up, do not say how time is shared out."""


def batches_of(rows: list[Row]) -> list[Steps | StepSums]:
    """Columnar batches of rows in order; a gap in time or number starts a new batch. Rows of steps
    at which the patches rested become sums."""
    if not rows:
        return []
    steps, starts, durations, *rest = zip(*rows, strict=True)
    # As a whole first, by C code: almost always there is no gap.
    in_time = all(map(eq, starts[1:], map(add, starts, durations)))
    if in_time and steps[-1] - steps[0] == len(steps) - 1 and min(rest[len(PHASES)]) >= 0:
        return [_batch(rows)]
    batches: list[Steps | StepSums] = []
    begin = 0
    for index in range(1, len(rows) + 1):
        if index < len(rows):
            before, after = rows[index - 1], rows[index]
            step, start_ns, duration_ns, *_ = before
            is_next = after[0] == step + 1 and after[1] == start_ns + duration_ns
            if is_next and _is_rested(before) == _is_rested(after):
                continue
        part = rows[begin:index]
        batches.append(_rested(part) if _is_rested(part[0]) else _batch(part))
        begin = index
    return batches


def _is_rested(row: Row) -> bool:
    return row[3 + len(PHASES)] <= RESTED


def _rested(rows: list[Row]) -> StepSums:
    _, _, durations, *rest = zip(*rows, strict=True)
    phases, unseen = rest[: len(PHASES)], [RESTED - d2h_ns for d2h_ns in rest[len(PHASES)]]
    longest = SLOW_RATIO * sorted(durations)[len(durations) // 2]
    samples = [row[-3] for row in rows]
    return StepSums(
        first_step=rows[0][0],
        count=len(rows),
        start_ns=rows[0][1],
        duration_ns=sum(durations),
        phase_ns={n: sum(c) for n, c in zip(PHASES, phases, strict=True) if any(c)},
        micro_batches=sum(row[-4] for row in rows),
        samples=None if min(samples) < 0 else sum(samples),
        updates=sum(row[-2] for row in rows),
        shared_ns=sum(min(nanoseconds, longest) for nanoseconds in unseen),
    )


def _batch(rows: list[Row]) -> Steps:
    steps, starts, durations, *rest = map(list, zip(*rows, strict=True))
    d2h_ns, micro_batches, samples, updates, _ = rest[len(PHASES) :]
    # Clocks of one process do not run backwards; a negative sum would be our own error, and a
    # reader refuses the batch for it.
    phases = [
        c if min(c) >= 0 and max(c) <= LONGEST_NS else [min(max(0, n), LONGEST_NS) for n in c]
        for c in rest[: len(PHASES)]
    ]
    return Steps(
        first_step=steps[0],
        count=len(rows),
        start_ns=starts[0],
        duration_ns=durations,
        phase_ns={name: c for name, c in zip(PHASES, phases, strict=True) if any(c)},
        micro_batches=_squeeze(micro_batches),
        samples=None if min(samples) < 0 else _squeeze(samples),
        updates=_squeeze(updates),
        d2h_ns=d2h_ns if any(d2h_ns) else None,
    )


def _squeeze(column: list[int]) -> int | list[int]:
    first = column[0]
    return first if column.count(first) == len(column) else column


def shared_out(sums: list[StepSums], batches: list[Steps]) -> list[StepSums]:
    """The sums, those of steps at which the patches rested with the phases of the other steps.

    Not the wait for input, which is known of each step; nor those that a step has seldom: patches
    that rest wake for these.
    """
    if all(part.shared_ns is None for part in sums):
        return sums
    seen = [sums_of(batch) for batch in batches]
    seen += [part for part in sums if part.shared_ns is None]
    seen = [part for part in seen if part.first_step > STEADY_STEP] or seen
    exact = (INPUT_WAIT, *UNUSUAL)
    names = [name for number, name in enumerate(PHASES) if number not in exact]
    apart = sum(part.phase_ns.get(PHASES[phase], 0) for part in seen for phase in exact)
    seen_ns = sum(part.duration_ns for part in seen) - apart
    if seen_ns <= 0:
        return sums
    phase_ns = {name: sum(part.phase_ns.get(name, 0) for part in seen) for name in names}
    return [
        part if part.shared_ns is None else _with(part, part.shared_ns, phase_ns, seen_ns)
        for part in sums
    ]


def _with(part: StepSums, shared_ns: int, phase_ns: dict[str, int], seen_ns: int) -> StepSums:
    more = {name: shared_ns * ns // seen_ns for name, ns in phase_ns.items()}
    names = {**part.phase_ns, **more}
    found = {name: part.phase_ns.get(name, 0) + more.get(name, 0) for name in names}
    return replace(part, phase_ns={name: ns for name, ns in found.items() if ns})
