"""The Trainer of transformers: evaluation, prediction, saving and logging by its own methods.

Steps need no help: that a loader, an optimizer and gradient accumulation are the Trainer's makes no
difference. What the Trainer knows better is where its training ends, and what it does in between.
"""

import sys
from typing import Any

from traceml_agent.capture.framework import (
    Framework,
    as_logging,
    in_phase,
    patch,
    status_of,
    to_its_end,
)
from traceml_agent.capture.session import SESSION
from traceml_agent.guard import guard
from traceml_agent.schema.phases import CHECKPOINT, EVAL

NAME = "huggingface"
_STARTUP = "traceml_agent.startup"
"""Imported in every process in which the agent is on."""
_EVALUATION = (
    # The outermost one counts: what a subclass overrides calls the others.
    ("_evaluate", "evaluations", "Trainer.evaluate"),
    ("evaluate", "evaluations", "Trainer.evaluate"),
    ("predict", "predictions", "Trainer.predict"),
    ("evaluation_loop", "evaluations", "Trainer.evaluation_loop"),
)
_SAVING = (
    ("_save_checkpoint", "Trainer._save_checkpoint"),
    ("save_model", "Trainer.save_model"),
)
_PATCHED: list[Any] = []
"""The classes that carry the patch: one, unless transformers was imported anew."""


def install(module: Any) -> str:
    """Patches the Trainer of `transformers.trainer`, once."""
    trainer = module.Trainer
    if _is_in(module):
        return SESSION.statuses.get(NAME, "active")
    framework = Framework("transformers")
    missing: list[str] = []
    for name, kind, call in _EVALUATION:
        missing += patch(trainer, name, in_phase, EVAL, framework, kind, call)
    for name, call in _SAVING:
        missing += patch(trainer, name, in_phase, CHECKPOINT, framework, "checkpoints", call)
    missing += patch(trainer, "log", as_logging, framework, "Trainer.log")
    missing += patch(
        trainer, "_inner_training_loop", to_its_end, NAME,
        lambda trainer: lambda: framework.trained(*_done(trainer)),
    )  # fmt: skip
    _PATCHED.append(trainer)
    return status_of(missing)


def _done(trainer: Any) -> tuple[float, int]:
    """Epochs and steps of this training, without those before the checkpoint that it resumed."""
    state = trainer.state
    steps = int(state.global_step)
    before = int(getattr(trainer, "_initial_global_step", 0))
    epochs = float(state.epoch or 0.0)
    return (epochs * (steps - before) / steps if steps else 0.0), steps - before


def init() -> bool:
    """Starts the agent where it is off, and puts the patch into the Trainer. Returns whether it is
    in: False where recording is forbidden.

    Imports transformers. Where TRACEML_ENABLE is set nobody needs this: importing the Trainer is
    enough, and a second time changes nothing.
    """
    if _STARTUP not in sys.modules:
        from traceml_agent import lifecycle
        from traceml_agent.capture.mode import was_asked

        if not was_asked():  # else the program called it, and recording is forbidden
            lifecycle.init()
    return _put_in()


def _put_in() -> bool:
    """Puts the patch into the Trainer, if the agent is on."""
    if _STARTUP not in sys.modules:
        return False
    import importlib

    module = importlib.import_module("transformers.trainer")
    if SESSION.torch is None:
        return False
    if not _is_in(module):  # left out by TRACEML_SKIP, and asked for here
        with guard(NAME):
            SESSION.set_status(NAME, install(module))
    return _is_in(module)


def _is_in(module: Any) -> bool:
    return any(known is module.Trainer for known in _PATCHED)


def __getattr__(name: str) -> Any:
    """`TraceMLTrainer` and `TraceMLTrainerCallback`, made when they are first asked for."""
    make = _MADE_LATER.get(name)
    if make is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = made = make()
    return made


def _make_trainer() -> type:
    import importlib

    trainer: Any = importlib.import_module("transformers.trainer").Trainer

    class TraceMLTrainer(trainer):  # type: ignore[misc]  # of any transformers
        """A Trainer that sees to it that its evaluation, saving and logging are told apart.

        With `traceml_enabled=False` it does nothing of its own: TRACEML_ENABLE alone decides.
        """

        def __init__(self, *args: Any, traceml_enabled: bool = True, **kwargs: Any) -> None:
            if traceml_enabled:
                _put_in()
            super().__init__(*args, **kwargs)

    return _named(TraceMLTrainer)


def _make_callback() -> type:
    import importlib

    callback: Any = importlib.import_module("transformers.trainer_callback").TrainerCallback

    class TraceMLTrainerCallback(callback):  # type: ignore[misc]  # of any transformers
        """The same for a Trainer of your own class: `Trainer(..., callbacks=[...])`."""

        def __init__(self) -> None:
            _put_in()

    return _named(TraceMLTrainerCallback)


def _named(made: type) -> type:
    """The class under a name by which pickle finds it again."""
    made.__module__, made.__qualname__ = __name__, made.__name__
    return made


_MADE_LATER = {
    "TraceMLTrainer": _make_trainer,
    "TraceMLTrainerCallback": _make_callback,
}
