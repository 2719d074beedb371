"""Section step_time: where the time of a step goes, on one clock for all ranks."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any

from traceml_agent.report.diagnose.step_time import StepFigures, WaitedFor, diagnose
from traceml_agent.report.sections.distribution import QUANTILES, Distribution
from traceml_agent.report.sections.ranks import Comparison, compare
from traceml_agent.report.sections.shape import (
    Row,
    Window,
    identity_of,
    metadata,
    section,
    step_window,
    wall_s,
)
from traceml_agent.report.series import RankSeries, totals
from traceml_agent.report.stats import (
    differences,
    sum_columns,
    total,
)
from traceml_agent.report.view import RankView, RunView
from traceml_agent.schema.phases import COMPUTE_PHASES, PHASES
from traceml_agent.schema.summary import STEP_TIME_METRICS
from traceml_agent.spool.sketch import added, counted, quantile_of

MS = 1e6


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


def build(view: RunView, window: Window) -> dict[str, Any]:
    """The section, with percentiles and throughput beside the contract's figures."""
    ranks = [rank for rank in view.ranks if rank.series.steps]
    on_device = bool(ranks) and all(rank.series.device_duration_ns for rank in ranks)
    clock = "gpu" if on_device else "cpu"
    distribution = Distribution(sum(len(_chosen(rank.series, window)) for rank in ranks))
    rows = {}
    for rank in ranks:
        columns = _columns(rank, window, on_device)
        distribution.add(columns)
        metrics = _metrics(rank, columns, window, on_device)
        rows[str(rank.rank)] = Row(identity_of(rank), metrics)
    figures = [
        StepFigures(
            rank=rank.rank,
            step_ms=rows[str(rank.rank)].metrics["step_time_ms"] or 0.0,
            parts_ms={
                name: rows[str(rank.rank)].metrics[f"{name}_ms"]
                for name in (*PHASES, "compute", "residual")
            },
            missing=_missing(rank.series),
        )
        for rank in ranks
    ]
    done = [totals(rank.spool) for rank in view.ranks]
    total_steps = max((t.first_step + t.count - 1 for t in done if t is not None), default=0)
    compared = compare(view, window, on_device)
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
            "warmup_steps": max((rank.series.warmup for rank in ranks), default=0),
            "not_measured": sorted({name for rank in ranks for name in _missing(rank.series)}),
        },
    )


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
    sums = [part for rank in ranks if (part := totals(rank.spool)) is not None]
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


def throughput(ranks: list[RankView], window: Window) -> dict[str, float | None]:
    """Steps a second, and samples a second over all ranks where the batch size was seen."""
    if not ranks or not window.steps_analyzed:
        return {"steps_per_s": None, "samples_per_s": None, "micro_batches_per_step": None}
    seconds, samples, batches, seen = 0.0, 0, 0, True
    for rank in ranks:
        series = rank.series
        chosen = _chosen(series, window)
        part = slice(chosen.start, chosen.stop)
        seconds = max(seconds, total(series.duration_ns[part]) / 1e9)
        batches += total(series.micro_batches[part])
        if series.samples is None:
            seen = False
        else:
            samples += total(series.samples[part])
    if not seconds:
        return {"steps_per_s": None, "samples_per_s": None, "micro_batches_per_step": None}
    return {
        "steps_per_s": window.steps_analyzed / seconds,
        "samples_per_s": samples / seconds if seen and samples else None,
        "micro_batches_per_step": batches / window.steps_analyzed / len(ranks),
    }


def steps_within(series: RankSeries, first: int, last: int) -> range:
    """Where the steps with these numbers, both included, stand in the columns of a rank."""
    return range(bisect_left(series.steps, first), bisect_right(series.steps, last))


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
