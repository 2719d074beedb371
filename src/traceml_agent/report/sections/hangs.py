"""The stalls of a run for the summary: what lasts, what ended, and the findings of both."""

from dataclasses import dataclass
from typing import Any

from traceml_agent.report.diagnose.hangs import Judged, ended_issue, judge, lasting_issue
from traceml_agent.report.diagnose.issue import label
from traceml_agent.report.hangs import EPISODES_LIMIT, episodes
from traceml_agent.report.places import intervals
from traceml_agent.report.view import RunView

SECTION = "hangs"


@dataclass(frozen=True, slots=True)
class Hangs:
    """What the summary says of stalls."""

    listed: list[dict[str, Any]]
    issues: list[dict[str, Any]]  # info ones too
    primary: dict[str, Any] | None  # of a stall that lasts, or lasted to the end of the run


def build(view: RunView, status: str, wall_s: float) -> Hangs:
    """`status` is the one of the run, `wall_s` the life of its longest process."""
    judged = [judge(episode) for episode in episodes(view)]
    issues = []
    primary = None
    for one in judged[:1]:
        if not one.episode.ended:
            issue = lasting_issue(one, status).to_json()
            issues.append(issue)
            # A process that fails later on has its own story: most often it was done with training.
            if issue["severity"] == "crit" or (issue["severity"] == "warn" and status != "failed"):
                primary = _verdict(issue)
    ended = ended_issue(judged, wall_s)
    if ended is not None:
        issues.append(ended.to_json())
    return Hangs([_listed(one) for one in judged[:EPISODES_LIMIT]], issues, primary)


def _verdict(issue: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": issue["kind"],
        "status": label(issue["kind"]),
        "severity": issue["severity"],
        "section": SECTION,
        "scope": "performance",
        "summary": issue["summary"],
        "action": issue["action"],
        "evidence": issue["evidence"],
    }


def _listed(judged: Judged) -> dict[str, Any]:
    episode = judged.episode
    return {
        "kind": judged.kind,
        "ended": episode.ended,
        "start_ts_s": episode.since_ns / 1e9,
        "duration_s": episode.duration_s,
        "culprits": list(judged.culprits),
        "cause": judged.cause or None,
        "places": [
            {
                "ranks": intervals(row.ranks),
                "count": len(row.ranks),
                "state": row.state,
                "phase": row.phase,
                "at": row.text,
            }
            for row in judged.rows
        ],
        "collectives": [
            {
                "group": group.name,
                "ranks": intervals(group.ranks),
                "sequence": group.sequence,
                "operation": group.operation,
                "missing": list(group.missing),
                "unheard": list(group.unheard),
                "mismatch": group.mismatch,
            }
            for group in judged.groups
        ],
        "stacks": _stacks(judged),
    }


def _stacks(judged: Judged) -> dict[str, str]:
    """Of the first rank of each place: the stack of the thread that trains."""
    by_rank = {state.rank: state for state in judged.episode.states}
    stacks = {}
    for row in judged.rows:
        stall = by_rank[row.ranks[0]].stall
        training = [t for t in stall.threads if t.training] if stall is not None else []
        if training:
            stacks[str(row.ranks[0])] = training[0].stack
    return stacks
