"""Section step_time: where the time of a step goes, on one clock for all ranks."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any

from traceml_agent.report.diagnose.issue import CONFIDENT_STEPS
from traceml_agent.report.diagnose.step_time import StepFigures, WaitedFor, diagnose
from traceml_agent.report.sections.distribution import QUANTILES, Distribution
from traceml_agent.report.sections.ranks import Comparison
from traceml_agent.report.sections.shape import (
    Row,
    Window,
    identity_of,
    metadata,
    section,
    step_window,
    wall_s,
)
from traceml_agent.report.sections.throughput import throughput
from traceml_agent.report.series import RankSeries, steps_within
from traceml_agent.report.stats import (
    differences,
    largest,
    middle,
    sum_columns,
    total,
)
from traceml_agent.report.view import RankView, RunView
from traceml_agent.schema.phases import COMPUTE_PHASES, PHASES
from traceml_agent.schema.records import LOGGING_EVENT
from traceml_agent.schema.summary import STEP_TIME_METRICS
from traceml_agent.spool.reader import last_step
from traceml_agent.spool.sketch import added, counted, quantile_of

MS = 1e6
OUTLIER_RATIO = 10
OUTLIER_SHARE = 0.01
"""Steps that are ten times as long as the median, and at most 1 % of them (or one), have no say in
the verdict; averages and percentiles hold them. Chosen: one wait of 3 s in 100 steps of 10 ms is no
training that is bound by its input, and a wait in every tenth step is."""


def analysis_window(view: RunView) -> Window:
    """The steps common to all ranks, after the warm-up of each."""
    ranks = [rank for rank in view.ranks if rank.series.steps]
    if not ranks:
        return Window(None, None, 0, None, None)
    first = max(rank.series.steps[rank.series.first_steady] for rank in ranks)
    last = min(rank.series.steps[-1] for rank in ranks)
    if last < first:
        return Window(None, None, 0, None, None)
    lead = ranks[0]
    series = lead.series
    begin = bisect_left(series.steps, first)
    end = bisect_right(series.steps, last) - 1
    return Window(
        start_step=first,
        end_step=last,
        # Not the difference of the numbers: steps that were thinned out have no times of their own.
        steps_analyzed=min(len(steps_within(rank.series, first, last)) for rank in ranks),
        start_ts_s=wall_s(lead, series.start_ns[begin]) if begin < len(series.steps) else None,
        end_ts_s=wall_s(lead, series.start_ns[end] + series.duration_ns[end]) if end >= 0 else None,
    )


def is_on_device(view: RunView) -> bool:
    """Whether the device's clock counts: every rank and step has it."""
    ranks = [rank for rank in view.ranks if rank.series.steps]
    return bool(ranks) and all(rank.series.device_duration_ns for rank in ranks)


def build(view: RunView, window: Window, compared: Comparison) -> dict[str, Any]:
    """The section, with percentiles and throughput beside the contract's figures."""
    ranks = [rank for rank in view.ranks if rank.series.steps]
    on_device = is_on_device(view)
    clock = "gpu" if on_device else "cpu"
    distribution = Distribution(sum(len(_chosen(rank.series, window)) for rank in ranks))
    rows, figures, set_aside = {}, [], 0
    for rank in ranks:
        columns = _columns(rank, window, on_device)
        distribution.add(columns)
        metrics = _metrics(rank, columns, window, on_device)
        rows[str(rank.rank)] = Row(identity_of(rank), metrics)
        outliers = outliers_of(columns["step_time"] or ())
        set_aside = max(set_aside, len(outliers))
        figures.append(_figures(rank, metrics, columns, outliers))
    done = [rank.sums for rank in view.ranks]
    total_steps = max((t.first_step + t.count - 1 for t in done if t is not None), default=0)
    issues = diagnose(
        figures, window.steps_analyzed, clock, _loader_facts(view), _waited_for(compared)
    )
    return section(
        meta=metadata(
            view,
            window,
            STEP_TIME_METRICS,
            window.steps_analyzed,
            global_ranks_seen=len(view.ranks),
            global_ranks_used=len(ranks),
            training_total_steps=total_steps,
            training_latest_step=total_steps or None,
        ),
        issues=issues,
        index_by="global_rank",
        window=step_window(window, clock),
        names=STEP_TIME_METRICS,
        rows=rows,
        units={"time": "ms"},
        card=[
            f"Step time | steps {window.start_step}-{window.end_step} | ranks {len(ranks)}",
            f"- {issues[0].kind}: {issues[0].summary}",
        ],
        extra={
            "distribution": distribution.to_json(),
            "whole_run": whole_run(ranks),
            "throughput": throughput(ranks, window),
            "rank_balance": compared.balance,
            "outliers_set_aside": set_aside,
            "warmup_steps": max((rank.series.warmup for rank in ranks), default=0),
            "not_measured": sorted({name for rank in ranks for name in _missing(rank.series)}),
        },
    )


def outliers_of(steps: Sequence[int]) -> list[int]:
    """Where the few steps stand that are so long that they have no say in the verdict."""
    if len(steps) < CONFIDENT_STEPS:
        return []
    limit = OUTLIER_RATIO * (middle(steps) or 0.0)
    if largest(steps) <= limit:
        return []
    found = [index for index, ns in enumerate(steps) if ns > limit]
    return found if len(found) <= max(1, int(OUTLIER_SHARE * len(steps))) else []


def _figures(
    rank: RankView,
    metrics: dict[str, float | int | None],
    columns: dict[str, Sequence[int] | None],
    outliers: list[int],
) -> StepFigures:
    """What the verdict rests on: the averages, without outliers."""
    names = ("step_time", *PHASES, "compute", "residual")
    means = {name: metrics[f"{name}_ms"] for name in names}
    if outliers:
        for name, column in columns.items():
            if column is not None and name in means:
                rest = total(column) - sum(column[index] for index in outliers)
                means[name] = rest / (len(column) - len(outliers)) / MS
    step_ms = means.pop("step_time") or 0.0
    return StepFigures(rank.rank, step_ms, means, _missing(rank.series), _logging_ms(rank))


def _logging_ms(rank: RankView) -> float | None:
    """What loggers of a framework take of the residual of a step, on average over the run; None
    where no framework told."""
    spent = [
        event.duration_ns - within
        for event in rank.spool.events
        if event.name == LOGGING_EVENT
        and event.duration_ns is not None
        and isinstance(within := event.detail.get("in_phases_ns", 0), int)
    ]
    steps = last_step(rank.spool)
    return sum(spent) / steps / MS if spent and steps else None


def whole_run(ranks: list[RankView]) -> dict[str, float | int | None] | None:
    """Step times of all steps of all ranks, where older ones are known as sums alone; else None.

    The average is exact, the percentiles are those of a sketch, to 1 %.
    """
    if not any(rank.spool.sketch for rank in ranks):
        return None
    buckets: dict[str, int] = {}
    for rank in ranks:
        sketch = rank.spool.sketch
        buckets = added(buckets, counted(rank.series.duration_ns))
        buckets = added(buckets, {} if sketch is None else sketch.buckets)
    sums = [part for rank in ranks if (part := rank.sums) is not None]
    steps = sum(part.count for part in sums)
    found: dict[str, float | int | None] = {
        "steps": steps,
        "average_ms": sum(part.duration_ns for part in sums) / steps / MS,
    }
    is_whole = sum(buckets.values()) == steps  # not where spools were thinned to bare sums
    for label, q in QUANTILES:
        value = quantile_of(buckets, q) if is_whole else None
        found[f"{label}_ms"] = None if value is None else value / MS
    return found


def _chosen(series: RankSeries, window: Window) -> range:
    return steps_within(series, window.start_step or 0, window.end_step or 0)


def _columns(rank: RankView, window: Window, on_device: bool) -> dict[str, Sequence[int] | None]:
    """Nanosecond columns over the window: the step, each phase, compute, residual."""
    series = rank.series
    chosen = _chosen(series, window)
    part = slice(chosen.start, chosen.stop)
    source: dict[str, Sequence[int] | None] = dict(series.phase_ns)
    duration = series.duration_ns
    if on_device and series.device_duration_ns is not None:
        duration = series.device_duration_ns
        source = {
            name: None if series.phase_ns[name] is None else series.device_phase_ns[name]
            for name in PHASES
        }
    columns: dict[str, Sequence[int] | None] = {
        name: None if column is None else column[part] for name, column in source.items()
    }
    steps = duration[part]
    columns["step_time"] = steps
    compute = [columns[name] for name in COMPUTE_PHASES]
    known = [column for name in PHASES if (column := columns[name]) is not None]
    measured = [column for column in compute if column is not None]
    columns["compute"] = sum_columns(measured) if len(measured) == len(compute) else None
    # Where one phase was not measured, what is left of the step is that phase too.
    complete = len(known) == len(PHASES)
    columns["residual"] = differences(steps, sum_columns(known)) if complete else None
    return columns


def _metrics(
    rank: RankView, columns: dict[str, Sequence[int] | None], window: Window, on_device: bool
) -> dict[str, float | int | None]:
    means: dict[str, float | None] = {name: _mean_ms(column) for name, column in columns.items()}
    step = means["step_time"] or 0.0
    traced = max(0.0, step - (means["input_wait"] or 0.0))
    host = _columns(rank, window, on_device=False) if on_device else columns
    host_step, host_wait = _mean_ms(host["step_time"]), _mean_ms(host["input_wait"])
    host_traced = None if host_step is None else max(0.0, host_step - (host_wait or 0.0))
    metrics: dict[str, float | int | None] = {
        f"{name}_ms": means[name] for name in (*PHASES, "compute", "residual")
    }
    metrics |= {
        "step_time_ms": step,
        "traced_step_time_ms": traced,
        "step_time_cpu_ms": host_step,
        "traced_step_time_cpu_ms": host_traced,
        "step_time_gpu_ms": step if on_device else None,
        "traced_step_time_gpu_ms": traced if on_device else None,
        "dataloader_fetch_cpu_ms": host_wait,
    }
    return metrics


def _mean_ms(column: Sequence[int] | None) -> float | None:
    return None if not column else total(column) / len(column) / MS


def _waited_for(compared: Comparison) -> WaitedFor | None:
    if compared.issue is None or compared.straggler is None:
        return None
    found = compared.straggler
    return WaitedFor(compared.issue, compared.slow, found.cause, found.waits_in)


def _missing(series: RankSeries) -> tuple[str, ...]:
    return tuple(name for name, column in series.phase_ns.items() if column is None)


def _loader_facts(view: RunView) -> bool:
    """Whether any training batch came from a DataLoader."""
    return any(any(rank.series.phase_ns["input_wait"] or ()) for rank in view.ranks)
