"""The common shape of all sections: metadata, diagnosis, global figures, one row an index."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from traceml_agent.report.diagnose.issue import Issue
from traceml_agent.report.membership import machine_of
from traceml_agent.report.view import RankView, RunView
from traceml_agent.schema.summary import LOWEST_IS_WORST

Metrics = dict[str, float | int | None]

_METADATA = (
    "duration_s",
    "nodes_expected",
    "nodes_observed",
    "nodes_coverage",
    "nodes_partial",
    "gpus_observed",
    "global_ranks_seen",
    "global_ranks_used",
    "training_total_steps",
    "training_latest_step",
)


@dataclass(frozen=True, slots=True)
class Window:
    """The stretch of the run that averages and percentiles are about."""

    start_step: int | None
    end_step: int | None
    steps_analyzed: int
    start_ts_s: float | None
    end_ts_s: float | None


@dataclass(frozen=True, slots=True)
class Row:
    """Figures of one rank or node."""

    identity: dict[str, Any]
    metrics: Metrics


def identity_of(rank: RankView) -> dict[str, Any]:
    """Who a row is about."""
    identity = rank.spool.header.identity
    return {
        "global_rank": identity.rank,
        "local_rank": identity.local_rank,
        "node_rank": identity.node_rank,
        "hostname": rank.spool.header.hostname,
        "local_world_size": identity.local_world_size,
        "world_size": identity.world_size,
    }


def wall_s(rank: RankView, monotonic_ns: int) -> float:
    """Seconds since the epoch of a reading of the monotonic clock of a rank."""
    header = rank.spool.header
    return (header.wall_ns + monotonic_ns - header.monotonic_ns) / 1e9


def nodes_of(view: RunView) -> list[int]:
    """The node ranks that were seen."""
    return sorted({rank.spool.header.identity.node_rank for rank in view.ranks})


def mode_of(view: RunView) -> str:
    """single_node or multi_node."""
    return "multi_node" if len(nodes_of(view)) > 1 else "single_node"


def metadata(
    view: RunView, window: Window, names: tuple[str, ...], samples: int, **known: Any
) -> dict[str, Any]:
    """The metadata of a section; what a section does not know stays null."""
    blank = dict.fromkeys(_METADATA)
    return {
        "mode": mode_of(view) if samples else "no_data",
        **blank,
        "samples": samples,
        "section_metric_names": list(names),
        "analysis_start_ts_s": window.start_ts_s,
        "analysis_end_ts_s": window.end_ts_s,
        "analysis_start_step": window.start_step,
        "analysis_end_step": window.end_step,
        **known,
    }


def section(
    *,
    meta: dict[str, Any],
    issues: list[Issue],
    index_by: str,
    window: dict[str, Any],
    names: tuple[str, ...],
    rows: dict[str, Row],
    units: dict[str, str],
    card: list[str],
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A section in the shape of the contract; averages, medians and worsts are over the rows."""
    found = [issue.to_json() for issue in issues]
    average, middle, worst = {}, {}, {}
    for name in names:
        values = [
            (value, index)
            for index, row in rows.items()
            if (value := row.metrics.get(name)) is not None
        ]
        average[name] = sum(value for value, _ in values) / len(values) if values else None
        ordered = sorted(values, key=itemgetter(0))
        # Of two middle rows the lower: with two ranks the upper one is the worst already.
        middle[name] = _point(ordered[(len(ordered) - 1) // 2] if values else None)
        pick = min if name in LOWEST_IS_WORST else max
        worst[name] = _point(pick(values, key=itemgetter(0)) if values else None)
    return {
        "metadata": meta,
        "diagnosis": found[0],
        "issues": found,
        "global": {
            "index_by": index_by,
            "window": window,
            "average": average,
            "median": middle,
            "worst": worst,
        },
        "groups": {
            "by": index_by,
            "rows": {
                index: {"identity": row.identity, "metrics": {n: row.metrics.get(n) for n in names}}
                for index, row in rows.items()
            },
        },
        "units": units,
        "card": "\n".join(card),
        **(extra or {}),
    }


def sampled_s(ranks: Iterable[RankView], times_ns: Callable[[RankView], list[int]]) -> float | None:
    """Seconds from the first to the last sample over all ranks; None without any.

    Of the machine that was sampled longest: clocks of different ones are not compared.
    """
    walls: dict[str, list[float]] = {}
    for rank in ranks:
        if found := times_ns(rank):
            known = walls.setdefault(machine_of(rank.spool.header), [])
            known += wall_s(rank, found[0]), wall_s(rank, found[-1])
    return max((max(known) - min(known) for known in walls.values()), default=None)


def step_window(window: Window, clock: str | None = None) -> dict[str, Any]:
    """`global.window` of a section about steps."""
    data: dict[str, Any] = {
        "kind": "step_window",
        "alignment": "common_steps",
        "samples": None,
        "steps_analyzed": window.steps_analyzed,
        "start_step": window.start_step,
        "end_step": window.end_step,
        "completed_step": window.end_step,
    }
    return data if clock is None else {**data, "diagnosis_clock": clock}


def sample_window(samples: int) -> dict[str, Any]:
    """`global.window` of a section about samples."""
    return {
        "kind": "sample_window",
        "alignment": "none",
        "samples": samples,
        "steps_analyzed": None,
        "start_step": None,
        "end_step": None,
        "completed_step": None,
    }


def _point(found: tuple[float, str] | None) -> dict[str, Any]:
    if found is None:
        return {"value": None, "idx": None}
    return {"value": found[0], "idx": found[1]}
