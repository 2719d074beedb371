"""Who waits for whom: the findings of the stalls of a run."""

from dataclasses import dataclass
from typing import Any

from traceml_agent.report.diagnose.issue import Issue
from traceml_agent.report.hangs import (
    BUSY,
    ELSEWHERE,
    ENDED,
    MISSING,
    PERSON,
    RUNNING,
    SILENT,
    WAITING,
    Episode,
    RankState,
)
from traceml_agent.report.places import named
from traceml_agent.report.render.units import percent, seconds
from traceml_agent.report.sequences import GroupState, group_states

LONG_S = 1800.0
"""A phase that may take long is worth a warning from here on. Source: the default time after which
torch.distributed gives up a collective, and with it the ranks that wait."""
STALLED_WARN = 0.1
"""Share of the wall time in stalls that ended. Chosen: as for the parts of a step."""
PLACES_TOLD = 2
"""Places that the finding itself names; `hangs` lists all."""
ODD_FIRST = (MISSING, ENDED, SILENT, ELSEWHERE, PERSON, BUSY, RUNNING, WAITING)
"""Who is the cause, the more likely the earlier; those who wait are the victims."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Ranks that stand at one place."""

    ranks: tuple[int, ...]
    state: str
    text: str
    phase: str | None


@dataclass(frozen=True, slots=True)
class Judged:
    """An episode with its cause."""

    episode: Episode
    kind: str  # HANG, STALL, LONG_PHASE, WAITING_FOR_INPUT
    severity: str
    cause: str
    culprits: tuple[int, ...]
    rows: tuple[Rows, ...]
    groups: tuple[GroupState, ...]


def judge(episode: Episode) -> Judged:
    """Who waits for whom, by the sequence numbers first, then by where the ranks stand."""
    groups = tuple(group for group in group_states(episode.states) if group.is_evidence)
    rows = _rows(episode.states)
    by_rank = {state.rank: state for state in episode.states}
    culprits, cause = _cause(groups, episode.states)
    kind, severity = _kind(episode, [by_rank[r] for r in culprits if r in by_rank])
    first = [row for row in rows if set(row.ranks) & set(culprits)]
    ordered = (*first, *(row for row in rows if row not in first))
    return Judged(episode, kind, severity, cause, culprits, ordered, groups)


def _rows(states: list[RankState]) -> list[Rows]:
    """Ranks by place: the odd ones first, the largest crowd last."""
    places: dict[tuple[str, str, str | None], list[int]] = {}
    for state in states:
        places.setdefault((state.state, state.text, state.phase), []).append(state.rank)
    rows = [Rows(tuple(ranks), *key) for key, ranks in places.items()]
    return sorted(rows, key=lambda r: (ODD_FIRST.index(r.state), len(r.ranks), r.ranks))


def _cause(groups: tuple[GroupState, ...], states: list[RankState]) -> tuple[tuple[int, ...], str]:
    """The ranks that the others wait for, and what says so."""
    for group in groups:
        if group.mismatch:
            where = f"collective {group.sequence_of_mismatch} of {group.name}"
            return group.odd, f"the ranks are in different calls at {where}: {group.mismatch}"
    for group in groups:
        if group.missing:
            call = f" ({group.operation})" if group.operation else ""
            what = f"collective {group.sequence}{call} of {group.name}"
            return group.missing, f"{named(group.missing)} never entered {what}"
    apart = [state for state in states if state.state != WAITING]
    waiting = [state for state in states if state.state == WAITING]
    if waiting and apart:
        worst = min(ODD_FIRST.index(state.state) for state in apart)
        culprits = tuple(s.rank for s in apart if ODD_FIRST.index(s.state) == worst)
        return culprits, f"{named(s.rank for s in waiting)} wait in a collective for the others"
    stuck = next((g for g in groups if g.stuck and not g.unheard), None)
    if stuck is not None:
        what = f"collective {stuck.sequence} ({stuck.operation}) of {stuck.name}"
        return (), f"all {len(stuck.ranks)} ranks entered {what} and none came out: the network"
    return tuple(state.rank for state in apart if state.stall is not None), ""


def _kind(episode: Episode, culprits: list[RankState]) -> tuple[str, str]:
    excused = bool(culprits) and all(state.state in (BUSY, PERSON) for state in culprits)
    if excused and any(state.state == PERSON for state in culprits):
        return "WAITING_FOR_INPUT", "info"
    if excused:
        return "LONG_PHASE", "warn" if episode.duration_s >= LONG_S else "info"
    if episode.is_start:
        return _kind_of_start(episode)
    if episode.ended or len(episode.states) == 1:
        return "STALL", "warn"
    stalled = [s for s in episode.states if s.state in (WAITING, ELSEWHERE, SILENT)]
    waiting = any(state.state == WAITING for state in stalled)
    return ("HANG", "crit") if waiting or len(stalled) > 1 else ("STALL", "warn")


def _kind_of_start(episode: Episode) -> tuple[str, str]:
    """Before the first step: loading and building take as long as they take; others wait for it."""
    waits = any(state.state == WAITING or state.phase is not None for state in episode.stalled)
    if episode.ended or not waits:
        return "LONG_PHASE", "warn" if episode.duration_s >= LONG_S else "info"
    is_hang = len(episode.states) > 1
    return "HANG" if is_hang else "STALL", "crit" if episode.duration_s >= LONG_S else "warn"


def lasting_issue(judged: Judged, status: str) -> Issue:
    """The finding of a stall that did not end, or not before the run did."""
    episode = judged.episode
    step = min((s.stall.step for s in episode.states if s.stall is not None), default=None)
    many = len(episode.states) > 1
    since = f" after step {step}" if step is not None else ""
    until = "" if status == "running" else f", until the run was {status}"
    if status == "failed":
        until = ", until the run failed"
    lines = [f"{named(row.ranks)}: {row.text}" if many else row.text for row in judged.rows]
    more = f"; and {len(lines) - PLACES_TOLD} more places" if len(lines) > PLACES_TOLD else ""
    told = "; ".join(lines[:PLACES_TOLD]) + more
    why = f"{judged.cause}. " if judged.cause else ""
    what = f"No step was closed for {seconds(episode.duration_s)}{since}{until}"
    if episode.is_start and episode.stalled:
        begun = "init_process_group was called"
        what = f"No step has closed yet, {seconds(episode.duration_s)} after {begun}{until}"
    summary = f"{what}: {why}{told}."
    return Issue(
        judged.kind,
        judged.severity,
        summary,
        _action(judged),
        ranks=judged.culprits,
        evidence=_evidence(judged, step),
    )


def _evidence(judged: Judged, step: int | None) -> dict[str, Any]:
    limits = [s.stall.limit_ns / 1e9 for s in judged.episode.states if s.stall is not None]
    return {
        "type": "stall",
        "stalled_s": judged.episode.duration_s,
        "threshold": max(limits, default=None),
        "last_step": step,
        "culprits": list(judged.culprits),
        "basis": "sequence_numbers" if judged.groups else "stacks",
    }


def _action(judged: Judged) -> str:
    states = {s.rank: s for s in judged.episode.states}
    found = [states[rank] for rank in judged.culprits if rank in states]
    if judged.kind == "WAITING_FOR_INPUT":
        return "Answer it, or end the debugger: the program waits for a person."
    if judged.kind == "LONG_PHASE":
        return "Nothing to do if this phase takes so long; else look at the line it is in."
    if any(group.mismatch for group in judged.groups):
        return "Make all ranks call the same collectives in the same order, whatever their data."
    if any(s.state in (ENDED, MISSING) for s in found):
        return "See why that rank is not there; the ranks that wait for it can be ended."
    if any(s.state == SILENT for s in found):
        return (
            "Look at that process on its node: `ps` says whether it is stopped (T; SIGCONT lets it "
            "go on). Ended by SIGTERM, it leaves its Python stack in the summary."
        )
    if any(s.phase == "input_wait" for s in found):
        return "The loader gives no batch: look at what its workers do, or set num_workers=0."
    if found and found[0].place is not None:
        stacks = "stacks of all ranks" if len(states) > 1 else "whole stack"
        return f"Look at {found[0].text}; `hangs` in the summary has the {stacks}."
    if found:
        return f"Look at {named(judged.culprits)}: {found[0].text}."
    return "Look at the network between the nodes; all ranks are inside the same call."


def ended_issue(judged: list[Judged], wall_s: float) -> Issue | None:
    """One finding for all stalls that ended, those excused left out."""
    found = [one for one in judged if one.kind == "STALL" and one.episode.ended]
    if not found:
        return None
    total = sum(one.episode.duration_s for one in found)
    worst = max(found, key=lambda one: one.episode.duration_s)
    row = worst.rows[0]
    share = total / wall_s if wall_s > 0 else 0.0
    times = "once" if len(found) == 1 else f"{len(found)} times"
    who = f"{named(row.ranks)}: " if len(worst.episode.states) > 1 else ""
    return Issue(
        "STALL",
        "warn" if share >= STALLED_WARN else "info",
        f"The training stood still {times}, {seconds(total)} in all, {percent(100 * share)} of the "
        f"wall time; the longest {seconds(worst.episode.duration_s)}: {who}{row.text}.",
        f"Look at {row.text}: it held up the training, which then went on.",
        score=share,
        ranks=worst.culprits,
        evidence={
            "type": "stall",
            "stalls": len(found),
            "stalled_s": total,
            "value": share,
            "threshold": STALLED_WARN,
        },
    )
