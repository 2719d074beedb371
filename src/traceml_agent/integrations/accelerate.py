"""Accelerate: saving and logging by the Accelerator's own methods. Steps need no help."""

from typing import Any

from traceml_agent.capture.framework import Framework, as_logging, in_phase, patch, status_of
from traceml_agent.schema.phases import CHECKPOINT

NAME = "accelerate"
_PATCHED: list[Any] = []


def install(module: Any) -> str:
    """Patches the Accelerator of `accelerate.accelerator`, once."""
    accelerator = module.Accelerator
    if any(known is accelerator for known in _PATCHED):
        return "active"
    framework = Framework(NAME)
    missing: list[str] = []
    for name in ("save_state", "save_model"):
        call = f"Accelerator.{name}"
        missing += patch(accelerator, name, in_phase, CHECKPOINT, framework, "checkpoints", call)
    missing += patch(accelerator, "log", as_logging, framework, "Accelerator.log")
    _PATCHED.append(accelerator)
    return status_of(missing)
