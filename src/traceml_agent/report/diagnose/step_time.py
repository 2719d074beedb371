"""What binds the step: input, copies, compute, or what no phase claims."""

from dataclasses import dataclass

from traceml_agent.report.diagnose.issue import LEAST_STEPS, Issue, band, by_severity
from traceml_agent.report.stats import median
from traceml_agent.schema.phases import COMPUTE_PHASES

SHARE_WARN = 0.10
SHARE_CRIT = 0.20
COMPUTE_SHARE = 0.90
"""Shares of the typical step. Source: summary contract, from TraceML's step-time policy."""
NOT_TRAINING = ("eval", "checkpoint", "compile")
"""Phases that a step may hold but that are no part of the typical step: a validation of ten
seconds in one step of a thousand must not hide that the others wait for input."""

_ADVICE = {
    "input_wait": (
        "INPUT_BOUND",
        "input",
        "input_bound_share",
        "Waiting for the next batch takes",
        "Load in parallel and ahead: raise num_workers, then prefetch_factor and "
        "persistent_workers=True; make the work per item cheaper.",
    ),
    "h2d": (
        "H2D_BOUND",
        "h2d",
        "h2d_share",
        "Copying batches to the device takes",
        "Use pin_memory=True in the DataLoader and .to(device, non_blocking=True); move fewer or "
        "smaller tensors per step.",
    ),
    "residual": (
        "RESIDUAL_HEAVY",
        "residual",
        "residual_share",
        "Time that no phase claims takes",
        "Look at what the loop does between its calls of the model: metrics, .item(), printing, "
        "writing files. Do it every N steps, or after the loop.",
    ),
    # The contract has no kind for it: it is what a loop does between its calls of the model.
    "logging": (
        "RESIDUAL_HEAVY",
        "logging",
        "logging_share",
        "Logging takes",
        "Log every N steps, to fewer trackers, or to one that works in a thread of its own.",
    ),
}


@dataclass(frozen=True, slots=True)
class StepFigures:
    """Mean times of one rank over the window, in milliseconds."""

    rank: int
    step_ms: float
    parts_ms: dict[str, float | int | None]
    missing: tuple[str, ...]

    @property
    def traced_ms(self) -> float:
        """The step without the wait for its batch."""
        return max(0.0, self.step_ms - (self.parts_ms.get("input_wait") or 0.0))

    @property
    def typical_ms(self) -> float:
        """The step without evaluation, checkpoints and compilation."""
        rest = self.step_ms - sum(self.parts_ms.get(name) or 0.0 for name in NOT_TRAINING)
        return max(0.0, rest)


@dataclass(frozen=True, slots=True)
class WaitedFor:
    """Ranks that the others wait for: the finding, and what it explains already."""

    issue: Issue
    slow: tuple[int, ...]
    cause: str | None
    waits_in: tuple[str, ...]


def diagnose(
    ranks: list[StepFigures],
    steps: int,
    clock: str,
    loader_seen: bool,
    waited_for: WaitedFor | None = None,
) -> list[Issue]:
    """The issues of section step_time, the worst first; never empty."""
    early = _too_early(ranks, steps)
    if early is not None:
        return [early]
    found = [
        issue
        for part in _ADVICE
        if (issue := _bound(part, _unexplained(part, ranks, waited_for), steps, clock)) is not None
    ]
    if waited_for is not None:
        found.insert(0, waited_for.issue)
    return by_severity(found) if found else [_compute_or_balanced(ranks, steps, loader_seen)]


def _too_early(ranks: list[StepFigures], steps: int) -> Issue | None:
    if not ranks or steps == 0:
        return Issue(
            "NO_DATA",
            "info",
            "No training step was closed.",
            "Let the training run for at least two optimizer updates.",
        )
    if steps < LEAST_STEPS:
        return Issue(
            "WARMUP",
            "info",
            f"Only {steps} step was closed: too few to say anything.",
            "Let the training run longer.",
            evidence={"steps_used": steps},
        )
    missing = sorted(
        {n for r in ranks for n in r.missing if n in ("forward", "backward", "optimizer")}
    )
    return _incomplete(missing, steps) if missing else None


def _incomplete(missing: list[str], steps: int) -> Issue:
    return Issue(
        "INCOMPLETE_DATA",
        "info",
        f"Not measured: {', '.join(missing)}.",
        "See `traceml_agent.patches` for the reason; `traceml-agent doctor` helps.",
        evidence={"missing_signals": missing, "steps_used": steps},
    )


def share(rank: StepFigures, part: str) -> float | None:
    """A part of the typical step of a rank, 0 to 1; None if it was not measured."""
    value = rank.parts_ms.get(part)
    return None if value is None or rank.typical_ms <= 0 else value / rank.typical_ms


def share_of_step(ranks: list[StepFigures], part: str) -> float | None:
    """Median over the ranks of a part of the whole step, 0 to 1: what the tables show.

    The verdict rests on `share`, of the typical step; they differ where a step holds evaluation.
    """
    parts = [(rank.parts_ms.get(part), rank.step_ms) for rank in ranks]
    return median([value / step for value, step in parts if value is not None and step > 0])


def _unexplained(
    part: str, ranks: list[StepFigures], waited_for: WaitedFor | None
) -> list[StepFigures]:
    """The ranks that say whether a part binds the whole job, and not the slow ranks alone."""
    if waited_for is None:
        return ranks
    if part in waited_for.waits_in:
        # On the others this is waiting; the slow ones show what it takes without.
        return [rank for rank in ranks if rank.rank in waited_for.slow]
    is_outside = part in ("residual", "logging") and waited_for.cause == "outside"
    if part == waited_for.cause or is_outside:
        return [rank for rank in ranks if rank.rank not in waited_for.slow]
    return ranks


def _bound(part: str, ranks: list[StepFigures], steps: int, clock: str) -> Issue | None:
    shares = [s for rank in ranks if (s := share(rank, part)) is not None]
    typical = median(shares)
    severity = None if typical is None else band(typical, SHARE_WARN, SHARE_CRIT, steps)
    if severity is None or typical is None:
        return None
    kind, phase, share_name, words, action = _ADVICE[part]
    of_step = share_of_step(ranks, part)
    values = [v for rank in ranks if (v := rank.parts_ms.get(part)) is not None]
    middle_ms = median(values) or 0.0
    return Issue(
        kind=kind,
        severity=severity,
        summary=f"{words} {typical:.0%} of the step ({_ms(middle_ms)} of "
        f"{_ms(median([rank.typical_ms for rank in ranks]) or 0.0)}).",
        action=action,
        metric=part,
        phase=phase,
        score=typical,
        share_pct=of_step,
        ranks=tuple(rank.rank for rank in ranks),
        evidence={
            f"{part}_ms": middle_ms,
            "traced_step_time_ms": median([rank.traced_ms for rank in ranks]),
            "step_time_ms": median([rank.step_ms for rank in ranks]),
            "typical_step_ms": median([rank.typical_ms for rank in ranks]),
            share_name: of_step,
            "share": typical,
            "threshold_warn": SHARE_WARN,
            "threshold_crit": SHARE_CRIT,
            "steps_used": steps,
            "diagnosis_clock": clock,
        },
    )


def _compute_or_balanced(ranks: list[StepFigures], steps: int, loader_seen: bool) -> Issue:
    compute = median([s for rank in ranks if (s := share(rank, "compute")) is not None]) or 0.0
    evidence = {"compute_share": compute, "threshold": COMPUTE_SHARE, "steps_used": steps}
    typical = tuple(rank.rank for rank in ranks)
    if compute >= COMPUTE_SHARE:
        return Issue(
            "COMPUTE_BOUND",
            "info",
            f"Forward, backward and optimizer take {compute:.0%} of {_basis(ranks)}.",
            "Nothing around the model holds it back. To go faster, make the model's own work "
            "cheaper: mixed precision, torch.compile, a larger batch, fused optimizers.",
            metric="compute",
            phase=_largest_compute(ranks),
            share_pct=share_of_step(ranks, "compute"),
            ranks=typical,
            evidence=evidence,
        )
    missing = sorted({name for rank in ranks for name in rank.missing})
    if missing:
        return _incomplete(missing, steps)
    waited = "" if loader_seen else " No DataLoader was used."
    return Issue(
        "BALANCED",
        "info",
        f"No part around the model takes 10 % of the step; compute takes {compute:.0%}.{waited}",
        "Nothing stands out. Compare runs, or look at the largest phase of the table.",
        metric="step_time",
        share_pct=share_of_step(ranks, "compute"),
        ranks=typical,
        evidence=evidence,
    )


def _basis(ranks: list[StepFigures]) -> str:
    """In words what shares are of."""
    whole = all(rank.typical_ms == rank.step_ms for rank in ranks)
    return "the step" if whole else "the step without evaluation, checkpoints and compilation"


def _largest_compute(ranks: list[StepFigures]) -> str:
    """The phase of compute that takes longest in the median over the ranks."""
    return max(
        COMPUTE_PHASES,
        key=lambda name: median([rank.parts_ms.get(name) or 0.0 for rank in ranks]) or 0.0,
    )


def _ms(value: float) -> str:
    return f"{value:.2f} ms" if value < 10 else f"{value:.1f} ms"
