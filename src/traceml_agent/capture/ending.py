"""How a process ended, as far as it can be seen from inside: exception, exit code, or neither."""

import os
import sys
from typing import TYPE_CHECKING, Any

from traceml_agent.capture.session import SESSION
from traceml_agent.guard import or_none

if TYPE_CHECKING:
    from traceml_agent.capture.recorder import Ending


def failure(error: BaseException) -> "Ending":
    """Of an exception that ends the program."""
    from traceml_agent.redact import describe, own_secrets, places

    secrets = own_secrets()
    stack = places(error.__traceback__, secrets)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130, "KeyboardInterrupt", stack
    return "failed", 1, describe(type(error), or_none(str)(error), secrets), stack


def status_of_code(code: int) -> "Ending":
    """Of an exit code."""
    return ("finished" if code == 0 else "failed"), code, None, None


def uncaught() -> BaseException | None:
    """The exception that Python printed; in an interactive session an older cell may own it."""
    error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    if hasattr(sys, "ps1") or not isinstance(error, BaseException) or _is_of_ipython(error):
        return None
    return error


@or_none
def _is_of_ipython(error: BaseException) -> bool:
    """Whether a shell of IPython, or one that was embedded, ran what raised it. Scripts import it
    too, if only by a library."""
    module = sys.modules.get("IPython")
    if module is None:
        return False
    trace = error.__traceback__
    began_in = "" if trace is None else trace.tb_frame.f_code.co_filename
    is_embedded = os.path.join("IPython", "core") in began_in
    return is_embedded or module.get_ipython() is not None


def left_by_system_exit() -> bool:
    """Whether a script raised SystemExit itself: then Python never came to forget `__file__`."""
    main = sys.modules.get("__main__")
    is_script = SESSION.script is not None and getattr(main, "__spec__", None) is None
    return is_script and "__file__" in vars(main)


def code_of_exit(code: Any) -> int:
    """What the shell sees for `sys.exit(code)`."""
    if code is None:
        return 0
    return code & 0xFF if isinstance(code, int) else 1
