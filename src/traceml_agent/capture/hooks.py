"""HOOKS: everything that attaches to an import."""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import wrapt

from traceml_agent.capture import exit as exit_
from traceml_agent.capture.mode import asked
from traceml_agent.capture.patches import (
    backward,
    checkpoint,
    collectives,
    compile,
    dataloader,
    forward,
    loader_workers,
    optimizer,
    process_group,
    ray_train,
    threads,
    trackers,
    transfer,
)
from traceml_agent.capture.say import say_once
from traceml_agent.capture.session import SESSION
from traceml_agent.config import resolve
from traceml_agent.guard import guard, record_fault

Install = Callable[[Any], str]
"""Patches a module and returns "active", or in words why not."""

SKIPPED = "skipped by TRACEML_SKIP"
PATCHES: tuple[tuple[str, Install], ...] = (
    ("dataloader", dataloader.install),
    ("transfer", transfer.install),
    ("forward", forward.install),
    ("backward", backward.install),
    ("optimizer", optimizer.install),
    ("checkpoint", checkpoint.install),
    ("collectives", collectives.install),
    ("process_group", process_group.install),
    ("loader_workers", loader_workers.install),
    ("threads", threads.install),
)
"""Installed when torch has been imported."""


def on_torch(torch: Any) -> None:
    """Torch is complete: puts all patches in, and makes the process ARMED."""
    # torch may be deleted from sys.modules and imported again: the first one stays patched.
    if SESSION.torch_imported_ns is not None:
        return
    SESSION.torch_imported_ns = time.perf_counter_ns()
    SESSION.arm(torch)
    for name, install in PATCHES:
        _install(name, install, torch)
    if trackers.PATCH in SESSION.config.skip:  # frameworks that log ask the gate alone
        SESSION.shut(trackers.PATCH, SKIPPED)
    exit_.register()


def on_dynamo(dynamo: Any) -> None:
    """torch.compile is about to be used: its compilations become a phase."""
    _install("compile", compile.install, dynamo)


def on_distributed_checkpoint(package: Any) -> None:
    """torch.distributed.checkpoint has been imported: its `save` is a checkpoint too."""
    _install("distributed_checkpoint", checkpoint.install_distributed, package)


def on_transformers(module: Any) -> None:
    """The Trainer of transformers: evaluation, saving and logging by its own methods."""
    from traceml_agent.integrations import huggingface

    _install(huggingface.NAME, huggingface.install, module)


def on_accelerate(module: Any) -> None:
    """The Accelerator: saving and logging by its own methods."""
    from traceml_agent.integrations import accelerate

    _install(accelerate.NAME, accelerate.install, module)


def on_deepspeed(module: Any) -> None:
    """The engine of DeepSpeed: backward and update as a whole, and its checkpoints."""
    from traceml_agent.integrations import deepspeed

    _install(deepspeed.NAME, deepspeed.install, module)


def on_ray_train(module: Any) -> None:
    """The thread of Ray Train that trains: the run ends with it."""
    _install("ray_train", ray_train.install, module)


def on_ray_session(module: Any) -> None:
    """The same of version 1."""
    _install("ray_train", ray_train.install_session, module)


def on_tracker(module: Any) -> None:
    """A tracker: what the loop logs to it becomes a phase."""
    _install(trackers.TRACKERS[module.__name__][0], trackers.install, module)


def on_lightning(package: Any) -> None:
    """PyTorch Lightning or Fabric: what their loops know themselves."""
    from traceml_agent.integrations import lightning

    _install(lightning.status_name(package.__name__), lightning.install, package)
    lightning.look_again()


HOOKS: tuple[tuple[str, Callable[[Any], None]], ...] = (
    ("torch", on_torch),
    ("torch._dynamo", on_dynamo),
    ("torch.distributed.checkpoint", on_distributed_checkpoint),
    ("transformers.trainer", on_transformers),
    ("accelerate.accelerator", on_accelerate),
    ("deepspeed.runtime.engine", on_deepspeed),
    ("lightning.pytorch", on_lightning),
    ("pytorch_lightning", on_lightning),
    ("lightning.fabric", on_lightning),
    ("lightning_fabric", on_lightning),
    *((name, on_tracker) for name in trackers.TRACKERS),
    ("ray.train._internal.session", on_ray_session),
    ("ray.train.v2._internal.execution.worker_group.thread_runner", on_ray_train),
)


def register_all() -> None:
    """Registers each hook with wrapt. A raising hook would break the user's import: none raises.

    Nothing is registered, and so nothing patched, where a setting says that nothing is to be.
    """
    refusal = resolve(os.environ, arguments=asked().settings).refusal
    if refusal is not None:
        say_once(refusal)
        return
    for module_name, hook in HOOKS:
        wrapt.register_post_import_hook(_safe(hook), module_name)


def _safe(hook: Callable[[Any], None]) -> Callable[[Any], None]:
    def call(module: Any) -> None:
        with guard(f"hook {hook.__name__}"):
            hook(module)

    return call


def _install(name: str, install: Install, module: Any) -> None:
    if name in SESSION.config.skip:
        SESSION.set_status(name, SKIPPED)
        return
    if asked().leaves_out(name):
        SESSION.set_status(name, asked().reason)
        return
    try:
        status = install(module)
    except (AttributeError, TypeError, ImportError) as error:
        # A torch of another shape than any known one: this patch is out, the others are in.
        record_fault(f"patch {name}", error)
        version = getattr(sys.modules.get("torch"), "__version__", "unknown")
        status = f"not in: torch {version} has another shape here ({error})"
    SESSION.set_status(name, status)
