"""How a process leaves: the last records, the fold of all ranks, the summary, or one reason.

No signal handler. `atexit` covers the return, an exception, SIGINT and `sys.exit`;
`multiprocessing.util.Finalize` the children that `atexit` forgets; a wrapped `os._exit` those who
leave in a hurry. SIGTERM and crashes leave their stack by faulthandler, and SIGKILL leaves the
ring: fold-on-read covers these.
"""

import atexit
import contextlib
import fcntl
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traceml_agent.capture.say import say, takes_unicode
from traceml_agent.capture.session import SESSION, Session
from traceml_agent.capture.shadow import hidden_module
from traceml_agent.guard import guard

if TYPE_CHECKING:
    from traceml_agent.capture.recorder import Recorder
    from traceml_agent.capture.samplers.loop import SamplerLoop

WAIT_S = 2.0
"""Rank 0 waits this long for the others, and anybody for the fold lock. Source: design.md."""
POLL_S = 0.02


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
    atexit.register(_at_exit)


def _on_active(session: Session, recorder: "Recorder") -> None:
    from traceml_agent.capture.samplers.loop import SamplerLoop
    from traceml_agent.identity import resolve_identity

    global _LEAVING
    _LEAVING = Leaving()
    identity = resolve_identity(os.environ)
    loop = SamplerLoop(session, recorder, identity.local_rank)
    _LEAVING.loop = loop
    recorder.on_first_step = loop.start
    if "exit" not in session.config.skip:
        _wrap_exits()
    # Children of multiprocessing end by os._exit, after their finalizers.
    util = sys.modules.get("multiprocessing.util")
    process = sys.modules.get("multiprocessing.process")
    if util is not None and process is not None and process.parent_process() is not None:
        util.Finalize(None, _at_exit, exitpriority=0)


def _at_exit() -> None:
    with guard("exit"):
        if SESSION.pid != os.getpid():
            return
        if SESSION.recorder is None:
            _say_why_nothing()
        else:
            ended = _how_it_ended()
            finish(*ended)
            if ended[0] == "interrupted":
                _remember_interrupt()


def finish(status: str, exit_code: int | None, exception: str | None, stack: str | None) -> None:
    """Writes the last records; the last process out folds the run and prints the summary."""
    recorder = SESSION.recorder
    if recorder is None or _LEAVING.finished_pid == os.getpid():
        return
    _LEAVING.finished_pid = os.getpid()
    close_spool(status, exit_code, exception, stack)
    _fold_and_print(recorder)


def close_spool(
    status: str, exit_code: int | None, exception: str | None, stack: str | None
) -> None:
    """Closes the last step and the files. Does not wait for anybody."""
    recorder = SESSION.recorder
    if recorder is None:
        return
    with guard("last step"):
        SESSION.tracker.finish()
    if SESSION.tracker.device is not None:
        with guard("device events"):
            SESSION.tracker.device.resolve()
    if _LEAVING.loop is not None:
        with guard("stop samplers"):
            _LEAVING.loop.stop()
    with guard("last flush"):
        recorder.drain()
    with guard("end record"):
        recorder.write(
            [
                recorder.overhead(SESSION.hot_path_ns()),
                *recorder.new_faults(),
                recorder.end(status, exit_code, exception, stack),
            ]
        )
    with guard("close"):
        recorder.close()


def _remember_interrupt() -> None:
    """Lets the interpreter end by SIGINT after all, as it does for an uncaught KeyboardInterrupt.

    CPython forgets that it saw one as soon as a string is executed, and every dataclass that is
    imported for the fold executes one. Executing this one makes it remember.
    """
    with contextlib.suppress(KeyboardInterrupt):
        exec("raise KeyboardInterrupt")


# How it ended


def _how_it_ended() -> tuple[str, int | None, str | None, str | None]:
    """Status, exit code, exception and stack, as far as they can be seen from inside."""
    error = sys.exc_info()[1] or _uncaught()
    if isinstance(error, SystemExit):
        return _status_of_code(_code_of(error.code))
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130, "KeyboardInterrupt", _stack_of(error)
    if error is not None:
        import traceback

        text = "".join(traceback.format_exception_only(type(error), error)).strip()[:500]
        return "failed", 1, text, _stack_of(error)
    if _LEAVING.exit_code is not None and _LEAVING.exit_code_step == SESSION.tracker.opened:
        return _status_of_code(_LEAVING.exit_code)
    return "finished", None if _left_by_system_exit() else 0, None, None


def _status_of_code(code: int) -> tuple[str, int, None, None]:
    return ("finished" if code == 0 else "failed"), code, None, None


def _uncaught() -> BaseException | None:
    """The exception that Python printed; in an interactive session an older cell may own it."""
    if hasattr(sys, "ps1") or "IPython" in sys.modules:
        return None
    error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    return error if isinstance(error, BaseException) else None


def _left_by_system_exit() -> bool:
    """Whether a script raised SystemExit itself: then Python never came to forget `__file__`."""
    main = sys.modules.get("__main__")
    is_script = SESSION.script is not None and getattr(main, "__spec__", None) is None
    return is_script and "__file__" in vars(main)


def _stack_of(error: BaseException) -> str:
    import traceback

    lines = traceback.format_tb(error.__traceback__)
    return "".join(lines)[-8000:]


def _code_of(code: Any) -> int:
    """What the shell sees for `sys.exit(code)`."""
    if code is None:
        return 0
    return code & 0xFF if isinstance(code, int) else 1


def _wrap_exits() -> None:
    """Notes the code of `sys.exit`, and closes the spool before `os._exit`."""
    real_exit, real_os_exit = sys.exit, os._exit
    if getattr(real_exit, "__module__", None) == __name__:
        return

    def exit(status: Any = None, /) -> Any:
        if SESSION.pid == os.getpid():
            _LEAVING.exit_code = _code_of(status)
            _LEAVING.exit_code_step = SESSION.tracker.opened
        try:
            real_exit(status)
        except SystemExit as error:
            error.__traceback__ = None
            raise

    def _exit(status: int) -> Any:
        if SESSION.pid == os.getpid() and _LEAVING.finished_pid != os.getpid():
            _LEAVING.finished_pid = os.getpid()
            with guard("os._exit"):
                code = _code_of(status)
                close_spool("finished" if code == 0 else "failed", code, None, None)
        real_os_exit(status)

    exit.__doc__, _exit.__doc__ = real_exit.__doc__, real_os_exit.__doc__
    sys.exit, os._exit = exit, _exit


# Fold and print


def _fold_and_print(recorder: "Recorder") -> None:
    from traceml_agent.identity import resolve_identity
    from traceml_agent.report.fold import fold_and_write
    from traceml_agent.report.render.text import render_text

    own = recorder.writer.path
    if recorder.writer.error is not None and not own.exists():
        say(f"no summary: {recorder.writer.error}")
        return
    with _fold_lock(recorder.run_dir):
        others = _others_alive(recorder.run_dir, own)
        rank = resolve_identity(os.environ).rank
        deadline = time.monotonic() + WAIT_S
        while others and rank == 0 and time.monotonic() < deadline:
            time.sleep(POLL_S)
            others = _others_alive(recorder.run_dir, own)
        if others and rank != 0:
            return  # the last one out folds
        if _is_folded(recorder.run_dir):
            return  # another process left at the same moment and has done it for both
        summary = fold_and_write(recorder.run_dir, own_spool=own)
    if SESSION.config.summary:
        say(render_text(summary.payload, ascii_only=not takes_unicode()))


def _is_folded(run_dir: Path) -> bool:
    """Whether there is a summary that is as new as every spool."""
    from traceml_agent.spool.format import SPOOL_SUFFIX

    try:
        folded = (run_dir / "final_summary.json").stat().st_mtime_ns
        spools = run_dir.glob(f"*{SPOOL_SUFFIX}")
        return all(spool.stat().st_mtime_ns <= folded for spool in spools)
    except OSError:
        return False


@contextlib.contextmanager
def _fold_lock(run_dir: Path) -> Any:
    """One fold at a time; where locks do not work, or nobody lets go, folds without."""
    fd = None
    with contextlib.suppress(OSError):
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(run_dir / "fold.lock", flags, 0o600)
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, PermissionError):
                if time.monotonic() > deadline:
                    break
                time.sleep(POLL_S)
    try:
        yield
    finally:
        if fd is not None:
            os.close(fd)


def _others_alive(run_dir: Path, own_spool: Path) -> bool:
    from traceml_agent.spool.format import ALIVE_SUFFIX, SPOOL_SUFFIX
    from traceml_agent.spool.liveness import is_held

    own = own_spool.with_suffix(ALIVE_SUFFIX)
    return any(
        is_held(alive)
        for alive in run_dir.glob(f"*{ALIVE_SUFFIX}")
        if alive != own and alive.with_suffix(SPOOL_SUFFIX).exists()
    )


# Nothing recorded


def _say_why_nothing() -> None:
    """One line: it was asked for, torch was imported, and still there is no run."""
    if SESSION.refusal is not None:
        return  # said when it happened
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        return  # a worker: its parent speaks
    hidden = hidden_module()
    if hidden is not None:
        say(f"nothing was recorded: {hidden} hides a module that the agent needs; rename it")
        return
    if _relative_recorded():
        return
    say(f"nothing was recorded: {_why_nothing()}")


def _why_nothing() -> str:
    statuses = SESSION.statuses
    out = [name for name in ("backward", "optimizer") if statuses.get(name) != "active"]
    if len(out) == 2:
        return f"{out[0]}: {statuses.get(out[0])}; {out[1]}: {statuses.get(out[1])}"
    return (
        "this process imported torch, but no backward pass and no optimizer step was seen in it "
        "(a whole step inside one torch.compile call cannot be seen)"
    )


def _relative_recorded() -> bool:
    """Whether the parent or a child of this process records: a launcher, or a compile worker."""
    import orjson

    me, parent = os.getpid(), SESSION.parent_pid
    with contextlib.suppress(OSError):
        newest = sorted(SESSION.config.runs_dir.iterdir(), key=lambda p: -p.lstat().st_mtime)
        for run_dir in newest[:20]:
            for spool in run_dir.glob("*.jsonl"):
                with contextlib.suppress(OSError, ValueError), spool.open("rb") as file:
                    header = orjson.loads(file.readline(1 << 20))
                    if header.get("parent_pid") == me or header.get("pid") == parent:
                        return True
    return False
