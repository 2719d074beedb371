"""How a process leaves: the last records, the fold of all ranks, the summary, or one reason.

No signal handler. `atexit` covers the return, an exception, SIGINT and `sys.exit`;
`multiprocessing.util.Finalize` the children that `atexit` forgets; a wrapped `os._exit` those who
leave in a hurry. SIGTERM and crashes leave their stack by faulthandler, and SIGKILL leaves the
ring: fold-on-read covers these.
"""

import atexit
import contextlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from traceml_agent.capture.ending import (
    code_of_exit,
    failure,
    left_by_system_exit,
    status_of_code,
    uncaught,
)
from traceml_agent.capture.nothing import say_why_nothing
from traceml_agent.capture.say import say, takes_unicode
from traceml_agent.capture.scopes import HERE
from traceml_agent.capture.session import SESSION, Session
from traceml_agent.capture.signals import handlers_wait
from traceml_agent.guard import guard

if TYPE_CHECKING:
    from traceml_agent.capture.recorder import Ending, Recorder
    from traceml_agent.capture.samplers.loop import SamplerLoop

WAIT_S = 2.0
"""An exit waits no longer, for disk, fold lock and other ranks together. Source: design.md."""
ANSWER_S = 0.25
"""Part of it that is left to a busy machine to end what has not come to its end."""
FETCH_NS = 500_000_000
"""For marked scalars on a device. Chosen: the last records have the rest of WAIT_S."""
BY_EXEC = "replaced by another program (exec)"


@dataclass(slots=True)
class Leaving:
    """What is known about the end of this process before it comes."""

    loop: "SamplerLoop | None" = None
    exit_code: int | None = None  # noted by sys.exit in the main thread
    exit_code_step: int = -1
    finished_pid: int | None = None


_LEAVING = Leaving()


def register() -> None:
    """Called when torch has been imported."""
    SESSION.on_active = _on_active
    SESSION.on_waiting = _on_waiting
    atexit.register(_at_exit)


def _on_active(session: Session, recorder: "Recorder") -> None:
    from traceml_agent.capture.samplers.loop import SamplerLoop

    global _LEAVING
    _LEAVING = Leaving()
    loop = SamplerLoop(session, recorder, recorder.identity.local_rank)
    _LEAVING.loop = loop
    recorder.on_first_step = loop.start
    if "exit" not in session.config.skip:
        _wrap_exits()
    # Children of multiprocessing end by os._exit, after their finalizers.
    util = sys.modules.get("multiprocessing.util")
    process = sys.modules.get("multiprocessing.process")
    if util is not None and process is not None and process.parent_process() is not None:
        util.Finalize(None, _at_exit, exitpriority=0)


def _on_waiting(since_ns: int) -> None:
    """The first step does not come: sampling begins without it."""
    recorder, loop = SESSION.recorder, _LEAVING.loop
    if recorder is not None and loop is not None:
        recorder.on_first_step = None
        loop.start_waiting(since_ns)


def _at_exit() -> None:
    with handlers_wait(), guard("exit"):
        if SESSION.pid != os.getpid() or SESSION.is_over:
            return
        if SESSION.recorder is None:
            say_why_nothing()
        else:
            finish(ended := _how_it_ended())
            if ended[0] == "interrupted":
                _remember_interrupt()


def finish(end: "Ending") -> None:
    """Writes the last records; the last process out folds the run and prints the summary."""
    recorder = SESSION.recorder
    if recorder is None or _LEAVING.finished_pid == os.getpid():
        return
    _LEAVING.finished_pid = os.getpid()
    leave_by = time.monotonic() + WAIT_S
    if not close_spool(end, leave_by):
        return
    if end[0] == "finished" and SESSION.tracker.on_proof is not None:
        say_why_nothing()  # a server that was long at work, and never trained
    elif not _fold_and_print(recorder, leave_by):
        _say_failure(recorder, end, leave_by)


def finish_early(error: BaseException | None) -> None:
    """The training is over, with this error, in a process that its launcher will kill."""
    if SESSION.pid == os.getpid():
        status, _, what, stack = ("finished", 0, None, None) if error is None else failure(error)
        finish((status, None, what, stack))


def shut_down() -> None:
    """The program ends its recording: the last records, the fold and the summary, as at exit."""
    # With a limit: a signal handler may have interrupted what holds it, in this very thread.
    has_lock = SESSION.opening.acquire(timeout=WAIT_S)
    is_first = SESSION.pid == os.getpid() and not SESSION.is_over
    SESSION.is_over |= is_first
    if has_lock:
        SESSION.opening.release()
    if not is_first:
        return
    with guard("shutdown"):
        was_interrupted = isinstance(uncaught(), KeyboardInterrupt)
        if SESSION.recorder is None:
            say_why_nothing()
        else:
            finish(_how_it_goes())
        if was_interrupted:
            _remember_interrupt()
    SESSION.end()


def _how_it_goes() -> "Ending":
    """The ending of a process that may go on: its exit code is known only when it exits."""
    error = sys.exc_info()[1]
    of_a_loop = isinstance(error, (StopIteration, StopAsyncIteration, GeneratorExit))
    leaves = error is not None or uncaught() is not None or _LEAVING.exit_code is not None
    return _how_it_ended() if leaves and not of_a_loop else ("finished", None, None, None)


def close_spool(end: "Ending", leave_by: float) -> bool:
    """Closes the last step and the files; False if the disk does not answer."""
    recorder = SESSION.recorder
    if recorder is None:
        return False
    SESSION.rest.wake()
    SESSION.look(at_end=True)
    if SESSION.loaders is not None:
        SESSION.loaders.is_last = True
    HERE.is_leaving = True
    if SESSION.snapshots is not None:
        with guard("last snapshot"):
            SESSION.snapshots.close()
    with guard("last step"):
        SESSION.tracker.finish()
    if _LEAVING.loop is not None:
        with guard("stop samplers"):
            _LEAVING.loop.stop()
    # As late as can be: the events of the last step were recorded a moment ago.
    if SESSION.tracker.device is not None:
        with guard("device events"):
            SESSION.tracker.device.resolve()
        tree = HERE.tree if SESSION.tracker.device.is_idle else None
        if tree is not None and tree.has_later:
            _within(leave_by, "marks on a device", lambda: tree.fetch(FETCH_NS))
    cost = recorder.overhead(SESSION.hot_path_ns())
    if _within(leave_by, "last records", lambda: recorder.finish(cost, end)):
        return True
    with guard("ring"):
        recorder.give_up(end)
    return False


def _within(leave_by: float, where: str, action: Callable[[], None]) -> bool:
    """Runs what a disk may never answer; False if it has not by then."""

    def errand() -> None:
        with guard(where):
            action()

    loop = _LEAVING.loop
    if loop is None:
        errand()
        return True
    return loop.run_within(max(0.0, leave_by - time.monotonic()), errand)


def _remember_interrupt() -> None:
    """Lets the interpreter end by SIGINT after all, as it does for an uncaught KeyboardInterrupt.

    CPython forgets that it saw one as soon as a string is executed, and every dataclass that is
    imported for the fold executes one. Executing this one makes it remember.
    """
    with contextlib.suppress(KeyboardInterrupt):
        exec("raise KeyboardInterrupt")


# How it ended


def _how_it_ended() -> "Ending":
    """Status, exit code, exception and stack, as far as they can be seen from inside."""
    error = sys.exc_info()[1] or uncaught()
    if isinstance(error, SystemExit):
        return status_of_code(code_of_exit(error.code))
    if error is not None:
        return failure(error)
    if _LEAVING.exit_code is not None and _LEAVING.exit_code_step == SESSION.tracker.since:
        return status_of_code(_LEAVING.exit_code)
    return "finished", None if left_by_system_exit() else 0, None, None


def _wrap_exits() -> None:
    """Notes the code of `sys.exit`, and closes the spool before `os._exit`."""
    real_exit, real_os_exit = sys.exit, os._exit
    if getattr(real_exit, "__module__", None) == __name__:
        return

    def exit(status: Any = None, /) -> Any:
        if SESSION.pid == os.getpid():
            _LEAVING.exit_code = code_of_exit(status)
            _LEAVING.exit_code_step = SESSION.tracker.since
        try:
            real_exit(status)
        except SystemExit as error:
            error.__traceback__ = None
            raise

    def _exit(status: int) -> Any:
        if SESSION.pid == os.getpid() and _LEAVING.finished_pid != os.getpid():
            _LEAVING.finished_pid = os.getpid()
            with guard("os._exit"):
                close_spool(status_of_code(code_of_exit(status)), time.monotonic() + WAIT_S)
        real_os_exit(status)

    exit.__doc__, _exit.__doc__ = real_exit.__doc__, real_os_exit.__doc__
    sys.exit, os._exit = exit, _exit
    os.execv, os.execve = _announcing(os.execv), _announcing(os.execve)


def _announcing(real_exec: Callable[..., Any]) -> Callable[..., Any]:
    """The call that replaces the program, told to the spool before. All of os.exec* end in one."""

    def execute(*args: Any, **kwargs: Any) -> Any:
        recorder = SESSION.recorder if _LEAVING.finished_pid != os.getpid() else None
        if SESSION.pid == os.getpid() and recorder is not None:
            with guard("exec"):
                SESSION.tracker.finish()
                recorder.announce_exec(("finished", None, BY_EXEC, None))
        try:
            return real_exec(*args, **kwargs)
        except (OSError, TypeError, ValueError) as error:
            error.__traceback__ = None  # no frame of ours
            raise

    execute.__name__, execute.__doc__ = real_exec.__name__, real_exec.__doc__
    return execute


# Fold and print


def _fold_and_print(recorder: "Recorder", leave_by: float) -> bool:
    """False if other processes live, which will do it."""
    from traceml_agent.capture.parting import reason_for_one_line
    from traceml_agent.capture.turn import Turn, end_turn, take_turn
    from traceml_agent.report.fold import fold_and_write, is_folded
    from traceml_agent.report.render.text import render_text

    own = recorder.path
    if recorder.writer.error is not None and not own.exists():
        say(f"no summary: {recorder.writer.error}")
        return True
    patience_s = WAIT_S if recorder.identity.rank == 0 else 0.0
    turns: list[Turn] = []

    def ask() -> None:
        turn = take_turn(own, patience_s, leave_by - ANSWER_S)
        if turn is not None:
            turns.append(turn)

    # Whatever hangs in the directory hangs here, and not in the fold after it.
    if not _within(leave_by, "whose turn", ask):
        return True
    if not turns:
        return False
    try:
        if is_folded(recorder.run_dir):
            return True  # another process left at the same moment and has done it for both
        payload = fold_and_write(recorder.run_dir, own_spool=own).payload
    finally:
        end_turn(turns[0])
    if SESSION.config.summary:
        line = reason_for_one_line(payload, recorder.run_dir, turns[0].others_live)
        say(line or render_text(payload, ascii_only=not takes_unicode()))
    return True


def _say_failure(recorder: "Recorder", end: "Ending", leave_by: float) -> None:
    from traceml_agent.capture.parting import failure_line

    if end[0] != "failed" or not SESSION.config.summary:
        return
    lines: list[str] = []

    def ask() -> None:
        lines.extend(failure_line(recorder.run_dir, recorder.identity, recorder.last_step, end[2]))

    if _within(leave_by, "failure", ask) and lines:
        say(lines[0])
