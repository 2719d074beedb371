"""The ledger: where the whole wall time of a process went, in parts that sum to it."""

from dataclasses import dataclass
from typing import Any

from traceml_agent.report.series import totals
from traceml_agent.report.view import RankView
from traceml_agent.schema.phases import PHASES
from traceml_agent.schema.records import StepSums
from traceml_agent.spool.reader import Spool

PARTS = ("startup", "training", "compile", "eval", "checkpoint", "idle", "shutdown")
_SEPARATE = ("compile", "eval", "checkpoint")


@dataclass(frozen=True, slots=True)
class Span:
    """When a process lived and trained, by its monotonic clock, in nanoseconds."""

    born: int
    first_step: int
    last_step_end: int
    gone: int


@dataclass(frozen=True, slots=True)
class Parts:
    """The life of one process in nanoseconds."""

    span: Span
    nanoseconds: dict[str, int]  # by PARTS
    done: StepSums | None

    @property
    def wall_ns(self) -> int:
        """From its birth to the last that is known of it."""
        return self.span.gone - self.span.born


def build(rank: RankView, found: Parts) -> dict[str, Any]:
    """Seconds and percent of each part of a process."""
    wall_ns, nanoseconds, done = found.wall_ns, found.nanoseconds, found.done
    return {
        "rank": rank.rank,
        "wall_s": wall_ns / 1e9,
        "parts": {
            name: {
                "seconds": nanoseconds[name] / 1e9,
                "percent": 100 * nanoseconds[name] / wall_ns if wall_ns > 0 else None,
            }
            for name in PARTS
        },
        "detail": {
            "startup": _startup(rank.spool, nanoseconds["startup"]),
            "training": _training(rank.spool, nanoseconds["training"], done),
        },
        # Never below 0: steps of a damaged spool may overlap.
        "unaccounted_s": max(0, wall_ns - sum(nanoseconds.values())) / 1e9,
        "steps": 0 if done is None else done.count,
        "micro_batches": 0 if done is None else done.micro_batches,
        "samples": None if done is None else done.samples,
        "updates": 0 if done is None else done.updates,
    }


def parts_of(spool: Spool, known: StepSums | None = None) -> Parts:
    """Where the time of a process went; `known`: the sums over its steps, if they were made.

    startup: before the first step, net of what has a part of its own. training: the time of all
    steps, net of evaluation, checkpoints and compilation in them. idle: between steps, and in no
    phase. shutdown: after the last step.
    """
    done = totals(spool) if known is None else known
    span = _span(spool)
    outside = {name: spool.outside_ns.get(name, 0) for name in PHASES}
    inside = dict.fromkeys(PHASES, 0) if done is None else done.phase_ns
    steps_ns = 0 if done is None else done.duration_ns
    parts = {name: inside.get(name, 0) + outside[name] for name in _SEPARATE}
    training = steps_ns - sum(inside.get(name, 0) for name in _SEPARATE)
    # What is outside steps happened before the first, between two, or after the last one.
    left = sum(outside[name] for name in _SEPARATE)
    gaps = {
        "startup": span.first_step - span.born,
        "shutdown": span.gone - span.last_step_end,
        "idle": max(0, span.last_step_end - span.first_step - steps_ns),
    }
    taken = {}
    for name, gap in gaps.items():
        taken[name] = min(left, max(0, gap)) if name == "idle" else 0
        left -= taken[name]
    for name in ("shutdown", "startup"):
        taken[name] = min(left, max(0, gaps[name]))
        left -= taken[name]
    nanoseconds = {
        "startup": max(0, gaps["startup"] - taken["startup"]),
        "training": max(0, training),
        **parts,
        "idle": max(0, gaps["idle"] - taken["idle"]),
        "shutdown": max(0, gaps["shutdown"] - taken["shutdown"]),
    }
    return Parts(span, nanoseconds, done)


def _startup(spool: Spool, startup_ns: int) -> dict[str, float]:
    """Seconds until torch was imported, and from then to the first step: model, data, the rest."""
    header = spool.header
    imported = header.torch_imported_ns
    imports_ns = 0 if imported is None else imported - header.process_start_ns
    imports_ns = min(max(0, imports_ns), startup_ns)
    return {"imports": imports_ns / 1e9, "setup": (startup_ns - imports_ns) / 1e9}


def _training(spool: Spool, training_ns: int, done: StepSums | None) -> dict[str, float | None]:
    """Seconds of the steps by phase; the wait for the very first batch apart from the others, None
    where the first step is known in a sum alone."""
    phase_ns = {} if done is None else done.phase_ns
    first = next((batch for batch in spool.batches if batch.first_step == 1), None)
    first_ns = 0 if first is None else (first.phase_ns.get("input_wait") or (0,))[0]
    known = {name: phase_ns.get(name, 0) for name in PHASES if name not in _SEPARATE}
    known["input_wait"] = max(0, known["input_wait"] - first_ns)
    known["residual"] = max(0, training_ns - first_ns - sum(known.values()))
    seconds = {name: nanoseconds / 1e9 for name, nanoseconds in known.items()}
    return {"first_batch": None if first is None else first_ns / 1e9, **seconds}


def _span(spool: Spool) -> Span:
    starts = [batch.start_ns for batch in spool.batches] + [s.start_ns for s in spool.sums]
    ends = [b.start_ns + sum(b.duration_ns) for b in spool.batches]
    ends += [s.start_ns + s.duration_ns for s in spool.sums]
    gone = max(spool.last_monotonic_ns, max(ends, default=0), spool.header.monotonic_ns)
    born = min(spool.header.process_start_ns, min(starts, default=gone), gone)
    return Span(born, min(starts, default=gone), max(ends, default=gone), gone)
