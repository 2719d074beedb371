"""The beginning and the end of a recording by the program itself, and how it does meanwhile.

Importing this imports neither torch nor the rest of the agent.
"""

import dataclasses
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from traceml_agent.capture.mode import (
    AUTO,
    MANUAL,
    MODES,
    SELECTIVE,
    STEP_PATCHES,
    Request,
    ask,
    asked,
    was_asked,
)

if TYPE_CHECKING:
    from traceml_agent.capture.session import Session

_SESSION = "traceml_agent.capture.session"
_STARTUP = "traceml_agent.startup"
"""Imported in every process in which the agent is on."""


def init(
    mode: str = "auto",
    *,
    patch_dataloader: bool | None = None,
    patch_forward: bool | None = None,
    patch_backward: bool | None = None,
    patch_h2d: bool | None = None,
    run_name: str | None = None,
    **settings: Any,
) -> None:
    """Turns recording on in this process, as TRACEML_ENABLE=1 does; or chooses how it records.

    `mode`: "auto" times everything; "manual" nothing of a step but what is wrapped by `wrap_...`
    and bounded by `trace_step`; "selective" times those parts by itself that are named by a True:
    `patch_dataloader`, `patch_forward`, `patch_backward`, `patch_h2d`. The rest, and the optimizer,
    may be wrapped. Best called before training begins, before or after `import torch`; what a
    manual or selective program leaves out and is in already is switched off.

    `run_name` and the other `settings` are those of docs/configuration.md, without TRACEML_ and in
    small letters: `init(dir="/scratch/runs", stack_hz=0)`. A variable of the environment counts
    before the argument, so that whoever starts the program has the last word; the argument counts
    before a settings file. What forbids recording (TRACEML_DISABLE, TRACEML_ENABLE=0, the file of
    docs/security.md) forbids it here too: then the call does nothing. Processes that this one
    starts record if they call it themselves; forked ones inherit it.

    A second call with the same arguments does nothing. Raises ValueError for an unknown mode or
    setting, a wrong value, or a combination that makes no sense, and RuntimeError for a second call
    that differs; all that without the agent too, and before anything is patched.
    """
    patches = {
        "patch_dataloader": patch_dataloader,
        "patch_forward": patch_forward,
        "patch_backward": patch_backward,
        "patch_h2d": patch_h2d,
    }
    automatic = _automatic(mode, patches)
    given = {"run_name": run_name, **settings}
    request = Request(mode, automatic, _parsed({k: v for k, v in given.items() if v is not None}))
    if was_asked():
        if asked() != request:
            raise RuntimeError(
                f"init was called before with other arguments ({_words(asked())}, now "
                f"{_words(request)}); a process is recorded in one way: call it once"
            )
        return
    ask(request)
    if objection() is None:
        _arm(request)


def shutdown() -> None:
    """Ends the recording: the last step is closed, the files and the summary are written.

    All as at exit. From then on every patch and wrapper passes through, in processes forked later
    too, and a process records only once: `init` does not begin anew. The summary stays readable by
    `summary` and `final_summary`. May be called from any thread, inside an exit handler, and again,
    which does nothing. Not needed: without it the recording ends with the process, and nothing is
    lost.
    """
    if _STARTUP not in sys.modules:
        return
    from traceml_agent.guard import guard

    with guard("shutdown"):
        if _SESSION in sys.modules:
            from traceml_agent.capture.exit import shut_down

            shut_down()
        else:
            from traceml_agent.startup import retire

            retire()


def health() -> dict[str, Any]:
    """How the recording itself does; `{"enabled": False}` where the agent is off or torch is
    not imported yet.

    `mode`: that of `init`; `recording`: whether a run is open; `ended`: by `shutdown`; `patches`:
    name and "active", or why not; `steps`: closed so far; `dropped`: spans, marks and records that
    were not kept; `lost`: the records among them by kind; `scopes`: the spans and marks by reason;
    `faults`: errors of the agent by place; `run_dir` and `spool`: directory and file, `spool_bytes`
    its size so far; `writer`: "ok", "closed" or its error; `restarts`: how often the job began
    before this attempt.
    """
    session = _armed()
    if session is None:
        return {"enabled": False}
    from traceml_agent.api import left_out
    from traceml_agent.guard import faults

    recorder = session.recorder
    scopes = left_out()
    lost: dict[str, int] = {}
    if recorder is not None:
        lost = {kind: count for kind, count in recorder.writer.lost.items() if count}
    found: dict[str, Any] = {
        "enabled": True,
        "mode": asked().mode,
        "recording": recorder is not None and bool(recorder.descriptors),
        "ended": session.is_over,
        "patches": dict(session.statuses),
        "faults": {fault.where: fault.count for fault in faults()},
        "scopes": scopes,
        "dropped": {
            # Those that were closed too fast for the spool gave way in memory too.
            "spans": sum(scopes.get(why, 0) for why in ("scopes_too_deep", "spans_evicted")),
            "marks": sum(scopes.get(why, 0) for why in ("marks_evicted", "marks_not_written")),
            "records": sum(lost.values()),
        },
    }
    if recorder is not None:
        found |= {
            "run_dir": str(recorder.run_dir),
            "spool": str(recorder.writer.path),
            "spool_bytes": recorder.writer.written,
            "steps": recorder.last_step,
            "lost": lost,
            "writer": recorder.writer.error or ("closed" if recorder.is_closed else "ok"),
            "restarts": recorder.identity.attempt,
        }
    return found


# What was asked for


def _automatic(mode: str, patches: dict[str, bool | None]) -> frozenset[str]:
    """The patches of a step that the agent puts in by itself."""
    if mode not in MODES:
        raise ValueError(f"mode is one of {', '.join(MODES)}, not {mode!r}")
    for name, value in patches.items():
        if value is not None and not isinstance(value, bool):
            raise ValueError(f"{name} is True or False, not {value!r}")
    given = [name for name, value in patches.items() if value is not None]
    chosen = [name for name, value in patches.items() if value]
    if mode != SELECTIVE:
        if given:
            raise ValueError(
                f"{', '.join(given)}: only with mode='selective', not with mode={mode!r}"
            )
        return frozenset(STEP_PATCHES if mode == AUTO else ())
    if not chosen:
        raise ValueError(
            f"mode='selective' needs at least one of {', '.join(patches)} to be True; "
            f"to time nothing automatically use mode={MANUAL!r}"
        )
    names = {name: name.removeprefix("patch_") for name in patches} | {"patch_h2d": "transfer"}
    return frozenset(names[name] for name in chosen)


def _parsed(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the settings. Raises ValueError that says what a field accepts."""
    if not given:
        return {}
    from traceml_agent.config import Config

    fields = {item.name: item.metadata for item in dataclasses.fields(Config)}
    values = {}
    for name, value in given.items():
        if name not in fields:
            raise ValueError(f"init: no such setting: {name!r}; `traceml-agent config` lists them")
        plain = os.fspath(value) if isinstance(value, os.PathLike) else value
        try:
            values[name] = fields[name]["parse"](plain)
        except (ValueError, TypeError, OverflowError):
            accepts = fields[name]["accepts"]
            raise ValueError(f"init: {name}={value!r} is not {accepts}") from None
    return values


def _words(request: Request) -> str:
    words = [f"mode={request.mode!r}"]
    if request.mode == SELECTIVE:
        words.append(f"automatic: {', '.join(sorted(request.automatic))}")
    words += [f"{name}={value!r}" for name, value in sorted(request.settings.items())]
    return ", ".join(words)


# What follows from it


def objection() -> str | None:
    """Why nothing may be recorded here, as a word."""
    try:
        import _traceml_boot  # type: ignore[import-untyped]  # imports nothing, so no typing either
    except ImportError:
        # Only it knows what forbids recording on this machine.
        from traceml_agent.capture.say import say

        say("init: nothing is recorded, _traceml_boot is missing: install the package again")
        return "incomplete"
    reason: str | None = _traceml_boot.refusal(asked=True)
    return reason


def _arm(request: Request) -> None:
    from traceml_agent.guard import guard

    with guard("init"):
        if "traceml_agent.api" in sys.modules:
            sys.modules["traceml_agent.api"].settings_changed()
        if _STARTUP not in sys.modules:
            from traceml_agent.startup import activate

            activate()
        else:
            session = _armed()
            if session is not None:
                from traceml_agent.capture.late_request import take_up

                take_up(session, request)


def _armed() -> "Session | None":
    """The session of this process; None where the agent is off or torch is not imported."""
    module = sys.modules.get(_SESSION)
    session = None if module is None else module.SESSION
    return session if session is not None and session.torch is not None else None
