"""`watch`: a model of whose weights and gradients figures are wanted."""

import sys
from typing import Any

_SESSION = "traceml_agent.capture.session"


def watch(model: Any) -> None:
    """Takes figures of the weights and gradients of a model, at the end of each epoch.

    Mean, standard deviation, least and largest element, L2 norm, a histogram of 16 bins and the
    number of NaN and Inf, of each parameter and its gradient; they stand in `snapshots` of
    final_summary.json under the names that the model gives them. Call it once, before the training
    or in it; the model is not kept alive, and computes the same as before.

    Does nothing without the agent, or with TRACEML_SNAPSHOTS=off. With TRACEML_SNAPSHOTS=stats it
    is not needed: then every parameter that an optimizer updates is looked at.

    Raises TypeError for what has no `named_parameters`.
    """
    if not callable(getattr(model, "named_parameters", None)):
        raise TypeError(f"watch takes a torch.nn.Module, not {type(model).__name__}")
    module = sys.modules.get(_SESSION)
    session = None if module is None else module.SESSION
    if session is None or session.torch is None or session.config.snapshots == "off":
        return
    from traceml_agent.guard import guard

    with guard("watch"):
        session.take_snapshots(everything=False)
        if session.snapshots is not None:
            session.snapshots.watch(model)
