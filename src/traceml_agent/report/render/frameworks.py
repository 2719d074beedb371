"""What frameworks did, in a line each."""

from typing import Any

_WORDS = {
    "evaluations": "evaluation",
    "predictions": "prediction",
    "checkpoints": "checkpoint",
    "logs": "log",
}


def framework_lines(payload: dict[str, Any]) -> list[str]:
    """`transformers 5.23.0: 9 steps in 3 epochs, 6 evaluations, 3 checkpoints, 16 logs`."""
    # Absent in summaries of older versions.
    return [_line(found) for found in payload["run_context"].get("frameworks", ()) if _did(found)]


def _did(found: dict[str, Any]) -> bool:
    """A framework that only lies below another one has nothing of its own to tell."""
    return found["steps"] is not None or any(found[kind] for kind in _WORDS)


def _line(found: dict[str, Any]) -> str:
    parts = []
    if found["steps"] is not None:
        epochs = "" if found["epochs"] is None else f" in {_counted(found['epochs'], 'epoch')}"
        parts.append(f"{_counted(found['steps'], 'step')}{epochs}")
    parts += [_counted(found[kind], word) for kind, word in _WORDS.items() if found[kind]]
    name = found["name"] if found["version"] is None else f"{found['name']} {found['version']}"
    return f"{name}: {', '.join(parts)}"


def _counted(number: float, word: str) -> str:
    shown = f"{number:,}" if isinstance(number, int) else f"{number:,.4g}"
    return f"{shown} {word}{'' if number == 1 else 's'}"
