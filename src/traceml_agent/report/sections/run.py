"""What concerns the run as a whole: findings on its membership, and the clocks of its machines."""

from typing import Any

from traceml_agent.report.diagnose.issue import Issue
from traceml_agent.report.diagnose.run import CLOCK_LIMIT_S, RunFigures, diagnose
from traceml_agent.report.membership import Attempt, Life
from traceml_agent.report.parts import one_line
from traceml_agent.report.sections.goodput import RunLedger
from traceml_agent.report.view import RankView, RunView


def issues_of(view: RunView, ledger: RunLedger) -> list[Issue]:
    """The issues of section run."""
    members = view.members
    last = members.attempts[-1]
    sizes: dict[int, list[int]] = {}
    for rank, life in last.lives.items():
        sizes.setdefault(life.spool.header.identity.world_size, []).append(rank)
    doubles = [life for attempt in members.attempts for life in attempt.doubles]
    names = _machine_names(view)
    return diagnose(
        RunFigures(
            run_id=view.run_id,
            world_size=view.world_size,
            world_sizes={size: tuple(ranks) for size, ranks in sizes.items()},
            missing=view.missing_ranks,
            is_running=any(rank.status == "running" for rank in view.ranks),
            doubles={
                rank: sum(life.rank == rank for life in doubles)
                for rank in {life.rank for life in doubles}
            },
            double_names=[_name_of(life) for life in doubles],
            strangers={one_line(run): len(found) for run, found in members.strangers.items()},
            offsets_s={
                names[clock.machine]: (clock.offset_ns / 1e9, clock.error_ns / 1e9)
                for clock in view.clocks
                if clock.offset_ns is not None and clock.error_ns is not None
            },
            apart_s=_apart(view, last, names),
            lost_share=ledger.lost_share,
            lost_steps=ledger.lost_steps,
        )
    )


def clocks(view: RunView) -> list[dict[str, Any]]:
    """One entry a machine of the last attempt; the first is the reference."""
    return [
        {
            "hostname": one_line(clock.hostname),
            "offset_s": None if clock.offset_ns is None else clock.offset_ns / 1e9,
            "error_s": None if clock.error_ns is None else clock.error_ns / 1e9,
            "common_steps": clock.steps,
        }
        for clock in view.clocks
    ]


def ended_ts_s(view: RunView, rank: RankView) -> float | None:
    """When a rank ended, on the clock of the first node; None where that is not known."""
    if rank.status == "running":
        return None
    life = view.members.attempts[-1].lives[rank.rank]
    clock = next((clock for clock in view.clocks if clock.machine == life.machine), None)
    if clock is None or clock.offset_ns is None:
        return None
    return (life.end - clock.offset_ns) / 1e9


def _machine_names(view: RunView) -> dict[str, str]:
    """Host names, with the ranks where two machines have the same."""
    hosts = [clock.hostname for clock in view.clocks]
    found = {}
    for clock in view.clocks:
        name = one_line(clock.hostname)[:60]
        if hosts.count(clock.hostname) > 1:
            name += f" (boot {one_line(clock.machine)[:8]})"
        found[clock.machine] = name
    return found


def _apart(view: RunView, last: Attempt, names: dict[str, str]) -> dict[str, float]:
    """Machines whose offset is unknown and that did not live when the first one did."""
    spans: dict[str, tuple[int, int]] = {}
    for life in last.lives.values():
        born, end = spans.get(life.machine, (life.born, life.end))
        spans[life.machine] = min(born, life.born), max(end, life.end)
    first = spans[view.clocks[0].machine]
    found = {}
    for clock in view.clocks:
        born, end = spans[clock.machine]
        apart = max(born - first[1], first[0] - end) / 1e9
        if clock.offset_ns is None and apart > CLOCK_LIMIT_S:
            found[names[clock.machine]] = apart
    return found


def _name_of(life: Life) -> str:
    header = life.spool.header
    return f"rank {life.rank}: process {header.pid} on {one_line(header.hostname)[:60]}"
