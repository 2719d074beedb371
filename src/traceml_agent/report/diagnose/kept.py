"""What a training keeps alive of its steps, in words: from the record of TRACEML_RETAINED."""

import os
from collections.abc import Sequence

from traceml_agent.schema.retained import Retained, RetainedTensors

EXPLAINS = 0.5
"""Chosen: tensors whose bytes are half of the growth are what grows."""


def explaining(looks: Sequence[Retained], slope: float) -> RetainedTensors | None:
    """Of the last look, the tensors that explain the growth of `slope` bytes a step.

    Where their own bytes do not, it is those with a graph: what it keeps is not seen from Python.
    """
    for look in looks[-1:]:
        tensors = look.tensors  # most bytes first
        if tensors and tensors[0].bytes / look.steps < EXPLAINS * slope:
            tensors = [found for found in tensors if found.with_graph] or tensors
        return next(iter(tensors), None)
    return None


def words_of(looks: Sequence[Retained], kept: RetainedTensors | None) -> str:
    """What is kept of a step, as a sentence after others; empty where nothing was looked at."""
    if not looks:
        return ""
    look = looks[-1]
    if kept is None:
        return f" No tensor that {look.steps} steps made was alive {look.later_steps} later."
    shape = "x".join(map(str, kept.shape)) or "scalar"
    graph = ", with the graph that made it" if kept.with_graph else ""
    code = f" `{kept.text}`" if kept.text else ""
    rate = f"{kept.count / look.steps:.2g} a step ({kept.dtype}, {shape}{graph})"
    where = f"{os.path.basename(kept.file)}:{kept.line}{code}"
    return f" {rate} are alive {look.later_steps} steps later, made in {where}."


def advice_on(kept: RetainedTensors | None) -> str:
    """What to do about it."""
    if kept is None:
        return (
            "Something keeps tensors of past steps alive: store loss.item() or loss.detach(), not "
            "loss, and empty lists that grow. TRACEML_RETAINED=1 names the line that makes them."
        )
    if kept.with_graph:
        return (
            "Store .item() or .detach() of it: a tensor with its graph keeps all activations of "
            "its step."
        )
    return "See where this tensor is stored, and empty that list, or keep a copy of fewer of them."
