"""Savings: the step and the run without one cause, as intervals.

A cause has no single number of its own where causes overlap: removing garbage collection from a
step that also waits for its batch saves less than it would add to a step without faults. So there
are two questions: what does removing this cause alone save (from the run as it was), and what
would this cause alone add (to the run without any known cause). The interval holds the answers to
both, each with the 95 % interval of a mean over blocks of steps.

Ranks that meet once a step are as fast as the slowest of them: the work of each rank, less what
the cause took of it, is compared anew in every step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from traceml_agent.report.align import Rows, per_step
from traceml_agent.report.diagnose.issue import Saving
from traceml_agent.report.stats import Column, differences, mean, sum_columns, total
from traceml_agent.report.whatif import mean_interval

MS = 1e6
HOUR_NS = 3600e9
LEAST_STEPS = 5
"""Chosen: under five steps after the warm-up a mean says nothing about the next run."""


@dataclass(frozen=True, slots=True)
class Job:
    """The steps of the window, rank by rank, and the length of the whole run."""

    step_ns: Rows
    work_ns: Rows  # the step less the waiting for other ranks
    run_ns: int | None  # all steps together; None where not all are known
    run_steps: int
    price_per_h: float | None = None  # of all ranks together
    watts: tuple[float, float] | None = None  # of all GPUs: idling, and on average


@dataclass(frozen=True, slots=True)
class Cause:
    """What one cause takes of the steps of the window, in nanoseconds, a column a rank."""

    name: str
    lost_ns: Rows  # at least: where it was measured, least and most are the same
    most_ns: Rows | None = None  # at most, where it is known from samples alone
    hides_ns: Column | None = None  # what a loader's wait takes back if it is gone; see `refill`
    method: str = ""


def saving_of(job: Job, cause: Cause, others: Sequence[Rows]) -> Saving | None:
    """The interval for one cause; `others` are the losses to all other causes. None: too few steps.

    Losses are cut to the step in which they lie, and all causes together to the step as well.
    """
    steps = len(job.step_ns[0]) if job.step_ns else 0
    if steps < LEAST_STEPS:
        return None
    now = total(per_step(job.work_ns).highest) / steps
    left: list[float] = []  # of a step without the cause
    for lost in (cause.lost_ns, cause.most_ns):
        if lost is None:
            continue
        then = _slowest(job.work_ns, lost)
        left += mean_interval(then)
        if cause.hides_ns is not None:
            left += mean_interval(sum_columns([then, cause.hides_ns]))
        if others:
            clean = [
                differences(work, sum_columns([lost[i], *(rows[i] for rows in others)]))
                for i, work in enumerate(job.work_ns)
            ]
            left.append(now - total(_added(clean, lost)) / steps)
    bounds = [now - remaining for remaining in left]
    return interval_saving(job, min(bounds), max(bounds), cause.method)


def _slowest(work: Rows, lost: Rows) -> Column:
    """What the slowest rank of each step would take without what it lost."""
    then = [differences(column, gone) for column, gone in zip(work, lost, strict=True)]
    return per_step(then).highest


def _added(clean: Rows, lost: Rows) -> Column:
    """What the cause alone would add in each step to ranks without any cause."""
    loaded = [sum_columns([column, gone]) for column, gone in zip(clean, lost, strict=True)]
    return differences(per_step(loaded).highest, per_step(clean).highest)


def _mean_step(job: Job) -> float:
    return mean([total(column) / len(column) for column in job.step_ns]) or 0.0


def interval_saving(job: Job, least: float, most: float, method: str) -> Saving:
    """The saving of `least` to `most` nanoseconds a step, cut to what the step takes."""
    step = _mean_step(job)
    least, most = min(step, max(0.0, least)), max(0.0, min(step, most))
    run_ns, steps = job.run_ns, job.run_steps
    hours = None if run_ns is None else (steps * least / HOUR_NS, steps * most / HOUR_NS)
    price, watts = job.price_per_h, job.watts
    return Saving(
        step_ms=step / MS,
        step_low_ms=(step - most) / MS,
        step_high_ms=(step - least) / MS,
        run_s=None if run_ns is None else run_ns / 1e9,
        run_low_s=None if run_ns is None else max(0.0, run_ns - steps * most) / 1e9,
        # Steps outside the window may be shorter than those in it.
        run_high_s=None if run_ns is None else max(0.0, run_ns - steps * least) / 1e9,
        method=method,
        money_low=None if hours is None or price is None else hours[0] * price,
        money_high=None if hours is None or price is None else hours[1] * price,
        kwh_low=None if hours is None or watts is None else hours[0] * watts[0] / 1e3,
        kwh_high=None if hours is None or watts is None else hours[1] * watts[1] / 1e3,
    )
