"""The line of the text on collectives."""

from typing import Any

from traceml_agent.report.render.units import milliseconds, percent, rate


def communication_text(payload: dict[str, Any]) -> str | None:
    """What collectives took, waiting told apart from transfer; None for a single rank."""
    section = payload.get("communication")
    if not section or payload["meta"]["world_size"] < 2:
        return None
    parts = []
    if section["ranks"]:
        rank = max(section["ranks"], key=lambda r: (section["ranks"][r]["host_ms"] or 0.0, -int(r)))
        parts.append(_of_rank(rank, section["ranks"][rank]))
    last = section["last_arrival"]
    if last is not None and section["dominant"] == "waiting":
        parts.append(
            f"{percent(100 * last['costly_share'])} of the waiting is for rank "
            f"{last['costly_rank']}"
        )
    rows = section["ddp"]["rows"]
    if rows:
        row = max(rows, key=lambda r: r["exposed_ms"] or 0.0)
        text = f"DDP reduces {milliseconds(row['communication_ms'])} an iteration on rank "
        parts.append(f"{text}{row['rank']}, {milliseconds(row['exposed_ms'])} not overlapped")
    return "; ".join(parts) or None


def _of_rank(rank: str, row: dict[str, Any]) -> str:
    top = row["operations"][0]["op"]
    text = f"rank {rank}: {rate(row['calls_per_step'])} calls a step ({top})"
    if row["host_ms"] is None:
        enqueued = milliseconds(row["enqueue_ms"])
        return f"{text}, enqueued in {enqueued}; waiting and transfer: not measured on the host"
    text += f", {milliseconds(row['host_ms'])} = {percent(100 * (row['share'] or 0))} of the step"
    if row["transfer_ms"] is None:
        return text
    waiting, transfer = _range(row["waiting_ms"]), _range(row["transfer_ms"])
    return f"{text}: waiting {waiting}, transfer {transfer}"


def _range(interval: list[float]) -> str:
    low, high = (milliseconds(value) for value in interval)
    return low if low == high else f"{low} to {high}"
