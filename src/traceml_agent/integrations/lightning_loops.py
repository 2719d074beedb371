"""Loops of Lightning that are not what they look like: closures, wrapped training steps, epochs."""

from _thread import get_ident
from typing import Any

from traceml_agent.capture.framework import End, around, clock
from traceml_agent.capture.open_step import NONE
from traceml_agent.capture.patches.disguise import hide_frame
from traceml_agent.capture.session import SESSION
from traceml_agent.guard import guard
from traceml_agent.schema.phases import FORWARD

STEP = "_traceml_training_step"


def closure(original: Any) -> Any:
    """What runs in it is no optimizer: forward, backward and the rest count as themselves."""
    tracker = SESSION.tracker

    def begin(_precision: Any) -> End | None:
        inside = get_ident() == tracker.owner and tracker.begin_closure()
        return tracker.end_closure if inside else None

    return around(original, "closure", begin)


def redirection(original: Any) -> Any:
    """With manual optimization all of `training_step`, backward and updates too, runs inside the
    forward call of DistributedDataParallel: it is a loop of its own, and no forward."""

    def __call__(
        self: Any, wrapper: Any, module: Any, method: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if method == "training_step" and not module.automatic_optimization:
            with guard("training step in a wrapper"):
                if not hasattr(type(module), STEP):
                    _lightning_class(module)._traceml_training_step = _training_step
                method = STEP
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


def epoch(original: Any) -> Any:
    """An event for each training epoch, with its validations and checkpoints."""

    def begin(loop: Any) -> End:
        begun, number = clock(), int(loop.trainer.current_epoch)
        return lambda: SESSION.note_event("epoch", clock() - begun, {"epoch": number})

    return around(original, "epoch", begin)
