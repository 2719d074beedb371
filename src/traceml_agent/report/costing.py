"""What each finding costs, and what fixing it would save: filled into the issues of all sections.

A finding about time is matched with what its cause took of each step: a phase, a part of a phase,
or a loss (`losses.py`). The saving is the interval of `savings.py`. Where workers feed the loop, a
loop that became faster would wait for them again: the replay of the loader says how long.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from traceml_agent.report.align import Aligned, Rows, align, at_steps
from traceml_agent.report.costed import LINES, LOSS_OF, METHOD, PHASE_OF, RESIDUAL_HEAVY, WITHOUT
from traceml_agent.report.diagnose.causes import is_of_logging, of_residual
from traceml_agent.report.diagnose.issue import Cost, Saving
from traceml_agent.report.efficiency import gpus_of_job
from traceml_agent.report.loader_replay import ReplayInputs, mean_step, replay_inputs
from traceml_agent.report.losses import Loss
from traceml_agent.report.savings import Cause, Job, interval_saving, saving_of
from traceml_agent.report.sections.ranks import Comparison
from traceml_agent.report.sections.shape import Window
from traceml_agent.report.stats import Column, median, scaled, total
from traceml_agent.report.view import RankView, RunView
from traceml_agent.schema.phases import PHASES
from traceml_agent.schema.records import StepSums

MS = 1e6
MOST_REPLAYED = 4
"""Ranks whose loaders are replayed. Chosen: ranks of one job load alike, and it takes time."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What a cause took of the steps of the window, a column a rank; at least, and at most."""

    name: str
    least: Rows
    most: Rows | None
    method: str
    without: str = "it"


@dataclass(frozen=True, slots=True)
class Steps:
    """All that costs are computed from."""

    aligned: Aligned
    job: Job
    done: list[StepSums]
    losses: dict[str, Rows]
    loaders: list[ReplayInputs]  # with workers
    batches_per_step: float


def fill(
    view: RunView,
    window: Window,
    compared: Comparison,
    losses: Iterable[Loss],
    sections: Iterable[dict[str, Any]],
) -> None:
    """Fills `cost` and `saving` of the issues that have a cause in the steps."""
    issues = [issue for section in sections for issue in section["issues"] if _is_priced(issue)]
    if not issues:
        return
    steps = _steps(view, window, compared, losses)
    if steps is None:
        return
    taken = {
        id(issue): found for issue in issues if (found := _taken(issue, issues, steps)) is not None
    }
    # What the others are of: each cause once, not each finding about it.
    of_causes = {found.name: found.least for found in taken.values()}
    for issue in issues:
        found = taken.get(id(issue))
        saving = _told(issue, steps.job) if found is None else _saving(found, of_causes, steps)
        issue["saving"] = None if saving is None else asdict(saving)
        cost = _cost(issue, found, saving, steps)
        issue["cost"] = None if cost is None else asdict(cost)


def _is_priced(issue: dict[str, Any]) -> bool:
    kind, evidence = issue["kind"], issue["evidence"]
    return (
        kind in (*PHASE_OF, *LOSS_OF, *LINES, RESIDUAL_HEAVY)
        or issue["cost"] is not None
        or "what_if" in evidence
        or "transfer_high_ms" in evidence
    )


def _steps(
    view: RunView, window: Window, compared: Comparison, losses: Iterable[Loss]
) -> Steps | None:
    aligned = compared.aligned
    if aligned is None:
        aligned = align(view.ranks, window.start_step, window.end_step, on_device=False)
    if aligned is None:
        return None
    done = [part for rank in view.ranks if (part := rank.sums) is not None]
    ranks = [rank for rank in view.ranks if rank.series.steps]
    inputs = [found for rank in ranks[:MOST_REPLAYED] if (found := replay_inputs(rank)) is not None]
    count = sum(part.count for part in done)
    return Steps(
        aligned=aligned,
        job=_job(view, aligned, done, compared),
        done=done,
        losses=_loss_rows(aligned, ranks, losses),
        loaders=[found for found in inputs if found.workers],
        batches_per_step=sum(part.micro_batches for part in done) / count if count else 1.0,
    )


def _loss_rows(
    aligned: Aligned, ranks: Sequence[RankView], losses: Iterable[Loss]
) -> dict[str, Rows]:
    """The columns of each cause at the aligned steps; ranks that lost nothing have zeros."""
    own = {rank.rank: rank.series.steps for rank in ranks}
    index = {rank: at for at, rank in enumerate(aligned.ranks)}
    rows: dict[str, Rows] = {}
    for loss in losses:
        if loss.rank not in index:
            continue
        if loss.cause not in rows:
            rows[loss.cause] = [[0] * len(aligned.steps) for _ in aligned.ranks]
        rows[loss.cause][index[loss.rank]] = at_steps(loss.lost_ns, own[loss.rank], aligned.steps)
    return rows


# What a cause took


def _taken(issue: dict[str, Any], issues: Iterable[dict[str, Any]], steps: Steps) -> Taken | None:
    kind = issue["kind"]
    if kind == RESIDUAL_HEAVY and not is_of_logging(issue):
        cause = of_residual(issue, issues)  # measured, where a line is sampled
        kind = kind if cause is None else cause["kind"]
    if kind in LOSS_OF:
        name = LOSS_OF[kind]
        rows = steps.losses.get(name)
        return None if rows is None else Taken(name, rows, None, METHOD["loss"], WITHOUT[name])
    phase = _phase_of(issue)
    rows = None if phase is None else steps.aligned.rows(phase)
    if phase is None or rows is None:
        return None
    low, high = (issue["evidence"].get(f"line_share_{bound}") for bound in ("low", "high"))
    if kind in (*LINES, RESIDUAL_HEAVY) and low is not None:
        name = phase if kind == RESIDUAL_HEAVY else f"{phase} {issue['place']}"
        least, most = _scaled(rows, low), _scaled(rows, high)
        return Taken(name, least, most, METHOD["line"], "this line")
    if kind in ("INPUT_BOUND", "H2D_BOUND", RESIDUAL_HEAVY):
        return Taken(phase, rows, None, METHOD[phase], WITHOUT[phase])
    part = _part(issue, rows, steps.aligned)
    return None if part is None else Taken(phase, _scaled(rows, part), None, METHOD["part"])


def _phase_of(issue: dict[str, Any]) -> str | None:
    own = {**dict.fromkeys(LINES, issue["phase"]), RESIDUAL_HEAVY: issue["metric"]}
    return (PHASE_OF | own).get(issue["kind"])


def _part(issue: dict[str, Any], rows: Rows, aligned: Aligned) -> float | None:
    """How much of its phase a finding is about, from the cost that its rule gave."""
    if issue["cost"] is None:
        return None
    whole = max((total(column) for column in rows), default=0) / len(aligned.steps) / MS
    return min(1.0, issue["cost"]["ms_per_step"] / whole) if whole else None


def _scaled(rows: Rows, factor: float) -> Rows:
    return rows if factor == 1.0 else [scaled(column, factor) for column in rows]


def _told(issue: dict[str, Any], job: Job) -> Saving | None:
    """What the evidence says already; or all that it costs, where that is one number."""
    found = issue["evidence"]
    gain = found.get("what_if")
    if isinstance(gain, dict):
        if gain.get("gain_low_ms") is None:
            return None
        low, high = gain["gain_low_ms"] * MS, gain["gain_high_ms"] * MS
        saving = interval_saving(job, low, high, METHOD["straggler"])
        return replace(saving, without="the slow rank")
    if found.get("transfer_high_ms") is not None:
        low, high = found["transfer_low_ms"] * MS, found["transfer_high_ms"] * MS
        saving = interval_saving(job, low, high, METHOD["transfer"])
        return replace(saving, without="the transfers")
    if found.get("gain_high_ms") is not None:
        low, high = found["gain_low_ms"] * MS, found["gain_high_ms"] * MS
        return replace(interval_saving(job, low, high, METHOD["pages"]), without="the new pages")
    if issue["cost"] is None or issue["confidence"] == "low":
        return None
    all_ns = issue["cost"]["ms_per_step"] * MS
    return interval_saving(job, all_ns, all_ns, METHOD["total"])


# What it costs, and what fixing it saves


def _saving(found: Taken, of_causes: dict[str, Rows], steps: Steps) -> Saving | None:
    others = [rows for name, rows in of_causes.items() if name != found.name]
    taken_back = 0
    if found.name != "input_wait":
        lost = max(found.most or found.least, key=total)
        taken_back = int(max((_refill(i, lost, steps) for i in steps.loaders), default=0.0))
    cause = Cause(
        found.name,
        found.least,
        found.most,
        hides_ns=[taken_back] * len(steps.aligned.steps) if taken_back else None,
        method=found.method,
    )
    saving = saving_of(steps.job, cause, others)
    return None if saving is None else replace(saving, without=found.without)


def _refill(inputs: ReplayInputs, lost_ns: Column, steps: Steps) -> float:
    """How much longer a step would wait for its batches, were the loop faster by these times.

    The longest are taken off where the loop took longest: a pause in one of twenty steps is no
    twentieth in each.
    """
    main, each = list(inputs.main_ns), max(1.0, steps.batches_per_step)
    most = sorted(lost_ns, reverse=True)
    longest = sorted(range(len(main)), key=main.__getitem__, reverse=True)
    count = min(len(main), max(1, round(len(main) / each)))
    for place, index in enumerate(longest[:count]):
        main[index] = max(0, main[index] - most[place * len(most) // count])
    gone = (sum(inputs.main_ns) - sum(main)) / len(main)
    saved = mean_step(inputs) - mean_step(replace(inputs, main_ns=main))
    return max(0.0, gone - max(0.0, saved)) * each


def _cost(
    issue: dict[str, Any], found: Taken | None, saving: Saving | None, steps: Steps
) -> Cost | None:
    """The cost that its rule gave, with the seconds of the run; else what was taken of the steps;
    else the middle of what would be saved."""
    run_ns = steps.job.run_ns
    if issue["cost"] is not None:
        given = Cost(**issue["cost"])
        if given.run_s is not None or run_ns is None:
            return given
        return replace(given, run_s=given.ms_per_step * steps.job.run_steps / 1e3)
    if found is not None:
        return _cost_of(found, _phase_of(issue), steps)
    return None if saving is None else _middle(saving)


def _cost_of(found: Taken, phase: str | None, steps: Steps) -> Cost:
    """Medians over the ranks: what a typical one loses."""
    count = len(steps.aligned.steps)
    rows = (None if phase is None else steps.aligned.rows(phase)) or found.most or found.least
    gone = [total(column) / count for column in rows]
    took = [total(column) / count for column in steps.aligned.step_ns]
    shares = [part / step for part, step in zip(gone, took, strict=True) if step]
    in_run = [] if phase is None else [_in_run(part, phase) for part in steps.done]
    return Cost(
        ms_per_step=(median(gone) or 0.0) / MS,
        share=median(shares) or 0.0,
        run_s=(median(in_run) or 0.0) / 1e9 if in_run else None,
    )


def _in_run(part: StepSums, name: str) -> int:
    if name != "residual":
        return part.phase_ns.get(name, 0)
    return max(0, part.duration_ns - sum(part.phase_ns.get(phase, 0) for phase in PHASES))


def _middle(saving: Saving) -> Cost:
    """The cost of what only an interval is known of: its middle."""
    gone = saving.step_ms - (saving.step_low_ms + saving.step_high_ms) / 2
    run_s = None
    if saving.run_s is not None and saving.run_low_s is not None and saving.run_high_s is not None:
        run_s = saving.run_s - (saving.run_low_s + saving.run_high_s) / 2
    return Cost(gone, gone / saving.step_ms if saving.step_ms else 0.0, run_s)


# The job


def _job(view: RunView, aligned: Aligned, done: list[StepSums], compared: Comparison) -> Job:
    longest = max(done, key=lambda part: part.duration_ns, default=None)
    return Job(
        step_ns=aligned.step_ns,
        work_ns=aligned.step_ns if compared.own is None else compared.own.work,
        run_ns=None if longest is None else longest.duration_ns,
        run_steps=0 if longest is None else longest.count,
        price_per_h=_price_per_h(view),
        watts=_watts(view),
    )


def _price_per_h(view: RunView) -> float | None:
    """Of all ranks of the job; those that are missing cost what the others do."""
    known = [p for rank in view.ranks if (p := rank.spool.header.cost_per_hour) is not None]
    return sum(known) / len(known) * view.world_size if known else None


def _watts(view: RunView) -> tuple[float, float] | None:
    """Of all GPUs of the job: the least that each drew, and what it drew on average.

    Time that is saved saves at least what an idle GPU draws. The least of the run stands for that.
    """
    gpus = gpus_of_job(view.ranks) or {}
    drawn = [[s.power_w for s in samples if s.power_w is not None] for samples in gpus.values()]
    if not drawn or not all(drawn):
        return None
    return sum(map(min, drawn)), sum(sum(of) / len(of) for of in drawn)
