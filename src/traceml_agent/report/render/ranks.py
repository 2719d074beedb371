"""The ranks side by side in a few lines: all of them, or the two slowest and two others."""

from typing import Any

from traceml_agent.report.render.units import milliseconds

ALL_UP_TO = 4
"""More ranks than this are shown by the two slowest, the median and the fastest."""
_NAME = 24
_CELL = 11
_PHASES = ("input_wait", "forward", "backward", "residual")


def rank_table(step_time: dict[str, Any]) -> list[str]:
    """A title and at most four lines; nothing of a single rank."""
    rows = step_time["groups"]["rows"]
    balance = step_time.get("rank_balance")
    if len(rows) < 2 or not balance or not step_time["global"]["window"]["steps_analyzed"]:
        return []
    own = balance["rows"]
    first = ("own work", "waits") if own else ("step",)
    titles = (*first, *(name.replace("_", " ") for name in _PHASES))
    chosen = _chosen(rows, own)
    named = f"Ranks ({len(rows)})" if len(chosen) < len(rows) else "Ranks"
    lines = [f"{named:<{_NAME}}" + "".join(f"{title:>{_CELL}}" for title in titles)]
    for rank, note in chosen:
        metrics = rows[rank]["metrics"]
        times = [metrics["step_time_ms"]]
        if own:
            found = own.get(rank, {})
            times = [found.get("own_ms"), found.get("waiting_ms")]
        times += [metrics[f"{name}_ms"] for name in _PHASES]
        name = _name(rank, rows[rank]["identity"]["hostname"] or "", note)
        lines.append(f"{name:<{_NAME}}" + "".join(f"{milliseconds(ms):>{_CELL}}" for ms in times))
    return lines


def _chosen(rows: dict[str, Any], own: dict[str, Any]) -> list[tuple[str, str]]:
    """Ranks to show, each with a note."""
    if len(rows) <= ALL_UP_TO:
        return [(rank, "") for rank in rows]

    def slowness(rank: str) -> tuple[float, int]:
        found = own[rank]["own_ms"] if rank in own else None
        return -(found or rows[rank]["metrics"]["step_time_ms"] or 0.0), int(rank)

    ordered = sorted((rank for rank in rows if not own or rank in own), key=slowness)
    middle, fastest = ordered[len(ordered) // 2], ordered[-1]
    return [
        (ordered[0], "slowest"),
        (ordered[1], "slowest"),
        (middle, "median"),
        (fastest, "fastest"),
    ]


def _name(rank: str, hostname: str, note: str) -> str:
    """`  3 node-b, slowest`, the host name cut where it does not fit."""
    end = f", {note}" if note else ""
    room = _NAME - 3 - len(rank) - len(end)
    host = hostname if len(hostname) <= room else hostname[: max(0, room - 1)] + "…"
    return f"  {rank} {host}{end}"
