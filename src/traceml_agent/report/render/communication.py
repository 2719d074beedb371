"""The lines of the text on collectives."""

from typing import Any

from traceml_agent.report.render.units import milliseconds, percent, rate


def communication_text(payload: dict[str, Any]) -> list[str]:
    """What collectives took, waiting told apart from transfer; nothing for a single rank."""
    section = payload.get("communication")
    if not section or payload["meta"]["world_size"] < 2:
        return []
    ranks = section["ranks"]
    parts = []
    if ranks:
        rank = max(ranks, key=lambda r: (ranks[r]["host_ms"] or 0.0, -int(r)))
        parts.append(_of_rank(rank, ranks[rank], section))
    rows = section["ddp"]["rows"]
    if rows:
        parts.append(_of_ddp(rows, section["flight_recorder"]))
    return parts


def _of_rank(rank: str, row: dict[str, Any], section: dict[str, Any]) -> str:
    top = row["operations"][0]["op"]
    calls = rate(row["calls_per_step"])
    what = f"{top}, {calls} call{'' if calls == '1' else 's'} a step"
    if len(row["operations"]) > 1:
        what = f"{calls} calls a step, most of it {top}"
    if row["host_ms"] is None:
        enqueued = milliseconds(row["enqueue_ms"])
        return f"{what}, enqueued in {enqueued}: waiting and transfer are not seen from the host"
    share = percent(100 * (row["share"] or 0.0))
    text = f"{what}: {milliseconds(row['host_ms'])} of each step ({share}) on rank {rank}, "
    if row["transfer_ms"] is None:
        return f"{text}waiting and transfer not told apart"
    text += f"waiting {_range(row['waiting_ms'])}, transfer {_range(row['transfer_ms'])}"
    last = section["last_arrival"]
    if last is not None and section["dominant"] == "waiting":
        text += (
            f"; {percent(100 * last['costly_share'])} of the waiting is for rank "
            f"{last['costly_rank']}"
        )
    return text


def _of_ddp(rows: list[dict[str, Any]], recorded: dict[str, Any] | None) -> str:
    row = max(rows, key=lambda r: r["exposed_ms"] or 0.0)
    text = f"DDP reduces for {milliseconds(row['communication_ms'])} an iteration on rank "
    text += f"{row['rank']}, {milliseconds(row['exposed_ms'])} of it not overlapped"
    last = recorded["last_arrival"] if recorded is not None else None
    # Halfway between what chance would do and always.
    if last is not None and last["share"] >= (1 + last["chance"]) / 2:
        text += (
            f"; rank {last['rank']} comes last in {percent(100 * last['share'])} of "
            f"{last['calls']} steps, up to {milliseconds(last['wait_ms'])} after the others"
        )
    return text


def _range(interval: list[float]) -> str:
    low, high = (milliseconds(value) for value in interval)
    return low if low == high else f"{low} to {high}"
