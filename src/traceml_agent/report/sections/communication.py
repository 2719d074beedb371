"""Section communication: the collectives that Python called, waiting told apart from transfer."""

from collections import Counter
from dataclasses import asdict
from typing import Any

from traceml_agent.report.arrivals import CLEAR_WAIT_NS, last_arrivals, recorded
from traceml_agent.report.call_figures import Figures, Split, figures_of, split_of, told_by
from traceml_agent.report.calls import Aligned, align, calls_of, stride_of
from traceml_agent.report.diagnose.communication import Transfers, diagnose
from traceml_agent.report.sections.shape import Window
from traceml_agent.report.stats import median
from traceml_agent.report.view import RankView, RunView
from traceml_agent.schema.collectives import CollectiveKey

MS = 1e6


def build(view: RunView, window: Window) -> dict[str, Any]:
    """The section; `status` says whether there is anything to tell."""
    status = _status(view)
    beside = {"ddp": _ddp(view), "flight_recorder": _recorded(view, window)}
    if window.start_step is None or window.end_step is None or status != "measured":
        return _nothing("none" if status == "measured" else status, beside)
    first, last = window.start_step, window.end_step
    steps = last - first + 1
    ranks = [rank for rank in view.ranks if rank.series.steps]
    keys: dict[CollectiveKey, CollectiveKey] = {}
    calls = [calls_of(rank, first, last, keys) for rank in ranks]
    if not any(rank.calls or rank.sums for rank in calls):
        return _nothing("none", beside)
    stride = stride_of(calls)
    aligned = align(calls, stride)
    figures = {rank.rank: figures_of(rank, first, last, stride) for rank in calls}
    told = told_by(aligned)
    splits = {
        rank: {
            key: split_of(key, sums, told.get(key, {}).get(rank)) for key, sums in of_rank.items()
        }
        for rank, of_rank in figures.items()
    }
    step_ms = {rank.rank: _step_ms(rank, first, last) for rank in ranks}
    rows = {str(rank): _row(figures[rank], splits[rank], step_ms[rank], steps) for rank in figures}
    transfers = _transfers(rows, window.steps_analyzed)
    issues = [issue.to_json() for issue in diagnose(transfers)]
    return {
        "status": "measured",
        "window": {"start_step": first, "end_step": last, "steps": steps},
        "ranks": rows,
        "share": median([r["share"] for r in rows.values() if r["share"] is not None]),
        "aligned_calls": len(aligned),
        "last_arrival": _last_arrival(aligned),
        "what_if_no_transfer": _what_if(transfers),
        "dominant": _dominant(rows),
        **beside,
        "lost_calls": max(rank.lost for rank in calls),
        "issues": issues,
    }


def _status(view: RunView) -> str:
    """measured, or why not, of the first rank where it is not."""
    found = [rank.spool.statuses.get("collectives", "not in") for rank in view.ranks]
    return next((status for status in found if status != "active"), "measured")


def _nothing(status: str, beside: dict[str, Any]) -> dict[str, Any]:
    return {
        "status": status,
        "window": None,
        "ranks": {},
        "share": None,
        "aligned_calls": 0,
        "last_arrival": None,
        "what_if_no_transfer": None,
        "dominant": None,
        **beside,
        "lost_calls": 0,
        "issues": [],
    }


def _row(
    figures: dict[CollectiveKey, Figures],
    splits: dict[CollectiveKey, Split],
    step_ms: float | None,
    steps: int,
) -> dict[str, Any]:
    ordered = sorted(figures.items(), key=lambda item: -item[1].host_ns)
    operations = [_operation(key, sums, splits[key], step_ms, steps) for key, sums in ordered]
    blocking = [o for o in operations if o["enqueue_ms"] is None]
    host = sum(o["host_ms"] for o in blocking) if blocking else None
    enqueued = [o["enqueue_ms"] for o in operations if o["enqueue_ms"] is not None]
    return {
        "step_ms": step_ms,
        "calls_per_step": sum(o["calls_per_step"] for o in operations),
        "host_ms": host,
        "enqueue_ms": sum(enqueued) if enqueued else None,
        "share": host / step_ms if host is not None and step_ms else None,
        "transfer_ms": _sum_intervals([o["transfer_ms"] for o in blocking]),
        "waiting_ms": _sum_intervals([o["waiting_ms"] for o in blocking]),
        "operations": operations,
    }


def _operation(
    key: CollectiveKey, sums: Figures, split: Split, step_ms: float | None, steps: int
) -> dict[str, Any]:
    host_ms = sums.host_ns / steps / MS
    low, high = split.low, split.high
    waiting = (None, None) if low is None or high is None else (1 - high, 1 - low)
    return {
        "op": key.op,
        "group": key.group,
        "group_size": key.group_size,
        "backend": key.backend,
        "calls_per_step": sums.calls / steps,
        "bytes_per_step": None if sums.bytes is None else sums.bytes / steps,
        "host_ms": host_ms,
        "enqueue_ms": None if key.blocking else host_ms,
        "share": host_ms / step_ms if step_ms and key.blocking else None,
        "transfer_ms": _interval(host_ms, low, high),
        "waiting_ms": _interval(host_ms, *waiting),
        "reason": split.reason,
        "phases": {name: part * host_ms for name, part in sorted(sums.phases.items())},
    }


def _interval(host_ms: float, low: float | None, high: float | None) -> list[float] | None:
    return None if low is None or high is None else [host_ms * low, host_ms * high]


def _sum_intervals(parts: list[list[float] | None]) -> list[float] | None:
    known = [part for part in parts if part is not None]
    return [sum(part[0] for part in known), sum(part[1] for part in known)] if known else None


def _step_ms(rank: RankView, first: int, last: int) -> float | None:
    """Mean step of a rank on its host clock, over the window."""
    series = rank.series
    inside = [ns for step, ns in zip(series.steps, series.duration_ns, strict=True)
              if first <= step <= last]  # fmt: skip
    return sum(inside) / len(inside) / MS if inside else None


def _transfers(rows: dict[str, dict[str, Any]], steps: int) -> Transfers | None:
    known = [(rank, row) for rank, row in rows.items() if row["transfer_ms"] and row["step_ms"]]
    if not known:
        return None
    cost: Counter[str] = Counter()
    for _, row in known:
        for operation in row["operations"]:
            if operation["transfer_ms"] is not None:
                cost[operation["op"]] += operation["transfer_ms"][0]
    return Transfers(
        step_ms=median([row["step_ms"] for _, row in known]) or 0.0,
        low_ms=median([row["transfer_ms"][0] for _, row in known]) or 0.0,
        high_ms=median([row["transfer_ms"][1] for _, row in known]) or 0.0,
        operation=cost.most_common(1)[0][0],
        ranks=tuple(int(rank) for rank, _ in known),
        steps=steps,
    )


def _what_if(found: Transfers | None) -> dict[str, Any] | None:
    """The step without the transfers, at least and at most; waiting stays."""
    if found is None:
        return None
    return {
        "step_ms": found.step_ms,
        "without_transfer_ms": [
            max(0.0, found.step_ms - found.high_ms),
            max(0.0, found.step_ms - found.low_ms),
        ],
    }


def _last_arrival(aligned: list[Aligned]) -> dict[str, Any] | None:
    """Who comes last in the calls of the largest group, where others wait for it."""
    size = max((call.key.group_size for call in aligned), default=0)
    clear = [
        (call.last_rank, float(wait_ns))
        for call in aligned
        if call.key.group_size == size and (wait_ns := call.wait_ns) >= CLEAR_WAIT_NS
    ]
    found = last_arrivals(clear, size)
    return None if found is None else asdict(found)


def _recorded(view: RunView, window: Window) -> dict[str, Any] | None:
    """What torch's Flight Recorder has of the steps of the window."""
    if window.start_step is None or window.end_step is None:
        return None
    found = recorded(view, window.start_step, window.end_step)
    if found is None:
        return None
    return {
        "steps": found.steps,
        "start_step": found.first_step,
        "end_step": found.last_step,
        "clock_error_ms": found.error_ms,
        "last_arrival": None if found.last is None else asdict(found.last),
        "ahead_ms": {str(rank): ms for rank, ms in found.ahead_ms.items()},
    }


def _dominant(rows: dict[str, dict[str, Any]]) -> str | None:
    """waiting, transfer, or unclear where the intervals overlap; None without either."""
    known = [row for row in rows.values() if row["transfer_ms"]]
    if not known:
        return None
    waiting = [sum(row["waiting_ms"][end] for row in known) for end in (0, 1)]
    transfer = [sum(row["transfer_ms"][end] for row in known) for end in (0, 1)]
    if waiting[0] > transfer[1]:
        return "waiting"
    return "transfer" if transfer[0] > waiting[1] else "unclear"


def _ddp(view: RunView) -> dict[str, Any]:
    """What DistributedDataParallel measured: means over the iterations that it sampled."""
    found: dict[str, dict[str, Any]] = {}
    for rank in view.ranks:
        for model, times in sorted(rank.spool.ddp.items()):
            overlap = times.overlap_ns
            exposed = None if overlap is None else max(0, times.communication_ns - overlap)
            found[f"{rank.rank}/{model}"] = {
                "rank": rank.rank,
                "model": model,
                "backend": times.backend,
                "iterations": times.iterations,
                "bytes": times.bytes,
                "buckets": times.buckets,
                "communication_ms": times.communication_ns / MS,
                "overlap_ms": None if overlap is None else overlap / MS,
                "exposed_ms": None if exposed is None else exposed / MS,
            }
    known = [row for row in found.values() if row["exposed_ms"] is not None]
    models = {row["model"] for row in known}
    seen = {row["rank"] for row in known}
    # The rank with the least exposed time waited least: the transfer is not more than that.
    whole = len(models) == 1 and len(seen) == view.world_size > 1
    least = min((float(row["exposed_ms"]) for row in known), default=None)
    return {
        "rows": list(found.values()),
        "exposed_transfer_ms": [0.0, least] if whole and least is not None else None,
    }
