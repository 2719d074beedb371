"""The fail-open boundary: errors of the agent stop here and never reach the user's program.

This is the only place with `except Exception`. `guard` wraps what the agent starts (installing a
hook, a tick of the sampler, a flush, the fold at exit), never the user's own call.
"""

import contextlib
import os
import signal
import time
from _thread import get_ident
from collections.abc import Callable, Iterator
from functools import partial
from threading import main_thread
from types import CodeType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from traceml_agent.schema.records import Fault

Value = TypeVar("Value")

FAULT_LIMIT = 3
"""Chosen: the first fault may be bad luck, the third at one place is a defect of that place."""

_faults: "dict[str, Fault]" = {}


def is_off(where: str) -> bool:
    """Whether a place failed so often that it is no longer entered."""
    fault = _faults.get(where)
    return fault is not None and fault.count >= FAULT_LIMIT


INTERNAL = Exception
"""What a tracker method catches: on the hot path a `with guard(...)` would cost more than the
method. Every error of ours that is caught there goes to `fault`."""


class Gate:
    """Whether a patch passes through: shut after FAULT_LIMIT faults of it."""

    __slots__ = ("shut",)

    def __init__(self) -> None:
        self.shut = False


def fault(where: str, error: Exception) -> None:
    """Counts an error that was caught at `where`; in the agent's own tests it is raised again.

    So is one that a signal handler of the program raised while the agent was at work: it is meant
    for the program, as that of an alarm, or of a loader whose worker died.
    """
    if os.environ.get("TRACEML_TEST_RAISE") == "1" or is_of_a_handler(error):
        raise error
    record_fault(where, error)


def is_of_a_handler(error: BaseException) -> bool:
    """Whether a handler of a signal is among the calls that the error came through."""
    if get_ident() != main_thread().ident:
        return False  # Python runs handlers in the main thread alone
    handlers = {code_of(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    trace = error.__traceback__
    while trace is not None and handlers:
        if trace.tb_frame.f_code in handlers:
            return True
        trace = trace.tb_next
    return False


def code_of(handler: Any) -> CodeType | None:
    """What runs of a handler in Python, be it a function, a method, a partial or an object; None of
    one in C, and where there is none."""
    while isinstance(handler, partial):
        handler = handler.func
    try:
        if callable(handler) and not hasattr(handler, "__code__"):
            handler = type(handler).__call__
        code = getattr(handler, "__code__", None)
    except Exception:  # noqa: BLE001  # an object whose attributes raise
        return None
    return code if isinstance(code, CodeType) else None


@contextlib.contextmanager
def guard(where: str) -> Iterator[None]:
    """Runs the body; an error in it is counted and kept as a fault of `where`, and not raised."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # the boundary
        fault(where, error)


def record_fault(where: str, error: BaseException) -> None:
    """Counts an error; the first one at a place keeps its traceback."""
    # Not at the top: this module is imported before torch is, and the records cost 20 ms.
    from traceml_agent.schema.records import Fault

    before = _faults.get(where)
    if before is None:
        # What went wrong may have been a call of the user's code, with its data in the message.
        from traceml_agent.redact import describe, own_secrets, places

        secrets = own_secrets()
        text = describe(type(error), or_none(str)(error), secrets)
        stack = places(error.__traceback__, secrets)
        fault = Fault(time.perf_counter_ns(), where, text, 1, stack)
    else:
        fault = Fault(before.monotonic_ns, where, before.error, before.count + 1, before.traceback)
    _faults[where] = fault


def guarded(where: str, action: Callable[[], None]) -> None:
    """Calls `action` under a guard unless that place is switched off."""
    if not is_off(where):
        with guard(where):
            action()


def to_nobody(action: Callable[[], object]) -> bool:
    """Calls what is the program's own when that is over, where nobody is left to catch what it
    raises. True where it ended without."""
    try:
        action()
    except BaseException:  # noqa: BLE001  # SystemExit of a handler of SIGTERM, and Ctrl-C, too
        return False
    return True


def faults() -> "list[Fault]":
    """One fault a place, in order of their first occurrence."""
    return list(_faults.values())


def forget_faults() -> None:
    """Starts anew, in a child process after fork."""
    _faults.clear()


def or_none(look: Callable[..., Value]) -> "Callable[..., Value | None]":
    """`look`, giving None where it fails: for looks at objects of the user, which may do anything.

    Not a fault: an object whose attributes raise is the user's business.
    """

    def looked(*args: Any) -> "Value | None":
        try:
            return look(*args)
        except Exception as error:  # whatever the user's object raises
            if is_of_a_handler(error):
                raise
            return None

    return looked
