"""A request of `init` that comes once torch is imported and the patches are in."""

import dataclasses
import os
from typing import TYPE_CHECKING

from traceml_agent.capture.mode import NO_SPOOL, STEP_PATCHES, Request
from traceml_agent.capture.say import say
from traceml_agent.config import resolve

if TYPE_CHECKING:
    from traceml_agent.capture.session import Session


def take_up(session: "Session", request: Request) -> None:
    """The program calls `init` after torch was imported: what it leaves out passes through."""
    before = session.config
    wanted = resolve(os.environ, arguments=request.settings).config
    late = [n for n in request.settings if getattr(wanted, n) != getattr(before, n)]
    if session.recorder is None:
        session.config = dataclasses.replace(wanted, skip=before.skip)
        if ("spool" in wanted.output) != ("spool" in before.output):
            session.refusal = None if "spool" in wanted.output else NO_SPOOL
        if wanted.snapshots == "off":
            session.snapshots = None
        # Patches have asked for these two when they were put in.
        late = [name for name in late if name in ("flops", "skip")]
    if late:
        what = "a step was recorded" if session.recorder is not None else "torch was imported"
        say(f"init: {', '.join(late)} came after {what} and is not used")
    if session.recorder is None and session.config.snapshots == "stats":
        session.take_snapshots(everything=True)
    session.rest.wake()
    for name in STEP_PATCHES:
        if request.leaves_out(name):
            session.gates[name].shut = True
            session.set_status(name, request.reason)
    if request.leaves_out("dataloader"):
        session.set_status("loader_workers", "not in: it needs the dataloader patch")
    if request.leaves_out("forward") and session.discovery is not None:
        session.discovery.leave()
        if session.recorder is not None:
            session.recorder.on_no_forward = None
