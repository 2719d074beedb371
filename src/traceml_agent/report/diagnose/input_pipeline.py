"""Why the training waits for its batches: the worst rank's loader, cause by cause."""

from typing import Any

from traceml_agent.report.diagnose.input_words import (
    BLOCKED,
    STARVED,
    WORDS,
    named_hotspot,
    place_of,
)
from traceml_agent.report.diagnose.issue import (
    LEAST_STEPS,
    Cost,
    Issue,
    band,
    by_severity,
)
from traceml_agent.report.diagnose.step_time import SHARE_CRIT, SHARE_WARN
from traceml_agent.report.loader_figures import LoaderFigures
from traceml_agent.report.loader_replay import (
    ReplayInputs,
    change,
)

BUSY = 0.85
"""Workers that make batches for so much of their time hold the training up. Chosen: below, one
that is asked in turn has idle time that more workers would not use."""
HEAD_OF_LINE = 0.3
"""Share of the wait in which a later batch was ready. Source: signals.md; 0 to 0.24 were measured
for batches of constant cost, 0.6 to 0.9 where few are expensive."""
HALF_BUSY = 0.5
"""Workers that mostly idle hold nobody up, whatever they wait for. Chosen."""
STORAGE_BYTES_PER_S = 1_000_000
"""Read from storage in the time that workers are blocked. Chosen: what a slow disk with small files
gives; a program that sleeps reads nothing."""
MORE_PREFETCH = 4
"""The prefetch_factor that is tried in place of 2. Chosen: twice the default of torch."""

_OF_A_LINE = ("WORKER_BOUND", "STORAGE_BOUND", "WORKERS_OVERSUBSCRIBED", "HEAD_OF_LINE")


def diagnose(
    figures: list[LoaderFigures], inputs: dict[int, ReplayInputs | None], steps: int
) -> list[Issue]:
    """The issues of the training loaders, one a rank, the worst first. Empty: none waits."""
    found: dict[str, list[tuple[float, LoaderFigures]]] = {}
    for loader in figures:
        for kind, lost_ns in causes_of(loader, inputs.get(loader.rank)):
            if loader.of_steps(lost_ns) >= SHARE_WARN and loader.steps >= LEAST_STEPS:
                found.setdefault(kind, []).append((lost_ns, loader))
    issues = []
    for kind, entries in found.items():
        lost_ns, worst = max(entries, key=lambda entry: entry[1].of_steps(entry[0]))
        ranks = tuple(sorted(loader.rank for _, loader in entries))
        issues.append(_issue(kind, lost_ns, worst, inputs.get(worst.rank), ranks, steps))
    return by_severity(issues)


def causes_of(found: LoaderFigures, inputs: ReplayInputs | None) -> list[tuple[str, float]]:
    """What this loader is waited for, in nanoseconds of the whole run each."""
    loader = found.steady
    if not loader.workers:
        return [("MAIN_PROCESS_LOADING", loader.wait_ns)]
    causes: list[tuple[str, float]] = [("EPOCH_RESTART", loader.restart_ns)]
    if not loader.known:
        return causes
    scale = loader.wait_ns / max(1, loader.made_wait_ns + loader.transfer_ns)
    making, transfer = loader.made_wait_ns * scale, loader.transfer_ns * scale
    of_workers, of_transfer = _delay_of_workers(found), _delay_of_transfer(found, transfer)
    causes.append(("WORKERS_OVERSUBSCRIBED", making * of_workers + transfer * of_transfer))
    causes.append(("TRANSFER_BOUND", transfer * (1 - of_transfer)))
    kind = _why_made_late(found, inputs)
    if kind is not None:
        causes.append((kind, making * (1 - of_workers)))
    return causes


def _delay_of_workers(found: LoaderFigures) -> float:
    """The part of the wait in which workers wait for a core; 0 where it is no cause."""
    delay = found.shares.delay or 0.0
    return delay if delay >= STARVED and (found.shares.busy or 0.0) >= HALF_BUSY else 0.0


def _delay_of_transfer(found: LoaderFigures, transfer_ns: float) -> float:
    """The part of the way to the loop in which somebody waits for a core: the loop itself, or the
    threads of the workers, of which it is seen how long they wait for each moment that they run."""
    if (found.delay_share or 0.0) * found.steps_ns >= transfer_ns * BLOCKED:
        return 1.0
    delay, cpu = found.shares.delay or 0.0, found.shares.cpu or 0.0
    part = delay / (delay + cpu) if delay + cpu > 0 else 0.0
    return part if part >= STARVED else 0.0


def _why_made_late(found: LoaderFigures, inputs: ReplayInputs | None) -> str | None:
    """Why batches were not made when they were asked for."""
    loader, shares = found.steady, found.shares
    if (shares.busy or 0.0) < BUSY:
        if loader.behind_ns >= HEAD_OF_LINE * loader.made_wait_ns:
            return "HEAD_OF_LINE"
        if inputs is not None:
            more = change(inputs, prefetch=MORE_PREFETCH * inputs.prefetch // 2)
            waited = sum(inputs.wait_ns) / len(inputs.wait_ns)
            if more.saved_ns >= waited / 2:
                return "PREFETCH_LOW"
        return "WORKER_BOUND" if shares.busy is not None else None
    if (shares.blocked or 0.0) >= BLOCKED and _reads_storage(found):
        return "STORAGE_BOUND"
    return "WORKER_BOUND"


def _reads_storage(found: LoaderFigures) -> bool:
    fetch_ns = sum(s.fetch_ns for s in found.loader.sums or ())
    blocked_s = (found.shares.blocked or 0.0) * fetch_ns / 1e9
    batches = sum(s.batches for s in found.loader.sums or ())
    by_bytes = (found.read_bytes or 0) >= STORAGE_BYTES_PER_S * blocked_s
    return by_bytes or (found.major_faults or 0) >= batches > 0


# In words


def _issue(
    kind: str,
    lost_ns: float,
    found: LoaderFigures,
    inputs: ReplayInputs | None,
    ranks: tuple[int, ...],
    steps: int,
) -> Issue:
    share = found.of_steps(lost_ns)
    summary, action = WORDS[kind](found, inputs)
    hot = named_hotspot(found)
    return Issue(
        kind=kind,
        severity=band(share, SHARE_WARN, SHARE_CRIT, steps) or "warn",
        summary=summary,
        action=action,
        metric="input_wait",
        phase="input_wait",
        score=share,
        share_pct=share,
        ranks=ranks,
        evidence=_evidence(kind, found),
        confidence="medium" if found.loader.role is None else "high",
        place=place_of(hot) if hot is not None and kind in _OF_A_LINE else None,
        cost=Cost(
            ms_per_step=lost_ns / max(1, found.steps) / 1e6, share=share, run_s=lost_ns / 1e9
        ),
    )


def _evidence(kind: str, found: LoaderFigures) -> dict[str, Any]:
    loader, shares = found.steady, found.shares
    return {
        "rank": found.rank,
        "loader": loader.loader,
        "num_workers": loader.workers,
        "busy_share": shares.busy,
        "cpu_share": shares.cpu,
        "waiting_for_core_share": shares.delay,
        "training_thread_waiting_for_core_share": found.delay_share,
        "blocked_share": shares.blocked,
        "collate_share": shares.collate,
        "ready_share": loader.ready / loader.known if loader.known else None,
        "head_of_line_share": loader.behind_ns / loader.wait_ns if loader.wait_ns else None,
        "transfer_share": loader.transfer_ns / loader.wait_ns if loader.wait_ns else None,
        "threshold": {
            "HEAD_OF_LINE": HEAD_OF_LINE,
            "WORKERS_OVERSUBSCRIBED": STARVED,
            "STORAGE_BOUND": BLOCKED,
            "WORKER_BOUND": BUSY,
        }.get(kind, SHARE_WARN),
    }


def explained(primary: dict[str, Any], issues: list[dict[str, Any]]) -> dict[str, Any]:
    """The verdict that the training waits for input, with the cause that was found for it."""
    if primary["kind"] not in ("INPUT_BOUND", "INPUT_STRAGGLER"):
        return primary
    culprit = primary["evidence"].get("culprit", {})
    rank = culprit.get("rank") if isinstance(culprit, dict) else None
    cause = next((i for i in issues if rank is None or rank in i["ranks"]), None)
    if cause is None:
        return primary
    return {
        **primary,
        "summary": f"{primary['summary']} {cause['summary']}",
        "action": cause["action"],
        "evidence": {**primary["evidence"], "cause": cause["kind"], "place": cause["place"]},
    }
