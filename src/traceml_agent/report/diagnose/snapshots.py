"""Weights and gradients that are not finite numbers. What else their figures say is for people."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from traceml_agent.report.diagnose.issue import Issue
from traceml_agent.report.parts import one_line
from traceml_agent.schema.snapshots import Figures, Snapshot, TensorFigures

NAME_LIMIT = 100
"""Characters of a name in a message."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """The first tensor with an element that is no finite number."""

    rank: int
    row: TensorFigures
    figures: Figures
    epoch: int | None
    tensors: int  # of the same snapshot, with this one
    of: int
    finite_step: int | None  # when the same was finite, in the snapshot before


def diagnose(snapshots: Mapping[int, Sequence[Snapshot]]) -> list[Issue]:
    """The issues in the snapshots of the ranks, each in the order in which they were taken."""
    weights, gradients = (_first(snapshots, kind) for kind in ("weight", "gradient"))
    found = []
    if weights is not None:
        found.append(
            _issue(
                "NON_FINITE_WEIGHTS",
                "crit",
                "The weights",
                weights,
                "What is trained from here on is lost: go back to a checkpoint from before. Then "
                "look for the first loss that is no number, lower the learning rate, clip the "
                "gradients, or let torch.autograd.set_detect_anomaly(True) name the operation.",
            )
        )
    if gradients is not None:
        found.append(
            _issue(
                "NON_FINITE_GRADIENTS",
                "warn" if weights is None else "crit",
                "The gradients",
                gradients,
                "The optimizer was given these. Let torch.autograd.set_detect_anomaly(True) name "
                "the operation that makes them; look at the batch of that step, at divisions and "
                "logarithms of zero, and, in half precision, use a GradScaler.",
            )
        )
    return found


def _first(snapshots: Mapping[int, Sequence[Snapshot]], kind: str) -> _Seen | None:
    best: _Seen | None = None
    for rank, of_rank in snapshots.items():
        found = _first_of(rank, of_rank, kind)
        if found is not None and (best is None or found.row.step < best.row.step):
            best = found
    return best


def _first_of(rank: int, snapshots: Sequence[Snapshot], kind: str) -> _Seen | None:
    finite: dict[str, int] = {}
    for snapshot in snapshots:
        figures = [(row, getattr(row, kind)) for row in snapshot.tensors]
        odd = [(row, of) for row, of in figures if of is not None and of.nan + of.inf]
        if odd:
            row, of = min(odd, key=lambda pair: pair[0].step)
            known = sum(of is not None for _, of in figures)
            last = finite.get(row.name)
            return _Seen(rank, row, of, snapshot.epoch, len(odd), known, last)
        finite |= {row.name: row.step for row, of in figures if of is not None}
    return None


def _issue(kind: str, severity: str, what: str, seen: _Seen, action: str) -> Issue:
    row, figures = seen.row, seen.figures
    name = one_line(row.name)[:NAME_LIMIT]
    when = f"step {row.step:,}" if seen.epoch is None else f"step {row.step:,} (epoch {seen.epoch})"
    text = (
        f"{what} of {name} held {figures.nan:,} NaN and {figures.inf:,} Inf among "
        f"{row.looked:,} elements after {when}"
    )
    if seen.tensors > 1:
        text += f", as did those of {seen.tensors - 1} of {seen.of - 1} other tensors"
    if seen.finite_step is not None:
        text += f"; after step {seen.finite_step:,} they were finite"
    return Issue(
        kind,
        severity,
        text + ".",
        action,
        ranks=(seen.rank,),
        evidence={
            "tensor": name,
            "step": row.step,
            "epoch": seen.epoch,
            "nan": figures.nan,
            "inf": figures.inf,
            "elements": row.looked,
            "tensors": seen.tensors,
            "finite_at_step": seen.finite_step,
        },
    )
