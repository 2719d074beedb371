"""Ends the run of a Ray Train worker with its training function: Ray kills the worker after it.

Without this each healthy training under Ray looks killed, and its last step is never closed.
"""

from collections.abc import Callable
from typing import Any

from traceml_agent.capture.exit import finish_early
from traceml_agent.capture.patches.disguise import hide_frame, like
from traceml_agent.guard import guard


def install(module: Any) -> str:
    """Patches the thread of Ray Train (version 2) that runs the user's function."""
    runner = module.ThreadRunner
    original = runner.run

    def run(self: Any, target: Callable[[], Any]) -> None:
        original(self, _ending_the_run(target))

    runner.run = like(run, original)
    return "active"


def install_session(module: Any) -> str:
    """Patches the session of Ray Train (version 1), whose thread runs the user's function."""
    session = module._TrainSession
    original = session.start

    def start(self: Any) -> None:
        # Trials of Ray Tune have a session too, but no rank, and one process may run several.
        if self.world_rank is not None:
            with guard("end of a Ray Train worker"):
                thread = self.training_thread
                thread._target = _ending_the_run(thread._target, _ended_by)
        original(self)

    session.start = like(start, original)
    return "active"


def _ended_by(error: BaseException) -> BaseException | None:
    """What a training of version 1 ended by: it wraps what is raised, and `sys.exit(0)` is well."""
    while type(error).__name__ == "StartTraceback" and error.__cause__ is not None:
        error = error.__cause__
    return None if isinstance(error, SystemExit) and not error.code else error


def _ending_the_run(
    target: Callable[[], Any],
    ended_by: Callable[[BaseException], BaseException | None] = lambda error: error,
) -> Callable[[], Any]:
    def train() -> Any:
        try:
            result = target()
        except BaseException as error:
            hide_frame(error)  # Ray counts the frames of its own
            with guard("end of a Ray Train worker"):
                finish_early(ended_by(error))
            raise
        with guard("end of a Ray Train worker"):
            finish_early(None)
        return result

    return like(train, target)
