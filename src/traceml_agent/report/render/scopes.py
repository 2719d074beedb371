"""Lines on the scopes and the summary marks of the program; none where it has none."""

from typing import Any

from traceml_agent.report.render.units import percent, seconds

_MOST_SCOPES = 6
_MOST_MARKS = 8
_VALUE_LENGTH = 30


def scope_texts(payload: dict[str, Any]) -> list[tuple[str, str]]:
    """Label and text of each line; absent in summaries of older versions."""
    found = []
    scopes = payload.get("scopes") or []
    if scopes:
        words = [
            f"{row['name']} {seconds(row['total_s'])}"
            f" ({row['count']:,}x, {percent(row['share_percent'])})"
            for row in scopes[:_MOST_SCOPES]
        ]
        more = len(scopes) - _MOST_SCOPES
        found.append(("Scopes        ", ", ".join(words) + (f", {more} more" if more > 0 else "")))
    marks = payload.get("marks") or []
    if marks:
        words = [f"{_name(row)} {_value(row)}" for row in marks[:_MOST_MARKS]]
        more = len(marks) - _MOST_MARKS
        found.append(("Marks         ", ", ".join(words) + (f", {more} more" if more > 0 else "")))
    return found


def _name(row: dict[str, Any]) -> str:
    return str(row["name"]) if row["scope"] is None else f"{row['scope']}/{row['name']}"


def _value(row: dict[str, Any]) -> str:
    value = row.get("value_nonfinite") or row["value"]
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _VALUE_LENGTH else text[: _VALUE_LENGTH - 3] + "..."
