"""Names the agents, profilers and debuggers that work in this process beside us.

By names alone: nothing of theirs is imported, called or changed.
"""

import sys
from dataclasses import dataclass
from typing import Any

from traceml_agent.guard import or_none

AGENTS = {
    "ddtrace.bootstrap.preload": "ddtrace",
    "opentelemetry.instrumentation.auto_instrumentation": "opentelemetry",
}
"""Modules that an agent loads when it instruments a program; its library alone loads none."""

PROFILERS = {"scalene.scalene_profiler": "scalene"}
"""The same of profilers that slow a program down by other means than a trace function."""

_COMMON_NAMES = {
    "_lsprof": "cProfile",
    "snaptrace": "viztracer",
    "coverage.py": "coverage",
    "bdb": "pdb",
    "_pydevd_bundle": "pydevd",
    "_pydevd_frame_eval": "pydevd",
    "pydevd_tracing": "pydevd",
}
"""What people call the owner of a trace function."""
_NAME_LENGTH = 40


@dataclass(frozen=True, slots=True)
class OtherAgents:
    """Names, sorted. `tracers` are those of them that cost time at each call or line of Python."""

    names: tuple[str, ...]
    tracers: tuple[str, ...]


def other_agents() -> OtherAgents:
    """Who is there now. To be called in the training thread: a trace function belongs to one."""
    agents = {name for module, name in AGENTS.items() if module in sys.modules}
    tracers = {name for module, name in PROFILERS.items() if module in sys.modules}
    for function in (sys.gettrace(), sys.getprofile()):
        if function is not None:
            tracers.add(_common_name(_owner(function) or "unknown"))
    monitoring = getattr(sys, "monitoring", None)  # from Python 3.12 on
    if monitoring is not None:
        tools = filter(None, map(monitoring.get_tool, range(6)))
        tracers.update(map(_common_name, tools))
    return OtherAgents(tuple(sorted(agents | tracers)), tuple(sorted(tracers)))


def _common_name(owner: str) -> str:
    top = owner if owner in _COMMON_NAMES else owner.partition(".")[0]
    return _COMMON_NAMES.get(top, top)[:_NAME_LENGTH]


@or_none
def _owner(function: Any) -> str:
    """The module of a trace function; of a trace object, that of the first class it descends from.

    The first class: the profiler of `python -m cProfile` is of a class in `__main__`.
    """
    if hasattr(function, "__name__"):
        return str(function.__module__)
    return type(function).__mro__[-2].__module__
