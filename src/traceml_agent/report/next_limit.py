"""What would hold a training back next, where nothing holds it back now.

Steps that become shorter meet one of two limits: the workers of the loader, which are busy for a
share of each step already, or what is around the model and stays whatever the model takes.
"""

from collections.abc import Iterable
from typing import Any

from traceml_agent.report.render.units import milliseconds
from traceml_agent.schema.phases import COMPUTE_PHASES

CALM = ("COMPUTE_BOUND", "NO_CLEAR_PERFORMANCE_BOTTLENECK")
FAR = 10.0
"""Times as fast: a limit beyond is none that anybody will meet. Chosen."""
WORKERS = "workers"
_AROUND = {
    "input_wait": "the wait for input",
    "h2d": "copies to the device",
    "logging": "logging",
    "residual": "what no phase claims",
}


def with_next_limit(
    primary: dict[str, Any],
    distribution: dict[str, dict[str, float]],
    loaders: Iterable[dict[str, Any]],
) -> dict[str, Any]:
    """The verdict that all is well, with the next limit: a sentence, and `next_limit` in the
    evidence: `what`, and `factor`, how many times as fast steps can become (None: beyond FAR).

    `distribution` has the p50 of the parts of the step in ms, `loaders` are those of the summary.
    """
    middle = {name: found.get("p50") or 0.0 for name, found in distribution.items()}
    around = {name: middle.get(name, 0.0) for name in _AROUND}
    around_ms = sum(around.values())
    compute_ms = sum(middle.get(name, 0.0) for name in COMPUTE_PHASES)
    if primary["kind"] not in CALM or not compute_ms:
        return primary
    shares = [
        loader["busy_share"] or 0.0
        for loader in loaders
        if loader["role"] == "train" and loader["num_workers"]
    ]
    busy, fixed = max(shares, default=0.0), around_ms / (around_ms + compute_ms)
    what: str | None = None
    if max(busy, fixed) < 1 / FAR:
        words = "nothing that was measured would hold back steps ten times as fast."
    elif busy > fixed:
        what = WORKERS
        words = (
            f"the workers of the loader, busy for {busy:.0%} of the time: steps can become "
            f"{1 / busy:.1f} times as fast before they wait for input."
        )
    else:
        what = max(around, key=lambda name: around[name])
        words = (
            f"{_AROUND[what]}. Were the model's own work free, a step would still take "
            f"{milliseconds(around_ms)} of {milliseconds(around_ms + compute_ms)}."
        )
    limit = {"what": what, "factor": None if what is None else 1 / max(busy, fixed)}
    return {
        **primary,
        "summary": f"{primary['summary']} The next limit: {words}",
        "evidence": {**primary["evidence"], "next_limit": limit},
    }
