"""The finding about a rank that the others wait for: which, where, why, when, and its cost."""

from dataclasses import asdict, dataclass
from typing import Any

from traceml_agent.report.diagnose.issue import Issue, band
from traceml_agent.report.diagnose.ranks import SCORE_CRIT, SCORE_WARN, Straggler
from traceml_agent.report.pattern import Pattern
from traceml_agent.report.whatif import CONFIDENCE, WhatIf

MS = 1e6


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank runs."""

    rank: int
    hostname: str
    node_rank: int


@dataclass(frozen=True, slots=True)
class Case:
    """A straggler with all that is known about it."""

    found: Straggler
    ranks: tuple[Place, ...]  # all that were compared, in the order of the indices of `found`
    expected: int
    strategy: str | None
    steps: int
    own_ms: dict[str, tuple[float, float]]  # phase: culprit, victim
    pattern: Pattern
    slowest_share: float
    gain: WhatIf


_KINDS = {
    # cause: kind, metric, phase, component as the format names it
    "input_wait": ("INPUT_STRAGGLER", "input_wait", "input", "input"),
    "h2d": ("H2D_STRAGGLER", "h2d", "h2d", "h2d"),
    "forward": ("COMPUTE_STRAGGLER", "forward", "forward", "compute"),
}
_DOES = {
    "input_wait": "waits {own} a step for its batch",
    "h2d": "copies to its device for {own} a step",
    "forward": "spends {own} a step in forward",
    "residual": "spends {own} a step in no phase",
    "eval": "evaluates for {own} a step on average",
    "checkpoint": "saves checkpoints for {own} a step on average",
    "compile": "compiles for {own} a step on average",
    "logging": "logs for {own} a step",
    "optimizer": "spends {own} a step in the optimizer",
}
_NEXT = {
    "input_wait": "Look at the input of rank {rank}: its shard, its storage, its loader workers, "
    "and what else runs on {host}.",
    "h2d": "Look at the copies of rank {rank}: pinned memory, the size of its batches, and the "
    "link of its device on {host}.",
    "forward": "Look at the compute of rank {rank}: longer samples than elsewhere, clocks and "
    "temperature of its device, other processes on {host}.",
    "optimizer": "Look at what the optimizer of rank {rank} holds more than the others.",
    "alone": "Rank {rank} does this alone while the others wait: evaluation, a checkpoint, "
    "logging. Do it less often, in the background, or on all ranks.",
    None: "Look at backward and the collectives on rank {rank}, and at its device on {host}: no "
    "phase that was measured explains the difference.",
}


def issue_of(case: Case) -> Issue:
    """The finding."""
    found, culprit = case.found, case.ranks[case.found.culprit]
    waits_in = "_".join(found.waits_in)
    kind, metric, phase, component = _KINDS.get(
        found.cause or "",
        ("STRAGGLER", waits_in, "sync", found.cause or "sync_or_unattributed"),
    )
    cause = found.cause if found.cause in _NEXT else "alone" if found.cause else None
    return Issue(
        kind=kind,
        severity=band(found.score, SCORE_WARN, SCORE_CRIT, case.steps) or "warn",
        summary=_summary(case),
        action=_NEXT[cause].format(rank=culprit.rank, host=culprit.hostname),
        metric=metric,
        phase=phase,
        score=found.score,
        skew_pct=found.score,
        ranks=tuple(case.ranks[index].rank for index in found.alike),
        evidence=_evidence(case, waits_in, component),
    )


def _summary(case: Case) -> str:
    found = case.found
    culprit, victim = case.ranks[found.culprit], case.ranks[found.victim]
    parts = [f"Rank {culprit.rank} on {culprit.hostname}"]
    if len({place.node_rank for place in case.ranks}) > 1:
        parts[0] += f" (node {culprit.node_rank})"
    if found.cause in case.own_ms:
        own, others = case.own_ms[found.cause]
        parts[0] += f" {_DOES[found.cause].format(own=_ms(own))}, rank {victim.rank} {_ms(others)}:"
    elif found.cause == "outside":
        parts[0] += " evaluates, saves or does other work beside the training alone:"
    else:
        parts[0] += " waits least for the others, for no reason that was measured:"
    where = "in " + " and ".join(found.waits_in)
    where = where.replace("in residual", "between the phases")
    parts.append(
        f"the others wait {_ms(found.cost_ns / MS)} of each {_ms(found.step_ns / MS)} step for it, "
        f"{where}."
    )
    parts.append(_company(case))
    parts.append(_when(case))
    parts.append(_gain(case))
    if len(case.ranks) < case.expected:
        parts.append(f"{len(case.ranks)} of {case.expected} ranks were compared.")
    return " ".join(part for part in parts if part)


def _company(case: Case) -> str:
    """Which ranks are slow with the culprit."""
    alike = [case.ranks[index] for index in case.found.alike]
    if len(alike) == 1:
        return ""
    hosts, all_hosts = ({place.hostname for place in of} for of in (alike, case.ranks))
    on = f", all on {alike[0].hostname}" if len(hosts) == 1 < len(all_hosts) else ""
    return f"Ranks {spans([place.rank for place in alike])} are as slow{on}."


def _when(case: Case) -> str:
    pattern, share = case.pattern, f"{case.slowest_share:.0%} of the steps"
    if pattern.kind == "transient":
        return f"It was slow in steps {pattern.first_step}-{pattern.last_step} only."
    if pattern.kind == "recurring":
        every = f", every {pattern.every}" if pattern.every else ""
        return f"This falls into {pattern.steps} of {case.steps} steps{every}."
    if pattern.kind == "wandering":
        return (
            f"It is the slowest in {share} (chance: {1 / len(case.ranks):.0%}): ranks take turns."
        )
    return f"It is the slowest in {share}."


def _gain(case: Case) -> str:
    gain = case.gain
    speedup, low, high = speedups(gain)
    if speedup is None:
        return f"What the job would gain cannot be told: {gain.reason}."
    who = "it" if len(case.found.alike) == 1 else "they"
    if high is not None and high < 1.005:
        return f"If {who} ran like the median, the job would gain nothing: others are as slow."
    return (
        f"If {who} ran like the median, the job would run {speedup:.2f}x faster "
        f"({CONFIDENCE:.0%}: {low:.2f}-{high:.2f})."
    )


def speedups(gain: WhatIf) -> tuple[float | None, float | None, float | None]:
    """How many times faster the job would run, and the bounds of that."""
    found = [
        None if ns is None or ns >= gain.step_ns else gain.step_ns / (gain.step_ns - ns)
        for ns in (gain.gain_ns, gain.low_ns, gain.high_ns)
    ]
    return (None, None, None) if None in found else (found[0], found[1], found[2])


def _evidence(case: Case, waits_in: str, component: str) -> dict[str, Any]:
    found, gain = case.found, case.gain
    culprit, victim = case.ranks[found.culprit], case.ranks[found.victim]
    speedup, low, high = speedups(gain)
    names = {cause: known[3] for cause, known in _KINDS.items()}
    return {
        "component": component,
        "culprit_rank": culprit.rank,
        "victim_rank": victim.rank,
        "visible_metric": waits_in,
        "visible_culprit_ms": found.culprit_wait_ns / MS,
        "visible_victim_ms": found.victim_wait_ns / MS,
        "visible_cost_ms": found.cost_ns / MS,
        "step_time_ms": found.step_ns / MS,
        "component_excesses_ms": {
            names.get(name, name): more / MS for name, more in found.excess_ns.items()
        },
        "component_coverage": {
            names.get(name, name): part for name, part in found.coverage.items()
        },
        "culprit": asdict(culprit),
        "strategy": case.strategy,
        "waits_in": list(found.waits_in),
        "ranks_compared": len(case.ranks),
        "ranks_expected": case.expected,
        "steps_used": case.steps,
        "pattern": {
            **asdict(case.pattern),
            "slowest_share": case.slowest_share,
            "chance_share": 1 / len(case.ranks),
        },
        "chance": found.chance,
        "what_if": {
            "gain_ms": _known_ms(gain.gain_ns),
            "gain_low_ms": _known_ms(gain.low_ns),
            "gain_high_ms": _known_ms(gain.high_ns),
            "speedup": speedup,
            "speedup_low": low,
            "speedup_high": high,
            "confidence": CONFIDENCE,
            "reason": gain.reason,
        },
        "threshold_warn": SCORE_WARN,
        "threshold_crit": SCORE_CRIT,
    }


def spans(ranks: list[int]) -> str:
    """Numbers in ascending order, neighbours joined: `0-3, 7`."""
    found: list[list[int]] = []
    for rank in ranks:
        if found and rank == found[-1][1] + 1:
            found[-1][1] = rank
        else:
            found.append([rank, rank])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found)


def _known_ms(ns: float | None) -> float | None:
    return None if ns is None else ns / MS


def _ms(value: float) -> str:
    return f"{value:.2f} ms" if value < 10 else f"{value:.1f} ms"
