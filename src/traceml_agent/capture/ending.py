"""How a process ended, as far as it can be seen from inside: exception, exit code, or neither."""

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
    if hasattr(sys, "ps1") or _in_ipython():
        return None
    error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    return error if isinstance(error, BaseException) else None


@or_none
def _in_ipython() -> bool:
    """Whether this is a shell or kernel of IPython; libraries import it in plain scripts too."""
    module = sys.modules.get("IPython")
    return module is not None and module.get_ipython() is not None


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
