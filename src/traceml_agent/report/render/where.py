"""The lines of a text summary that say where in the program the time passes."""

import os
from typing import Any

from traceml_agent.report.render.units import milliseconds, percent

MOST = 3
ROOM = 76
"""Characters beside the label."""
SHARE_LEAST = 0.03
"""Of the step. Chosen: below, nobody would look at the line."""
_PHASES = {"residual": "the residual", "input_wait": "input wait", "h2d": "copy to device"}


def where_lines(payload: dict[str, Any]) -> list[str]:
    """`train.py:31 `loss.item()` ...`, the line that takes most first; absent in older files."""
    step_ms = payload["step_time"]["global"]["average"].get("step_time_cpu_ms")
    lines: list[str] = []
    for spot in payload.get("hotspots", ()):
        ms = spot["ms_per_step"]
        if not step_ms or ms is None or ms < SHARE_LEAST * step_ms or len(lines) == MOST:
            continue
        phase = _PHASES.get(spot["phase"], spot["phase"])
        figures = f": {milliseconds(ms)} a step, {percent(spot['share_percent'])} of {phase}"
        lines.append(_name(spot, ROOM - len(figures)) + figures)
    return lines


def _name(spot: dict[str, Any], room: int) -> str:
    before = "before " if spot["before"] else ""
    name = f"{before}{os.path.basename(spot['file'])}:{spot['line']}"
    code, left = spot["code"], room - len(name) - 3
    if not code or left < len("f(…"):
        return name if len(name) <= room else "…" + name[-(room - 1) :]
    return f"{name} `{code if len(code) <= left else code[: left - 1] + '…'}`"
