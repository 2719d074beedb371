"""The lines of the summary about a run of several attempts: what each did, and the goodput."""

from typing import Any

from traceml_agent.report.render.units import percent, seconds

SHOWN = 4
"""Attempts named one by one: the last ones."""


def attempt_lines(ledger: dict[str, Any]) -> list[tuple[str, str]]:
    """Label and text of each line; none for a run of one attempt, or of an older summary."""
    attempts = ledger.get("attempts") or []
    if len(attempts) < 2:
        return []
    shown = ", ".join(map(_attempt, attempts[-SHOWN:]))
    before = f"{len(attempts) - SHOWN} more, then " if len(attempts) > SHOWN else ""
    return [
        ("Attempts      ", f"{len(attempts)}: {before}{shown}"),
        ("Goodput       ", _goodput(ledger["goodput"])),
    ]


def _attempt(attempt: dict[str, Any]) -> str:
    text = f"#{attempt['attempt']} {attempt['status']} after {attempt['steps']:,} steps"
    lost = attempt["steps_lost"]
    if lost is None:
        return f"{text} (lost: unknown)"
    return f"{text} ({lost:,} lost)" if lost else text


def _goodput(goodput: dict[str, Any]) -> str:
    if goodput["goodput_percent"] is None:
        head = f"at most {percent(goodput['at_most_percent'])} of {seconds(goodput['wall_s'])}"
        head += ", since it cannot be told which steps were lost:"
    else:
        head = f"{percent(goodput['goodput_percent'])} of {seconds(goodput['wall_s'])} ="
    known = [
        (name, part)
        for name, part in goodput["parts"].items()
        if part["seconds"] is not None and part["percent"] is not None
    ]
    known.sort(key=lambda item: -item[1]["seconds"])
    shown = [
        f"{name} {seconds(part['seconds'])} ({percent(part['percent'])})"
        for name, part in known
        if part["percent"] >= 0.05
    ]
    return f"{head} {' + '.join(shown)}"
