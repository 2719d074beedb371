"""The line of a summary about the figures of weights and gradients; none without any."""

from typing import Any

NAME_LIMIT = 40


def snapshots_text(payload: dict[str, Any]) -> str | None:
    """How many snapshots there are, and how the norm of the largest tensor went.

    Absent in summaries of older versions.
    """
    section = payload.get("snapshots")
    if not section:
        return None
    rank, found = next(iter(section["ranks"].items()))
    newest = found["newest"]
    epoch = "" if newest["epoch"] is None else f" (epoch {newest['epoch']})"
    text = f"{found['count']}, the last at step {newest['last_step']}{epoch}"
    text += f": {len(newest['tensors'])} tensors"
    if len(section["ranks"]) > 1:
        text += f" of rank {rank}"
    history = found["history"]
    for name in list(history["weight_l2"])[:1]:
        text += f"; {name[:NAME_LIMIT]}: L2 norm {_course(history['weight_l2'][name])}"
        text += f", of its gradient {_course(history['gradient_l2'][name])}"
    return text


def _course(points: list[float | None]) -> str:
    known = [point for point in points if point is not None]
    if not known:
        return "-"
    return f"{known[0]:.3g}" if len(known) == 1 else f"{known[0]:.3g} to {known[-1]:.3g}"
