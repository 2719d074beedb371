"""What is wrong with the run as a whole: ranks, attempts, runs and clocks that do not fit."""

from collections.abc import Sequence
from dataclasses import dataclass

from traceml_agent.report.diagnose.issue import Issue, by_severity

CLOCK_LIMIT_S = 2.0
"""Clocks that are further apart are a finding. Chosen: NTP keeps machines within 0.1 s, and two
machines without it drift by that much in a day."""
LOST_WARN = 0.1
LOST_CRIT = 0.2
"""Share of the wall time of the run. Source: the shares of the step, for want of better ones."""
NAMED = 10
"""Ranks, machines or runs that a message names."""


@dataclass(frozen=True, slots=True)
class RunFigures:
    """What is known of the membership of the spools."""

    run_id: str
    world_size: int
    world_sizes: dict[int, tuple[int, ...]]  # what ranks of the last attempt were told: the ranks
    missing: Sequence[int]
    is_running: bool
    doubles: dict[int, int]  # rank: further processes of it
    double_names: Sequence[str]
    strangers: dict[str, int]  # other run: its spools
    offsets_s: dict[str, tuple[float, float]]  # machine by name: offset, error
    apart_s: dict[str, float]  # machine without a known offset: how far from the others it lived
    lost_share: float | None
    lost_steps: int | None


def diagnose(run: RunFigures) -> list[Issue]:
    """The issues of the run, the worst first; none for a run in order."""
    found = [*_doubles(run), *_sizes(run), *_strangers(run), *_missing(run)]
    found += [*_clocks(run), *_lost(run)]
    return by_severity(found)


def _doubles(run: RunFigures) -> list[Issue]:
    if not run.doubles:
        return []
    ranks = tuple(sorted(run.doubles))
    names = "; ".join(run.double_names[:NAMED])
    return [
        Issue(
            "DUPLICATE_RANKS",
            "crit",
            f"{_ranks(ranks)} ran in several processes at the same time. The figures leave out "
            f"{sum(run.doubles.values())} of them ({names}).",
            "Two jobs write into one run, or the ranks do not know their numbers: give each job "
            "a TRACEML_RUN_ID of its own, and check RANK and WORLD_SIZE.",
            ranks=ranks,
            evidence={"processes_left_out": sum(run.doubles.values())},
        )
    ]


def _sizes(run: RunFigures) -> list[Issue]:
    beyond = tuple(
        rank for size, ranks in run.world_sizes.items() for rank in ranks if rank >= size
    )
    if len(run.world_sizes) < 2 and not beyond:
        return []
    told = ", ".join(
        f"{size} ({_ranks(ranks)})" for size, ranks in sorted(run.world_sizes.items())[:NAMED]
    )
    return [
        Issue(
            "WORLD_SIZE_MISMATCH",
            "crit",
            f"Ranks of one attempt were told different world sizes, or one below their own number: "
            f"{told}. Missing ranks are counted against {run.world_size}.",
            "They are no job together: check WORLD_SIZE, or the launcher, of each node.",
            ranks=beyond,
            evidence={"world_sizes": sorted(run.world_sizes)},
        )
    ]


def _strangers(run: RunFigures) -> list[Issue]:
    if not run.strangers:
        return []
    names = ", ".join(f"{name[:60]} ({n})" for name, n in sorted(run.strangers.items())[:NAMED])
    return [
        Issue(
            "SEVERAL_RUNS",
            "warn",
            f"The directory holds spools of {len(run.strangers) + 1} runs. The figures are about "
            f"{run.run_id[:60]} alone; left out: {names}.",
            "Move the spools of each run into a directory of their own.",
            evidence={"spools_left_out": sum(run.strangers.values())},
        )
    ]


def _missing(run: RunFigures) -> list[Issue]:
    if not run.missing:
        return []
    so_far = " so far" if run.is_running else ""
    return [
        Issue(
            "MISSING_RANKS",
            "warn",
            f"{_ranks(run.missing)} of {run.world_size} left no spool{so_far}: they never came to "
            "their first step, or their files are elsewhere. The figures are about the others.",
            "Look into the output of these ranks. Where the nodes share no file system, merge "
            "their parts: `traceml-agent fold NODE_A NODE_B`.",
            ranks=tuple(run.missing),
            evidence={"world_size": run.world_size, "missing": len(run.missing)},
        )
    ]


def _clocks(run: RunFigures) -> list[Issue]:
    found = []
    for machine, (offset, error) in list(run.offsets_s.items()):
        if abs(offset) - error < CLOCK_LIMIT_S:
            continue
        found.append(
            Issue(
                "CLOCK_OFFSET",
                "warn",
                f"The clock of {machine} is {abs(offset):,.1f} s {_side(offset)} that of the first "
                f"node (known to {error:.3f} s, from the ends of common steps). Durations do not "
                "depend on it; times of day on that node do.",
                "Let the nodes keep their time by NTP or chrony.",
                metric="clock_offset_s",
                score=abs(offset),
                evidence={"offset_s": offset, "error_s": error, "threshold": CLOCK_LIMIT_S},
            )
        )
    for machine, apart in list(run.apart_s.items()):
        found.append(
            Issue(
                "CLOCK_OFFSET",
                "warn",
                f"By the clocks, the ranks on {machine} lived {apart:,.0f} s apart from the "
                "others of the same attempt: a clock is wrong, or they did not run together. "
                "Durations do not depend on it.",
                "Let the nodes keep their time by NTP or chrony.",
                metric="clock_offset_s",
                score=apart,
                evidence={"offset_s": None, "apart_s": apart, "threshold": CLOCK_LIMIT_S},
            )
        )
    return found[:NAMED]


def _side(offset: float) -> str:
    return "ahead of" if offset > 0 else "behind"


def _lost(run: RunFigures) -> list[Issue]:
    share = run.lost_share
    if share is None or share < LOST_WARN:
        return []
    return [
        Issue(
            "LOST_WORK",
            "crit" if share >= LOST_CRIT else "warn",
            f"{100 * share:.0f} % of the wall time of the run went into {run.lost_steps:,} steps "
            "that were lost with their attempt and had to be made again.",
            "Save checkpoints more often, or before the end that a scheduler announces, and load "
            "the last one at the start.",
            score=share,
            evidence={"lost_share": share, "lost_steps": run.lost_steps, "threshold": LOST_WARN},
        )
    ]


def _ranks(ranks: Sequence[int]) -> str:
    """`rank 3` or `ranks 0-2, 7`."""
    spans: list[list[int]] = []
    for rank in sorted(ranks):
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    shown = [str(a) if a == b else f"{a}-{b}" for a, b in spans[:NAMED]]
    text = ", ".join(shown) + (", ..." if len(spans) > NAMED else "")
    return f"Rank{'s' if len(ranks) > 1 else ''} {text}"
