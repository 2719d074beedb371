"""Section causes: what took time of the steps beside their own work, spikes, and the trend."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from traceml_agent.report.account import Account, facts_of
from traceml_agent.report.call_sites import call_site
from traceml_agent.report.causes import compile_events, is_recompilation, losses_of, lost_in
from traceml_agent.report.diagnose.causes import diagnose
from traceml_agent.report.diagnose.seen import Lost, Regular, Seen, name_of
from traceml_agent.report.losses import Loss
from traceml_agent.report.sections.shape import Window
from traceml_agent.report.series import steps_within
from traceml_agent.report.spikes import UNEXPLAINED, Spike, followed, periodic, spikes_of
from traceml_agent.report.stats import Column, differences, mean, sum_columns, total
from traceml_agent.report.trend import Trend, trend_of
from traceml_agent.report.view import RankView, RunView
from traceml_agent.schema.records import STRATEGY_EVENT, Event

MS = 1e6
MOST_LISTED = 50
_NOT_TYPICAL = ("checkpoint", "eval", "recompile", "compile")
_NOTHING: dict[str, Any] = {
    "losses": {},
    "gc": None,
    "account": None,
    "spikes": None,
    "trend": None,
}


@dataclass(frozen=True, slots=True)
class RankCauses:
    """What is known of one rank."""

    rank: RankView
    losses: list[Loss]
    spikes: list[Spike]
    lost: dict[str, Lost]
    steady_ns: int  # of all steps after the warm-up


def read_causes(view: RunView, window: Window) -> list[RankCauses]:
    """What is known of each rank that closed steps; nothing without steps to look at."""
    if not window.steps_analyzed:
        return []
    return [_of_rank(rank, window) for rank in view.ranks if rank.series.steps]


def build(view: RunView, window: Window, read: list[RankCauses]) -> dict[str, Any]:
    """The section. Losses are about the window, spikes about all steps after the warm-up."""
    if not read:
        return {"status": "no steps", "issues": [], **_NOTHING}
    ranks = [found.rank for found in read]
    spikes = [spike for found in read for spike in found.spikes]
    if _keep_step(ranks):
        spikes = followed(spikes)
    excess, largest = _excess(read, spikes)
    regular = _regular(read, spikes)
    lead = read[0]
    trend = trend_of(lead.rank.series, _typical(lead))
    facts = facts_of(view)
    worst = _worst(read)
    issues = diagnose(
        Seen(
            losses=worst,
            regular=regular,
            spikes=spikes,
            spike_share=excess,
            largest_share=largest,
            trend=trend,
            trend_by=None if trend is None else _trend_cause(lead, trend),
            facts=facts,
            steps=window.steps_analyzed,
            step_ms=_step_ms(lead, window),
            compiled=[e for rank in ranks for e in rank.spool.events if e.name == "compiled"],
        )
    )
    return {
        "status": "measured",
        "issues": [issue.to_json() for issue in issues],
        "losses": {cause: _loss_row(read, lost) for cause, lost in worst.items()},
        "gc": _gc(ranks),
        "account": _account(facts.accounts),
        "spikes": _spikes(read, spikes, regular, excess),
        "trend": None if trend is None else _trend(trend, lead.rank.rank),
    }


def with_site(section: dict[str, Any], view: RunView) -> dict[str, Any]:
    """The section, with the line that calls the evaluation where no framework told of it."""
    return {**section, "issues": [_sited(issue, view) for issue in section["issues"]]}


def _sited(issue: dict[str, Any], view: RunView) -> dict[str, Any]:
    if issue["kind"] != "EVAL_COST" or issue["place"] is not None:
        return issue
    place = call_site(view.ranks, "eval")
    if place is None:
        return issue
    summary = f"{issue['summary']} It is called at {name_of(place)}."
    return {**issue, "summary": summary, "place": asdict(place)}


def _of_rank(rank: RankView, window: Window) -> RankCauses:
    losses = losses_of(rank)
    series = rank.series
    chosen = steps_within(series, window.start_step or 0, window.end_step or 0)
    part = slice(chosen.start, chosen.stop)
    window_ns = total(series.duration_ns[part])
    done = rank.sums
    is_whole = done is not None and done.count == len(series.steps)
    lost = {}
    for loss in losses:
        ns = lost_in(loss, part)
        lost[loss.cause] = Lost(
            cause=loss.cause,
            rank=rank.rank,
            ms_per_step=ns / max(1, len(chosen)) / MS,
            share=ns / window_ns if window_ns else 0.0,
            run_s=total(loss.lost_ns) / 1e9 if is_whole else None,
            within=loss.within,
            steps=len(chosen) - loss.lost_ns[part].count(0),
            events=tuple(_events_of(loss.cause, rank)),
        )
    spikes = spikes_of(rank.rank, series, losses)
    return RankCauses(rank, losses, spikes, lost, total(series.duration_ns[series.first_steady :]))


def _events_of(cause: str, rank: RankView) -> list[Event]:
    """The events that tell more about a cause."""
    if cause in ("recompile", "compile"):
        return [e for e in compile_events(rank) if is_recompilation(e) == (cause == "recompile")]
    return [event for event in rank.spool.events if event.name == cause]


def _keep_step(ranks: list[RankView]) -> bool:
    """Whether the ranks wait for each other in each step, as a wrapper of torch's makes them."""
    return len(ranks) > 1 and all(
        any(event.name == STRATEGY_EVENT for event in rank.spool.events) for rank in ranks
    )


def _worst(read: list[RankCauses]) -> dict[str, Lost]:
    """Of each cause the rank that lost most to it, the costliest cause first."""
    found: dict[str, Lost] = {}
    for rank in read:
        for cause, lost in rank.lost.items():
            if cause not in found or lost.ms_per_step > found[cause].ms_per_step:
                found[cause] = lost
    return dict(sorted(found.items(), key=lambda item: -item[1].ms_per_step))


def _loss_row(read: list[RankCauses], worst: Lost) -> dict[str, Any]:
    cause = worst.cause
    known = [rank.lost[cause].ms_per_step if cause in rank.lost else 0.0 for rank in read]
    return {
        "ms_per_step": mean(known),
        "share": worst.share,
        "worst": {"value": worst.ms_per_step, "idx": str(worst.rank)},
        "run_s": worst.run_s,
        "steps": worst.steps,
        "within": worst.within,
    }


def _typical(found: RankCauses) -> Column:
    """The steps less what is no part of a typical one."""
    extra = [loss.lost_ns for loss in found.losses if loss.cause in _NOT_TYPICAL]
    durations = found.rank.series.duration_ns
    return differences(durations, sum_columns(extra)) if extra else durations


def _step_ms(found: RankCauses, window: Window) -> float:
    series = found.rank.series
    chosen = steps_within(series, window.start_step or 0, window.end_step or 0)
    return total(series.duration_ns[chosen.start : chosen.stop]) / max(1, len(chosen)) / MS


def _by_rank(spikes: list[Spike]) -> dict[int, list[Spike]]:
    found: dict[int, list[Spike]] = {}
    for spike in spikes:
        found.setdefault(spike.rank, []).append(spike)
    return found


def _excess(read: list[RankCauses], spikes: list[Spike]) -> tuple[float, float]:
    """The share of the time in steps that is excess of spikes, of the rank that has most; and that
    of its largest one."""
    own = {rank: [s.excess_ns for s in found] for rank, found in _by_rank(spikes).items()}
    shares = [
        (sum(found) / f.steady_ns, max(found) / f.steady_ns)
        for f in read
        if f.steady_ns and (found := own.get(f.rank.rank))
    ]
    return max(shares, default=(0.0, 0.0))


def _regular(read: list[RankCauses], spikes: list[Spike]) -> list[Regular]:
    """Periodic spikes, the costliest first; what all ranks have is named once, of its culprit."""
    best: dict[tuple[str, int], Regular] = {}
    by_rank = _by_rank(spikes)
    for found in read:
        for regular in periodic(by_rank.get(found.rank.rank, ())):
            _, _, cause = regular.cause.rpartition(": ")
            known = best.get((cause, regular.every))
            follows = cause != regular.cause  # it waits for the rank that has the cause
            if known is None or (known.follows, -known.periodic.mean_excess_ns) > (
                follows,
                -regular.mean_excess_ns,
            ):
                place = None if follows else _place_of(found.rank, cause, regular.steps)
                best[cause, regular.every] = Regular(regular, cause, follows, place)
    return sorted(best.values(), key=lambda r: -r.periodic.mean_excess_ns / r.periodic.every)


def _place_of(rank: RankView, cause: str, steps: Sequence[int]) -> tuple[str, str | None] | None:
    """The place that most events of a cause at these steps name, and the call there."""
    at = set(steps)
    counts: dict[tuple[str, str | None], int] = {}
    for event in rank.spool.events:
        place, call = event.detail.get("at"), event.detail.get("call")
        if event.name == cause and event.step in at and isinstance(place, str):
            key = (place, call if isinstance(call, str) else None)
            counts[key] = counts.get(key, 0) + 1
    return max(counts, key=lambda key: counts[key]) if counts else None


def _trend_cause(lead: RankCauses, trend: Trend) -> tuple[str, float] | None:
    """The cause that took most of the change, and how many milliseconds a step of it."""
    series = lead.rank.series
    middle = trend.at_step
    if trend.kind == "drift":
        middle = series.steps[(series.first_steady + len(series.steps)) // 2]
    first, last = series.steps[series.first_steady], series.steps[-1]
    before, after = steps_within(series, first, middle - 1), steps_within(series, middle, last)
    best: tuple[str, float] | None = None
    for loss in lead.losses:
        if loss.cause in _NOT_TYPICAL or not len(before) or not len(after):
            continue
        low = lost_in(loss, slice(before.start, before.stop)) / len(before)
        high = lost_in(loss, slice(after.start, after.stop)) / len(after)
        grown = (high - low) / MS
        if best is None or grown > best[1]:
            best = (loss.cause, grown)
    return best


def _gc(ranks: list[RankView]) -> dict[str, Any] | None:
    """Collections of the rank whose collections took longest."""
    known = [(sum(gc.duration_ns), rank) for rank in ranks if (gc := rank.spool.gc) is not None]
    if not known:
        return None
    _, rank = max(known, key=lambda pair: (pair[0], -pair[1].rank))
    gc = rank.spool.gc
    if gc is None:
        return None
    return {
        "rank": rank.rank,
        "collections": gc.count,
        "total_s": sum(gc.duration_ns) / 1e9,
        "generations_s": [ns / 1e9 for ns in gc.duration_ns],
        "other_threads": {"collections": gc.other_count, "total_s": gc.other_ns / 1e9},
    }


def _account(accounts: Sequence[Account]) -> dict[str, Any] | None:
    """Where the training threads were, in percent of the time that they were watched."""
    if not accounts:
        return None

    def over(name: str) -> float | None:
        known = [
            100 * value / a.wall_ns
            for a in accounts
            if (value := getattr(a, name)) is not None and a.wall_ns
        ]
        return mean(known)

    waits = [a.probe_wait_ns for a in accounts if a.probe_wait_ns is not None]
    return {
        "source": accounts[0].source,
        "running_percent": over("run_ns"),
        "waiting_for_core_percent": over("delay_ns"),
        "throttled_percent": over("throttled_ns"),
        "blocked_percent": over("blocked_ns"),
        "other_python_threads_percent": over("others_run_ns"),
        "interpreter_lock_wait_ms": max(waits) / MS if waits else None,
    }


def _spikes(
    read: list[RankCauses], spikes: list[Spike], regular: list[Regular], excess: float
) -> dict[str, Any]:
    by_cause: dict[str, dict[str, float]] = {}
    for spike in spikes:
        for cause, ns in spike.parts.items():
            row = by_cause.setdefault(cause, {"count": 0, "excess_ms": 0.0})
            row["count"] += cause == spike.cause
            row["excess_ms"] += ns / MS
    steps = sum(len(found.rank.series.steps) - found.rank.series.first_steady for found in read)
    worst = sorted(spikes, key=lambda spike: -spike.excess_ns)[:MOST_LISTED]
    return {
        "count": len(spikes),
        "steps_percent": 100 * len(spikes) / steps if steps else None,
        "time_percent": 100 * excess,
        "by_cause": dict(sorted(by_cause.items(), key=lambda item: -item[1]["excess_ms"])),
        "periodic": [found.to_json() for found in regular],
        "listed": [
            {
                "rank": spike.rank,
                "step": spike.step,
                "duration_ms": spike.duration_ns / MS,
                "excess_ms": spike.excess_ns / MS,
                "parts_ms": {c: ns / MS for c, ns in spike.parts.items() if c != UNEXPLAINED},
                "unexplained_ms": spike.parts.get(UNEXPLAINED, 0) / MS,
            }
            for spike in worst
        ],
    }


def _trend(trend: Trend, rank: int) -> dict[str, Any]:
    return {
        "kind": trend.kind,
        "rank": rank,
        "at_step": trend.at_step,
        "before_ms": trend.before_ms,
        "after_ms": trend.after_ms,
        "change_percent": 100 * trend.ratio,
        "slope_ms_per_1000_steps": trend.slope_ms_per_1000,
        "noise_ms": trend.noise_ms,
    }
