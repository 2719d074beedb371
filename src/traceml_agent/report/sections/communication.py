"""Section communication: the collectives that Python called, waiting told apart from transfer."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from traceml_agent.report.calls import (
    Aligned,
    RankCalls,
    align,
    calls_of,
    can_be_aligned,
    transfer_bounds,
)
from traceml_agent.report.diagnose.communication import Transfers, diagnose
from traceml_agent.report.sections.shape import Window
from traceml_agent.report.stats import median
from traceml_agent.report.view import RankView, RunView
from traceml_agent.schema.collectives import CollectiveKey
from traceml_agent.schema.phases import PHASES

MS = 1e6
CLEAR_WAIT_NS = 1_000_000
"""A call counts in who arrives last if some rank waited 1 ms. Chosen: below, the scheduler of the
machine decides."""
ALIGNED_LEAST = 0.9
"""Part of the calls kept that must be found on all ranks, or waiting stays unknown. Chosen: the
few at both ends of a run are never complete; more mean that ranks did not call alike."""

_ENQUEUED = "the host only enqueues these calls: its time says nothing about waiting or transfer"
_NOT_ALL = "not every rank of the group was seen making these calls"
_NO_SYNC = "ranks may leave this operation before all have come: waiting cannot be told apart"


@dataclass(slots=True)
class _Figures:
    """Sums over the window of one kind of call of one rank."""

    calls: float = 0.0
    kept: int = 0
    host_ns: float = 0.0
    bytes: float | None = 0.0
    phase_ns: dict[str, float] = field(default_factory=lambda: defaultdict(float))


@dataclass(frozen=True, slots=True)
class _Split:
    """Of the host time of one kind of call: fractions that were transfer, at least and at most."""

    low: float | None
    high: float | None
    reason: str | None = None


def build(view: RunView, window: Window) -> dict[str, Any]:
    """The section; `status` says whether there is anything to tell."""
    status = _status(view)
    ddp = _ddp(view)
    if window.start_step is None or window.end_step is None or status != "measured":
        return _nothing("none" if status == "measured" else status, ddp)
    first, last = window.start_step, window.end_step
    steps = last - first + 1
    ranks = [rank for rank in view.ranks if rank.series.steps]
    calls = [calls_of(rank, first, last) for rank in ranks]
    if not any(rank.calls or rank.sums for rank in calls):
        return _nothing("none", ddp)
    aligned = align(calls)
    figures = {rank.rank: _figures(rank, first, last) for rank in calls}
    splits = {rank.rank: _splits(rank.rank, figures[rank.rank], aligned) for rank in calls}
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
        "ddp": ddp,
        "lost_calls": max(rank.lost for rank in calls),
        "issues": issues,
    }


def _status(view: RunView) -> str:
    """measured, or why not, of the first rank where it is not."""
    found = [rank.spool.statuses.get("collectives", "not in") for rank in view.ranks]
    return next((status for status in found if status != "active"), "measured")


def _nothing(status: str, ddp: dict[str, Any]) -> dict[str, Any]:
    return {
        "status": status,
        "window": None,
        "ranks": {},
        "share": None,
        "aligned_calls": 0,
        "last_arrival": None,
        "what_if_no_transfer": None,
        "dominant": None,
        "ddp": ddp,
        "lost_calls": 0,
        "issues": [],
    }


def _figures(rank: RankCalls, first: int, last: int) -> dict[CollectiveKey, _Figures]:
    found: dict[CollectiveKey, _Figures] = defaultdict(_Figures)
    for call in rank.calls:
        sums = found[call.key]
        sums.host_ns += call.host_ns
        sums.phase_ns["none" if call.phase is None else PHASES[call.phase]] += call.host_ns
        sums.kept += call.seq > 0
        sums.calls += 1
        sums.bytes = _plus(sums.bytes, call.bytes)
    for key, part in rank.sums:
        # Sums of a few hundred steps may reach over the end of the window: the part that lies in.
        inside = min(last, part.last_step) - max(first, part.first_step) + 1
        portion = inside / (part.last_step - part.first_step + 1)
        sums = found[key]
        sums.host_ns += portion * part.duration_ns
        if part.part != 2:  # a wait is no call of its own
            sums.calls += portion * part.calls
            sums.bytes = _plus(sums.bytes, None if part.bytes is None else portion * part.bytes)
    return dict(found)


def _plus(total: float | None, value: float | None) -> float | None:
    return None if total is None or value is None else total + value


def _splits(
    rank: int, figures: dict[CollectiveKey, _Figures], aligned: list[Aligned]
) -> dict[CollectiveKey, _Split]:
    own = [call for call in aligned if rank in call.host_ns]
    bounds = transfer_bounds(own)
    host_ns: dict[CollectiveKey, int] = defaultdict(int)
    count: Counter[CollectiveKey] = Counter()
    for call in own:
        host_ns[call.key] += call.host_ns[rank]
        count[call.key] += 1
    found = {}
    for key, sums in figures.items():
        if not key.blocking:
            found[key] = _Split(None, None, _ENQUEUED)
        elif key.group_size < 2:
            found[key] = _Split(1.0, 1.0)
        elif not can_be_aligned(key):
            found[key] = _Split(0.0, 1.0, _NO_SYNC)
        elif not count[key] or count[key] < ALIGNED_LEAST * sums.kept or not host_ns[key]:
            found[key] = _Split(0.0, 1.0, _NOT_ALL)
        else:
            low, high = bounds[key]
            found[key] = _Split(low / host_ns[key], high / host_ns[key])
    return found


def _row(
    figures: dict[CollectiveKey, _Figures],
    splits: dict[CollectiveKey, _Split],
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
    key: CollectiveKey, sums: _Figures, split: _Split, step_ms: float | None, steps: int
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
        "phases": {name: ns / steps / MS for name, ns in sorted(sums.phase_ns.items())},
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
    """Which rank comes last most often where others wait for it, and which one costs most waiting.

    Over the calls of the largest group: chance is one of its size.
    """
    size = max((call.key.group_size for call in aligned), default=0)
    clear = [c for c in aligned if c.key.group_size == size and c.spread_ns >= CLEAR_WAIT_NS]
    if not clear:
        return None
    times = Counter(call.last_rank for call in clear)
    rank, count = min(times.items(), key=lambda item: (-item[1], item[0]))
    waited = Counter[int]()
    for call in clear:
        waited[call.last_rank] += call.spread_ns
    costly, cost_ns = min(waited.items(), key=lambda item: (-item[1], item[0]))
    return {
        "rank": rank,
        "share": count / len(clear),
        "chance": 1 / size,
        "calls": len(clear),
        "wait_ms": sum(waited.values()) / len(clear) / MS,
        "costly_rank": costly,
        "costly_share": cost_ns / sum(waited.values()),
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
