"""The ledger of the whole run over all its attempts: how much of its wall time made progress.

An attempt lasts from the birth of its first process to the end of its last one. Each rank that is
known fills that span: what it lived less counts as startup at the front and shutdown at the back;
the parts of an attempt are the means over its ranks. Between two attempts lies the restart.
Spans and gaps are taken on the monotonic clock of one machine; a clock that is off by an hour
changes nothing. Only where no machine took part in both attempts do wall clocks tell the gap.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from traceml_agent.report.membership import Attempt
from traceml_agent.report.resumption import Resumption, kept_steps, resumptions_of, steps_of
from traceml_agent.report.sections.ledger import Parts
from traceml_agent.spool.reader import Spool, last_step

GOODPUT_PARTS = (
    "productive",
    "lost",
    "startup",
    "compile",
    "eval",
    "checkpoint",
    "idle",
    "shutdown",
    "restart",
    "unknown",
)
_TRIMMED = ("shutdown", "idle", "unknown", "startup", "checkpoint", "eval", "compile", "training")
"""An attempt that begins before the one before it is quite gone: this is cut from the earlier one,
in this order."""
_SEPARATE = ("compile", "eval", "checkpoint")


@dataclass(frozen=True, slots=True)
class Gap:
    """From the end of one attempt to the birth of the next, in nanoseconds; below 0: at once."""

    length_ns: int | None  # None: cannot be known
    basis: str | None  # "monotonic clock", "wall clocks"


@dataclass(slots=True)
class Stretch:
    """An attempt in the ledger: nanoseconds of each part, means over its ranks."""

    span_ns: float
    parts: dict[str, float]  # PARTS of the ledger of a rank, and "unknown"
    productive_ns: float | None


@dataclass(frozen=True, slots=True)
class RunLedger:
    """The sections `ledger.attempts` and `ledger.goodput`, and what findings are made of."""

    attempts: list[dict[str, Any]]
    goodput: dict[str, Any]
    lost_share: float | None
    lost_steps: int | None


def build(
    attempts: Sequence[Attempt], parts: dict[int, Parts], statuses: Sequence[str]
) -> RunLedger:
    """`parts` is by the identity of a spool; `statuses` is one word an attempt."""
    resumed = resumptions_of(attempts)
    kept = kept_steps(attempts, resumed)
    stretches = [_stretch(a, parts, k) for a, k in zip(attempts, kept, strict=True)]
    gaps = [_gap(a, b) for a, b in itertools.pairwise(attempts)]
    for stretch, gap in zip(stretches, gaps, strict=False):
        if gap.length_ns is not None and gap.length_ns < 0:
            _trim(stretch, -gap.length_ns)
    entries = [
        _entry(attempt, stretch, resumption, keeps, status, gap)
        for attempt, stretch, resumption, keeps, status, gap in zip(
            attempts, stretches, resumed, kept, statuses, [None, *gaps], strict=True
        )
    ]
    goodput = _goodput(stretches, gaps)
    run = [steps_of(attempt) for attempt in attempts]
    lost = None if None in kept else sum(run) - sum(k for k in kept if k is not None)
    goodput |= {"steps_run": sum(run), "steps_lost": lost}
    goodput["steps_kept"] = None if lost is None else sum(run) - lost
    share = goodput["parts"]["lost"]["percent"]
    return RunLedger(entries, goodput, None if share is None else share / 100, lost)


def _stretch(attempt: Attempt, parts: dict[int, Parts], kept: int | None) -> Stretch:
    births, ends = _births(attempt), _ends(attempt)
    spans = {machine: ends[machine] - births[machine] for machine in births}
    longest = max(spans.values())
    total: dict[str, float] = {}
    productive = 0.0
    for life in attempt.lives.values():
        own = dict(_within(parts[id(life.spool)]))
        own["startup"] += life.born - births[life.machine]
        own["shutdown"] += ends[life.machine] - life.end
        own["unknown"] += longest - spans[life.machine]
        for name, nanoseconds in own.items():
            total[name] = total.get(name, 0.0) + nanoseconds
        if kept is not None and kept < last_step(life.spool):
            productive += min(own["training"], _training_until(life.spool, kept))
        else:
            productive += own["training"]
    count = len(attempt.lives)
    means = {name: nanoseconds / count for name, nanoseconds in total.items()}
    return Stretch(longest, means, None if kept is None else productive / count)


def _within(found: Parts) -> dict[str, float]:
    """The parts of a process, none of them beyond its life: a damaged spool may claim more."""
    claimed = sum(found.nanoseconds.values())
    wall = found.wall_ns
    scale = wall / claimed if claimed > wall else 1.0
    parts = {name: nanoseconds * scale for name, nanoseconds in found.nanoseconds.items()}
    return {**parts, "unknown": max(0.0, wall - claimed)}


def _training_until(spool: Spool, step: int) -> float:
    """Time in the steps up to this one, net of what has a part of its own."""
    total = 0.0
    for batch in spool.batches:
        count = min(batch.count, step - batch.first_step + 1)
        if count > 0:
            total += sum(batch.duration_ns[:count])
            total -= sum(sum(batch.phase_ns.get(name, ())[:count]) for name in _SEPARATE)
    for part in spool.sums:  # single steps were thinned out: their mean stands for each
        count = min(part.count, step - part.first_step + 1)
        if count > 0:
            net = part.duration_ns - sum(part.phase_ns.get(name, 0) for name in _SEPARATE)
            total += net * count / part.count
    return max(0.0, total)


def _births(attempt: Attempt) -> dict[str, int]:
    found: dict[str, int] = {}
    for life in attempt.lives.values():
        found[life.machine] = min(life.born, found.get(life.machine, life.born))
    return found


def _ends(attempt: Attempt) -> dict[str, int]:
    found: dict[str, int] = {}
    for life in attempt.lives.values():
        found[life.machine] = max(life.end, found.get(life.machine, life.end))
    return found


def _gap(before: Attempt, after: Attempt) -> Gap:
    births, ends, next_births = _births(before), _ends(before), _births(after)
    longest = max(ends[machine] - births[machine] for machine in births)
    for machine, born in births.items():
        if machine in next_births:
            return Gap(next_births[machine] - born - longest, "monotonic clock")
    length = min(next_births.values()) - min(births.values()) - longest
    return Gap(length, "wall clocks") if length >= 0 else Gap(None, None)


def _trim(stretch: Stretch, excess: float) -> None:
    excess = min(excess, stretch.span_ns)
    stretch.span_ns -= excess
    for name in _TRIMMED:
        cut = min(excess, stretch.parts[name])
        stretch.parts[name] -= cut
        excess -= cut
    if stretch.productive_ns is not None:
        stretch.productive_ns = min(stretch.productive_ns, stretch.parts["training"])


def _shares(stretch: Stretch) -> dict[str, float | None]:
    """Nanoseconds of each part of an attempt under the names of the goodput."""
    found: dict[str, float | None] = {name: stretch.parts.get(name, 0.0) for name in GOODPUT_PARTS}
    productive = stretch.productive_ns
    found["productive"] = productive
    found["lost"] = None if productive is None else stretch.parts["training"] - productive
    return found


def _entry(
    attempt: Attempt,
    stretch: Stretch,
    resumption: Resumption,
    kept: int | None,
    status: str,
    gap: Gap | None,
) -> dict[str, Any]:
    first = min(attempt.lives.values(), key=lambda life: life.born)
    steps = steps_of(attempt)
    shares = _shares(stretch)
    del shares["restart"]
    restart = None if gap is None or gap.length_ns is None else max(0, gap.length_ns) / 1e9
    return {
        "attempt": attempt.number,
        "status": status,
        "world_size": attempt.world_size,
        "ranks": len(attempt.lives),
        "processes_left_out": len(attempt.doubles),
        "start_ts_s": first.born / 1e9,
        "wall_s": stretch.span_ns / 1e9,
        "restart_gap_s": restart,
        "restart_clock": None if gap is None else gap.basis,
        "resumed_at_step": resumption.position,
        "resumed_by": resumption.basis,
        "steps": steps,
        "steps_lost": None if kept is None else steps - kept,
        "training_s": stretch.parts["training"] / 1e9,
        "parts": _table(shares, stretch.span_ns),
    }


def _goodput(stretches: Sequence[Stretch], gaps: Sequence[Gap]) -> dict[str, Any]:
    known = [max(0, gap.length_ns) for gap in gaps if gap.length_ns is not None]
    wall = sum(stretch.span_ns for stretch in stretches) + sum(known)
    total: dict[str, float | None] = {}
    for name in GOODPUT_PARTS:
        values = [_shares(stretch)[name] for stretch in stretches]
        total[name] = None if None in values else sum(v for v in values if v is not None)
    total["restart"] = None if len(known) < len(gaps) else float(sum(known))
    training = sum(stretch.parts["training"] for stretch in stretches)
    table = _table(total, wall)
    return {
        "wall_s": wall / 1e9,
        "goodput_percent": table["productive"]["percent"],
        "at_most_percent": 100 * training / wall if wall > 0 else None,
        "attempts": len(stretches),
        "parts": table,
    }


def _table(nanoseconds: dict[str, float | None], wall_ns: float) -> dict[str, Any]:
    return {
        name: {
            "seconds": None if value is None else value / 1e9,
            "percent": None if value is None or wall_ns <= 0 else 100 * value / wall_ns,
        }
        for name, value in nanoseconds.items()
    }
