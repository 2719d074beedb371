"""Does the job wait for one rank? The straggler rules of the format, and when they may be used.

The definitions (culprit, victim, score, cause, the phases in which DDP and FSDP wait) are those of
traceml-ai 0.5.0, `diagnostics/step_time/context.py` and `policy.py`, read there. Added here are
three conditions under which the difference of averages means what it seems to: the ranks keep
step, the difference is beyond chance, and where no strategy was seen, a measured part explains it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from traceml_agent.report.align import Aligned, Rows, add_rows
from traceml_agent.report.chance import chance_of
from traceml_agent.report.stats import middle, running_sum, subtracted, total
from traceml_agent.schema.phases import COMPUTE_PHASES

SCORE_WARN = 0.10
SCORE_CRIT = 0.20
CAUSE_COVERAGE = 0.80
"""Source: summary contract, from TraceML's step-time policy."""
CHANCE_MOST = 0.001
"""Chosen: one healthy job in 1,000 would pass this, and far fewer reach SCORE_WARN besides."""
DRIFT_MOST = 0.25
"""Part of the cost by which culprit and victim may drift apart a step. Chosen: ranks that meet in
each step do not drift at all; a quarter leaves room for the ends of a short window."""
ALIKE = 0.5
"""Ranks that wait as little as the culprit, less than half of the cost more, are slow with it.
Chosen: nearer to the culprit than to the victim."""

WAITS_IN: dict[str, tuple[tuple[str, ...], ...]] = {
    # In backward DDP reduces gradients. Where the model has buffers, each forward begins with
    # their broadcast from rank 0, and the others wait there for a slow rank 0.
    "ddp": (("backward",), ("forward", "backward"), ("residual",)),
    "fsdp": (("forward", "backward"), ("residual",)),
    "fsdp2": (("forward", "backward"), ("residual",)),
    "none": (("backward",), ("residual",), ("optimizer",)),
}
"""Phases in which a strategy may wait for other ranks; the first that explains it counts. Beside
it, or without one, ranks may meet by collectives of the user's own: between the phases (a barrier
after a checkpoint of rank 0), in an optimizer that reduces, or in hooks of backward."""

_CAUSES = ("input_wait", "h2d", "forward")
_OTHER_CAUSES = ("residual", "eval", "checkpoint", "compile", "logging", "optimizer")
_OUTSIDE = ("residual", "eval", "checkpoint", "compile", "logging")

Mean = Callable[[str, int], float | None]


@dataclass(frozen=True, slots=True)
class Straggler:
    """A rank that the others wait for; times in nanoseconds a step."""

    culprit: int  # index into the aligned ranks, as below
    victim: int
    alike: tuple[int, ...]  # the culprit and those that are as slow
    waits_in: tuple[str, ...]
    cause: str | None  # a phase, "outside" for several that are no training; None: not measured
    score: float
    cost_ns: float
    culprit_wait_ns: float
    victim_wait_ns: float
    step_ns: float
    excess_ns: dict[str, float]
    coverage: dict[str, float]
    chance: float


def sync_rows(aligned: Aligned, waits_in: tuple[str, ...]) -> Rows | None:
    """The phases in which ranks wait, summed; None where one was not measured."""
    parts = [rows for name in waits_in if (rows := aligned.rows(name)) is not None]
    return add_rows(parts) if len(parts) == len(waits_in) else None


def find_straggler(aligned: Aligned, strategy: str | None) -> Straggler | None:
    """The straggler of a job, if there is one beyond doubt."""
    if len(aligned.ranks) < 2:
        return None
    for number, waits_in in enumerate(WAITS_IN[strategy or "none"]):
        # Only where the strategy is known to wait does a wait without a cause tell anything.
        literal = number == 0 and strategy is not None
        found = _straggler(aligned, waits_in, literal)
        if found is not None:
            return found
    return None


def keeps_step(aligned: Aligned, one: int, other: int, most_ns: float) -> bool:
    """Whether two ranks drift apart by less than so much a step.

    Between the medians of the first and the last third, so that one long step at an end, which the
    other rank shows a step later, is no drift.
    """
    distances = running_sum(subtracted(aligned.step_ns[one], aligned.step_ns[other]), 0)[1:]
    third = max(1, len(distances) // 3)
    early, late = middle(distances[:third]) or 0.0, middle(distances[-third:]) or 0.0
    return abs(late - early) <= most_ns * max(1, len(distances) - third)


def _straggler(aligned: Aligned, waits_in: tuple[str, ...], literal: bool) -> Straggler | None:
    rows = sync_rows(aligned, waits_in)
    if rows is None:
        return None
    count = len(aligned.steps)
    waits = [total(column) / count for column in rows]
    order = sorted(range(len(waits)), key=lambda index: (waits[index], index))
    culprit, victim = order[0], order[len(order) // 2]
    cost = waits[victim] - waits[culprit]
    step = total(aligned.step_ns[victim]) / count
    if step <= 0 or cost <= 0 or waits[culprit] < 0 or cost / step < SCORE_WARN:
        return None
    excess = _excess(aligned, waits_in, culprit, victim)
    coverage = {name: min(1.0, more / cost) for name, more in excess.items()}
    cause = _cause(coverage)
    if cause is None and not literal:
        return None
    if not keeps_step(aligned, culprit, victim, DRIFT_MOST * cost):
        return None
    chance = chance_of(rows)
    if chance > CHANCE_MOST:
        return None
    return Straggler(
        culprit=culprit,
        victim=victim,
        alike=tuple(i for i, wait in enumerate(waits) if wait - waits[culprit] < ALIKE * cost),
        waits_in=waits_in,
        cause=cause,
        score=cost / step,
        cost_ns=cost,
        culprit_wait_ns=waits[culprit],
        victim_wait_ns=waits[victim],
        step_ns=step,
        excess_ns=excess,
        coverage=coverage,
        chance=chance,
    )


def _excess(
    aligned: Aligned, waits_in: tuple[str, ...], culprit: int, victim: int
) -> dict[str, float]:
    """What the culprit takes longer than the victim in each phase where neither waits."""
    count = len(aligned.steps)
    found = {}
    for name in (*_CAUSES, *_OTHER_CAUSES):
        rows = aligned.rows(name)
        if rows is None or name in waits_in:
            continue
        of_culprit, of_victim = total(rows[culprit]), total(rows[victim])
        if name in COMPUTE_PHASES and not (of_culprit and of_victim):
            continue  # a rank that does not compute is no slower in it
        found[name] = max(0.0, (of_culprit - of_victim) / count)
    return found


def _cause(coverage: dict[str, float]) -> str | None:
    """The phase that covers the cost: one of the format's, else one of the others."""
    for names in (_CAUSES, _OTHER_CAUSES):
        known = [name for name in names if name in coverage]
        best = max(known, key=lambda name: coverage[name], default=None)
        if best is not None and coverage[best] >= CAUSE_COVERAGE:
            return best
    outside = sum(coverage.get(name, 0.0) for name in _OUTSIDE)
    return "outside" if outside >= CAUSE_COVERAGE else None
