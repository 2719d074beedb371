"""Times `torch.save` and `torch.distributed.checkpoint.save`: the phase checkpoint."""

import sys
from _thread import get_ident
from typing import Any

from traceml_agent.capture.open_step import NONE
from traceml_agent.capture.patches.disguise import hide_frame, like
from traceml_agent.capture.session import SESSION
from traceml_agent.schema.phases import CHECKPOINT


def install(torch: Any) -> str:
    """Patches `torch.save`, also under the name that `torch.serialization` knows."""
    saved = _save(torch.save, "torch.save")
    torch.save = saved
    torch.serialization.save = saved
    return "active"


def install_distributed(package: Any) -> str:
    """Patches `torch.distributed.checkpoint.save` once that package has been imported."""
    saved = _save(package.save, "torch.distributed.checkpoint.save")
    package.save = saved
    saver = sys.modules.get("torch.distributed.checkpoint.state_dict_saver")
    if saver is not None:
        saver.save = saved  # type: ignore[attr-defined]
    return "active"


def _save(original: Any, call_name: str) -> Any:
    tracker = SESSION.tracker

    def save(*args: Any, **kwargs: Any) -> Any:
        if tracker.phase != NONE or get_ident() != tracker.owner:
            return original(*args, **kwargs)
        caller = sys._getframe(1)
        where = f"{caller.f_code.co_filename}:{caller.f_lineno}"
        del caller
        previous = tracker.enter(CHECKPOINT)
        try:
            return original(*args, **kwargs)
        except BaseException as error:
            hide_frame(error)
            raise
        finally:
            SESSION.note_event(
                "checkpoint", tracker.leave(previous), {"call": call_name, "at": where}
            )

    return like(save, original)
