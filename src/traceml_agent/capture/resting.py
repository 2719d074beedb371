"""RestingTracker: what a tracker is while the patches rest."""

from collections.abc import Callable
from typing import Any

from traceml_agent.capture.steps import StepTracker


class RestingTracker(StepTracker):
    """Of patches that rest: whatever else it is told of wakes them first."""

    __slots__ = ()


def _waking(name: str) -> Callable[..., Any]:
    def method(self: RestingTracker, *args: Any, **kwargs: Any) -> Any:
        self.audit.rest.wake()
        return getattr(self, name)(*args, **kwargs)

    method.__name__ = name
    return method


_QUIET = ("steps_done", "roles", "evaluates", "cut", "go_on")
for _class in StepTracker.__mro__[:-1]:
    for _name, _member in vars(_class).items():
        if not _name.startswith("_") and _name not in _QUIET and callable(_member):
            setattr(RestingTracker, _name, _waking(_name))
