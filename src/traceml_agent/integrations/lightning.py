"""PyTorch Lightning and Fabric: what their loops know and no patch of torch sees.

Steps, micro-batches and updates are exact without it. Lightning tells what an evaluation is, with
all that its hooks do; that the sanity check is none of training; how long a checkpoint takes, with
the gathering before and the barrier behind the file; what loggers cost; where a training epoch
begins and ends; and that the closure of an optimizer's step is not the optimizer.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from traceml_agent import api
from traceml_agent.capture.framework import (
    SANITY_CHECK,
    Framework,
    as_logging,
    in_phase,
    patch,
    to_its_end,
)
from traceml_agent.capture.patches.checkpoint import Detail
from traceml_agent.capture.session import SESSION
from traceml_agent.guard import guard
from traceml_agent.integrations.lightning_loops import closure, epoch, redirection
from traceml_agent.schema.phases import CHECKPOINT, EVAL

if TYPE_CHECKING:
    TraceMLCallback: type[Any]

PYTORCH = ("lightning.pytorch", "pytorch_lightning")
_STARTUP = "traceml_agent.startup"
"""Imported in every process in which the agent is on."""
FABRIC = ("lightning.fabric", "lightning_fabric")


_FRAMEWORK = Framework("lightning", *PYTORCH, *FABRIC)


# What is told of each call


def _evaluation(detail: Detail, loop: Any, *_args: Any, **_kwargs: Any) -> str:
    trainer = loop.trainer
    stage = getattr(trainer.state, "stage", None)
    sanity = bool(trainer.sanity_checking)
    name = "sanity_check" if sanity else str(getattr(stage, "value", stage))
    detail |= {
        "call": name,
        "stage": name,
        "epoch": int(trainer.current_epoch),
        "batches": -int(loop.batch_progress.total.completed),
    }
    if sanity:
        return SANITY_CHECK
    return "predictions" if name == "predict" else "evaluations"


def _evaluated(loop: Any, detail: Detail) -> None:
    before = detail["batches"]
    if isinstance(before, int):
        detail["batches"] = before + int(loop.batch_progress.total.completed)


def _logs(owner: Any, metrics: Any, step: Any = None) -> bool:
    """Of a connector of a trainer, or a Fabric; False where nothing goes to any logger."""
    trainer = getattr(owner, "trainer", None)
    loggers = owner._loggers if trainer is None else trainer.loggers
    return bool(loggers and metrics)


def _training(loop: Any) -> Callable[[], None]:
    """A training begins; at its end: epochs and steps by Lightning's own account."""
    epochs, steps = _progress(loop)

    def tell() -> None:
        after = _progress(loop)
        _FRAMEWORK.trained(after[0] - epochs, after[1] - steps)

    return tell


def _progress(loop: Any) -> tuple[float, int]:
    # Not `global_step`: each of several optimizers counts there.
    return float(loop.trainer.current_epoch), int(loop.epoch_loop._batches_that_stepped)


def _saving(call: str) -> Any:
    return partial(in_phase, phase=CHECKPOINT, framework=_FRAMEWORK, kind="checkpoints", call=call)


_EVALUATION = partial(
    in_phase, phase=EVAL, framework=_FRAMEWORK, kind="evaluations", call="validate",
    before=_evaluation, after=_evaluated,
)  # fmt: skip
_LOGGING = partial(as_logging, framework=_FRAMEWORK, call="log_metrics", applies=_logs)
_ENDING = partial(to_its_end, where="end of a training", begin=_training)

PARTS: tuple[tuple[str, tuple[tuple[str, str], ...], str, Any], ...] = (
    ("evaluation", (("loops.evaluation_loop", "_EvaluationLoop"),), "run", _EVALUATION),
    ("prediction", (("loops.prediction_loop", "_PredictionLoop"),), "run", _EVALUATION),
    (
        "checkpoints",
        (("trainer.trainer", "Trainer"),),
        "save_checkpoint",
        _saving("save_checkpoint"),
    ),
    (
        "logging",
        (("trainer.connectors.logger_connector.logger_connector", "_LoggerConnector"),),
        "log_metrics",
        _LOGGING,
    ),
    (
        "closures",
        (
            ("plugins.precision.precision", "Precision"),
            ("plugins.precision.precision_plugin", "PrecisionPlugin"),  # before 2.2
        ),
        "_wrap_closure",
        closure,
    ),
    (
        "manual optimization in a wrapper",
        (("strategies.strategy", "_ForwardRedirection"),),
        "__call__",
        redirection,
    ),
    ("epochs", (("loops.fit_loop", "_FitLoop"),), "advance", epoch),
    ("the end of a training", (("loops.fit_loop", "_FitLoop"),), "run", _ENDING),
)
"""What is watched: its name for people, the modules and classes in which versions have it, the
method, and what makes its wrapper."""

FABRIC_PARTS: tuple[tuple[str, tuple[tuple[str, str], ...], str, Any], ...] = (
    ("checkpoints", (("fabric", "Fabric"),), "save", _saving("Fabric.save")),
    ("logging", (("fabric", "Fabric"),), "log_dict", _LOGGING),
)


def install(package: Any) -> str:
    """Watches the loops of one of the four packages; "active", or what of it has another shape."""
    parts = FABRIC_PARTS if package.__name__ in FABRIC else PARTS
    _wait_for_what_comes(package, parts)
    missing = [
        name for name, places, method, make in parts if not _put(package, places, method, make)
    ]
    if not missing:
        return "active"
    version = getattr(package, "__version__", "of an unknown version")
    state = "not in" if len(missing) == len(parts) else "active"
    names = ", ".join(missing)
    return f"{state}, without {names}: {package.__name__} {version} has another shape there"


def _wait_for_what_comes(package: Any, parts: Any) -> None:
    """The import of torch within that of the package starts the agent: its modules come later."""
    if not getattr(package.__spec__, "_initializing", False) or package in _AWAITED:
        return
    import wrapt

    _AWAITED.append(package)
    # A module that is half imported itself tells no hook when it is done.
    SESSION.looks["lightning"] = look_again

    for _, places, _, _ in parts:
        for module_name, _ in places:
            name = f"{package.__name__}.{module_name}"
            if name not in sys.modules:
                wrapt.register_post_import_hook(look_again, name)


_AWAITED: list[Any] = []
"""Packages that were half imported when they were seen."""


def look_again(_occasion: Any = None) -> tuple[()]:
    """Watches what has come meanwhile of the packages that were half imported."""
    with guard("lightning"):
        for package in _AWAITED:
            name = status_name(package.__name__)
            if SESSION.statuses.get(name) != "active":
                SESSION.set_status(name, install(package))
    return ()


def _put(package: Any, places: tuple[tuple[str, str], ...], method: str, make: Any) -> bool:
    for module_name, class_name in places:
        module = sys.modules.get(f"{package.__name__}.{module_name}")
        owner = getattr(module, class_name, None)
        if callable(getattr(owner, method, None)):
            return not patch(owner, method, make)
    return False


# For those who choose by hand


def init() -> None:
    """Starts the agent where it is off, and watches what of Lightning and Fabric is imported by now
    or later.

    Never needed with TRACEML_ENABLE=1, and nothing is counted twice when both are used.
    """
    if _STARTUP not in sys.modules:
        from traceml_agent import lifecycle
        from traceml_agent.capture.mode import was_asked

        if not was_asked():  # else the program called it, and recording is forbidden
            lifecycle.init()
    _install_imported()


def _install_imported() -> None:
    """Also what TRACEML_SKIP left out: who asks by hand means it."""
    if SESSION.torch is None:
        return
    for name in (*PYTORCH, *FABRIC):
        package = sys.modules.get(name)
        if package is not None:
            with guard("lightning"):
                SESSION.set_status(status_name(name), install(package))


def status_name(package: str) -> str:
    """Under which name the status of a package stands: lightning or fabric."""
    return "fabric" if package in FABRIC else "lightning"


def __getattr__(name: str) -> Any:
    if name != "TraceMLCallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = _make_callback()
    globals()[name] = made
    return made


def _make_callback() -> type[Any]:
    bases = tuple(sys.modules[name].Callback for name in PYTORCH if name in sys.modules)
    if not bases:
        raise ImportError(
            "TraceMLCallback needs lightning.pytorch or pytorch_lightning imported before it "
            "(pip install lightning)"
        )

    class TraceMLCallback(*bases):  # type: ignore[misc]
        """For `Trainer(callbacks=[TraceMLCallback()])`: the same as the import hook does, by hand.

        Where the hook is in already, nothing is counted twice; where the agent is off, it does
        nothing. With `log_summary` the numbers of `traceml_agent.summary()` go to the loggers of
        the trainer at the end of each epoch: 0.1 s for a rank, seconds for a thousand.
        """

        def __init__(self, log_summary: bool = False) -> None:
            super().__init__()
            self.log_summary = log_summary
            _install_imported()

        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            """In a spawned process the callback comes out of a pickle."""
            _install_imported()

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            """Hands the summary so far to the loggers."""
            if self.log_summary and trainer.is_global_zero and trainer.loggers:
                _log_summary(trainer)

    TraceMLCallback.__module__ = __name__
    TraceMLCallback.__qualname__ = "TraceMLCallback"
    return TraceMLCallback


def _log_summary(trainer: Any) -> None:
    found = None
    with guard("summary for loggers"):
        found = api.summary()
    numbers = {k: v for k, v in (found or {}).items() if isinstance(v, (int, float))}
    for logger in trainer.loggers if numbers else ():
        logger.log_metrics(numbers, step=trainer.global_step)
