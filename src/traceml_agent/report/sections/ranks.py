"""How the ranks of a job compare: their own work, their waiting, and the one that holds it up."""

from dataclasses import dataclass
from typing import Any

from traceml_agent.report.align import Aligned, align, per_step
from traceml_agent.report.diagnose.issue import Issue
from traceml_agent.report.diagnose.ranks import (
    SCORE_WARN,
    WAITS_IN,
    Straggler,
    find_straggler,
    keeps_step,
    sync_rows,
)
from traceml_agent.report.diagnose.straggler import Case, Place, issue_of
from traceml_agent.report.pattern import pattern_of
from traceml_agent.report.sections.shape import Window
from traceml_agent.report.stats import Column, mean, total
from traceml_agent.report.view import RankView, RunView
from traceml_agent.report.whatif import OwnWork, excess, own_work, what_if
from traceml_agent.schema.records import STRATEGY_EVENT

MS = 1e6
STRATEGIES = ("fsdp2", "fsdp", "ddp")
"""Of several that a job uses, the first decides where its ranks wait."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the section about steps says of ranks; nothing with a single one."""

    balance: dict[str, Any] | None
    straggler: Straggler | None = None
    slow: tuple[int, ...] = ()  # ranks: the straggler and those as slow
    issue: Issue | None = None
    aligned: Aligned | None = None
    own: OwnWork | None = None  # None: not known, or the ranks do not wait for each other


def strategy_of(view: RunView) -> str | None:
    """The way in which the ranks train together; None where no wrapper of torch's was seen."""
    seen = {
        event.detail.get("strategy")
        for rank in view.ranks
        for event in rank.spool.events
        if event.name == STRATEGY_EVENT
    }
    return next((name for name in STRATEGIES if name in seen), None)


def compare(view: RunView, window: Window, on_device: bool) -> Comparison:
    """The ranks side by side over the steps of the window that all have."""
    if view.world_size < 2 and len(view.ranks) < 2:
        return Comparison(None)
    strategy = strategy_of(view)
    aligned = align(view.ranks, window.start_step, window.end_step, on_device)
    balance: dict[str, Any] = {
        "strategy": strategy,
        "ranks_compared": 0 if aligned is None else len(aligned.ranks),
        "ranks_expected": view.world_size,
        "aligned_steps": 0 if aligned is None else len(aligned.steps),
        "waits_in": None,
        "imbalance_ms": None,
        "rows": {},
    }
    if aligned is None or len(aligned.ranks) < 2:
        return Comparison(balance)
    found = find_straggler(aligned, strategy)
    waits_in = WAITS_IN[strategy][0] if strategy else None
    if found is not None:
        waits_in = found.waits_in
    rows = None if waits_in is None else sync_rows(aligned, waits_in)
    if rows is None or waits_in is None or not _all_keep_step(aligned):
        return Comparison(balance, aligned=aligned)
    own = own_work(aligned.step_ns, rows)
    slowest = per_step(own.work)
    shares = [slowest.highest_at.count(i) / len(aligned.steps) for i in range(len(aligned.ranks))]
    balance |= {
        "waits_in": list(waits_in),
        "imbalance_ms": _imbalance_ms(slowest.highest, own),
        "rows": _rows(aligned, own, shares),
    }
    if found is None:
        return Comparison(balance, aligned=aligned, own=own)
    case = _case(view, aligned, found, strategy, own, shares[found.culprit])
    slow = tuple(aligned.ranks[index] for index in found.alike)
    return Comparison(balance, found, slow, issue_of(case), aligned, own)


def _all_keep_step(aligned: Aligned) -> bool:
    """Whether the ranks wait for each other at all: else there is no waiting to tell."""
    typical = total(aligned.step_ns[0]) / len(aligned.steps)
    others = range(1, len(aligned.ranks))
    return all(keeps_step(aligned, 0, other, SCORE_WARN * typical) for other in others)


def _imbalance_ms(highest: Column, own: OwnWork) -> float | None:
    """What the slowest rank of each step, whichever it is, works beyond the average rank."""
    average = mean([total(column) / len(column) for column in own.work])
    return None if average is None else (total(highest) / len(highest) - average) / MS


def _rows(aligned: Aligned, own: OwnWork, shares: list[float]) -> dict[str, dict[str, Any]]:
    return {
        str(rank): {
            "own_ms": total(own.work[index]) / len(aligned.steps) / MS,
            "waiting_ms": total(own.waiting[index]) / len(aligned.steps) / MS,
            "slowest_percent": 100 * shares[index],
        }
        for index, rank in enumerate(aligned.ranks)
    }


def _case(
    view: RunView,
    aligned: Aligned,
    found: Straggler,
    strategy: str | None,
    own: OwnWork,
    slowest_share: float,
) -> Case:
    by_rank = {rank.rank: rank for rank in view.ranks}
    count = len(aligned.steps) * MS
    own_ms = {
        name: (total(rows[found.culprit]) / count, total(rows[found.victim]) / count)
        for name in found.excess_ns
        if (rows := aligned.rows(name)) is not None
    }
    more = excess(own, found.culprit)
    return Case(
        found=found,
        ranks=tuple(_place(by_rank[rank]) for rank in aligned.ranks),
        expected=view.world_size,
        strategy=strategy,
        steps=len(aligned.steps),
        own_ms=own_ms,
        pattern=pattern_of(aligned.steps, more, slowest_share),
        slowest_share=slowest_share,
        gain=what_if(aligned.step_ns, own, found.alike),
    )


def _place(rank: RankView) -> Place:
    header = rank.spool.header
    return Place(rank.rank, header.hostname, header.identity.node_rank)
