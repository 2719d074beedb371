"""PyTorch Lightning and Fabric: what their loops know and no patch of torch sees.

Steps, micro-batches and updates are exact without it. Lightning tells what an evaluation is, with
all that its hooks do; that the sanity check is none of training; how long a checkpoint takes, with
the gathering before and the barrier behind the file; what loggers cost; where a training epoch
begins and ends; and that the closure of an optimizer's step is not the optimizer.
"""

import sys
from _thread import get_ident
from functools import partial
from typing import TYPE_CHECKING, Any

from traceml_agent import api
from traceml_agent.capture.framework import to_its_end
from traceml_agent.capture.open_step import NONE
from traceml_agent.capture.patches.checkpoint import Detail, detail_of
from traceml_agent.capture.patches.disguise import hide_frame
from traceml_agent.capture.session import SESSION
from traceml_agent.guard import guard
from traceml_agent.integrations.stretches import Stretch, clock, watch, within
from traceml_agent.schema.phases import FORWARD

if TYPE_CHECKING:
    TraceMLCallback: type[Any]

_STEP = "_traceml_training_step"
PYTORCH = ("lightning.pytorch", "pytorch_lightning")
_STARTUP = "traceml_agent.startup"
"""Imported in every process in which the agent is on."""
FABRIC = ("lightning.fabric", "lightning_fabric")


# What is told of each stretch


def _evaluation(loop: Any) -> Stretch:
    trainer = loop.trainer
    stage = getattr(trainer.state, "stage", None)
    sanity = bool(trainer.sanity_checking)
    name = "sanity_check" if sanity else str(getattr(stage, "value", stage))
    detail: Detail = {
        "call": name,
        "stage": name,
        "epoch": int(trainer.current_epoch),
        "batches": -int(loop.batch_progress.total.completed),
    }
    return Stretch("sanity_check" if sanity else "eval", detail)


def _evaluated(loop: Any, stretch: Stretch) -> None:
    before = stretch.detail["batches"]
    if isinstance(before, int):
        stretch.detail["batches"] = before + int(loop.batch_progress.total.completed)


def _checkpoint(*_args: Any, **_kwargs: Any) -> Stretch:
    # The frames: this, the wrapper, and who called that.
    return Stretch("checkpoint", detail_of("save_checkpoint", sys._getframe(2)))


def _logging(owner: Any, metrics: Any, step: Any = None) -> Stretch | None:
    """Of a connector of a trainer, or a Fabric; None where nothing goes to any logger."""
    trainer = getattr(owner, "trainer", None)
    loggers = owner._loggers if trainer is None else trainer.loggers
    return Stretch("logging") if loggers and metrics else None


def _closure(original: Any) -> Any:
    tracker = SESSION.tracker

    def _wrap_closure(self: Any, *args: Any, **kwargs: Any) -> Any:
        inside = get_ident() == tracker.owner and tracker.begin_closure()
        try:
            return original(self, *args, **kwargs)
        except BaseException as error:
            hide_frame(error)
            raise
        finally:
            if inside:
                tracker.end_closure()

    return _wrap_closure


def _redirection(original: Any) -> Any:
    """With manual optimization all of `training_step`, backward and updates too, runs inside the
    forward call of DistributedDataParallel: it is a loop of its own, and no forward."""

    def __call__(
        self: Any, wrapper: Any, module: Any, method: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if method == "training_step" and not module.automatic_optimization:
            with guard("training step in a wrapper"):
                if not hasattr(type(module), _STEP):
                    _lightning_class(module)._traceml_training_step = _training_step
                method = _STEP
        try:
            return original(self, wrapper, module, method, *args, **kwargs)
        except BaseException as error:
            hide_frame(error)
            raise

    return __call__


def _lightning_class(module: Any) -> Any:
    return next(c for c in type(module).__mro__ if c.__name__ == "LightningModule")


def _training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
    tracker = SESSION.tracker
    inside = tracker.phase == FORWARD and get_ident() == tracker.owner
    if inside:
        tracker.leave(NONE)
    try:
        return self.training_step(*args, **kwargs)
    except BaseException as error:
        hide_frame(error)
        raise
    finally:
        if inside:
            tracker.enter(FORWARD)


def _epoch(original: Any) -> Any:
    """An event for each training epoch, with its validations and checkpoints."""

    def advance(self: Any, *args: Any, **kwargs: Any) -> Any:
        begun = clock()
        number = self.trainer.current_epoch
        try:
            return original(self, *args, **kwargs)
        except BaseException as error:
            hide_frame(error)
            raise
        finally:
            with guard("epoch"):
                SESSION.note_event("epoch", clock() - begun, {"epoch": int(number)})

    return advance


_EVALUATION = within(_evaluation, _evaluated)
_SAVING = within(_checkpoint, None)
_LOGGING = within(_logging, None)
_ENDING = partial(to_its_end, where="end of a training")

PARTS: tuple[tuple[str, tuple[tuple[str, str], ...], str, Any], ...] = (
    ("evaluation", (("loops.evaluation_loop", "_EvaluationLoop"),), "run", _EVALUATION),
    ("prediction", (("loops.prediction_loop", "_PredictionLoop"),), "run", _EVALUATION),
    ("checkpoints", (("trainer.trainer", "Trainer"),), "save_checkpoint", _SAVING),
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
        _closure,
    ),
    (
        "manual optimization in a wrapper",
        (("strategies.strategy", "_ForwardRedirection"),),
        "__call__",
        _redirection,
    ),
    ("epochs", (("loops.fit_loop", "_FitLoop"),), "advance", _epoch),
    ("the end of a training", (("loops.fit_loop", "_FitLoop"),), "run", _ENDING),
)
"""What is watched: its name for people, the modules and classes in which versions have it, the
method, and what makes its wrapper."""

FABRIC_PARTS: tuple[tuple[str, tuple[tuple[str, str], ...], str, Any], ...] = (
    ("checkpoints", (("fabric", "Fabric"),), "save", _SAVING),
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
            watch(owner, method, make)
            return True
    return False


# For those who choose by hand


def init() -> None:
    """Starts the agent where it is off, and watches what of Lightning and Fabric is imported by now
    or later.

    Never needed with TRACEML_ENABLE=1, and nothing is counted twice when both are used.
    """
    if _STARTUP not in sys.modules:
        from traceml_agent import lifecycle

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
