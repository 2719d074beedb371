"""Decides at interpreter start whether the agent wakes up. Imports sys and os, nothing else.

Called by `traceml_agent.pth` (by `.start` from Python 3.15 on) or by the sitecustomize overlay.
Nothing may leave `start()`: an exception on a `.pth` line is printed by Python, and SystemExit
there ends the interpreter.
"""

import os
import sys

_ON = ("1", "true", "yes", "on")
_OFF = ("", "0", "false", "no", "off")
_KILL_FILE = "etc/traceml-agent/disable"
_started = False


def start():
    """Wakes the agent if the environment says so. A second call does nothing."""
    global _started
    if _started:
        return
    _started = True
    # BaseException: not even SystemExit or KeyboardInterrupt may stop the user's program here.
    try:
        _start()
    except BaseException as error:
        _say("traceml: not started: %s: %s" % (type(error).__name__, error))


def _start():
    if refusal() is not None:
        return
    from traceml_agent.startup import activate

    activate()


def refusal(asked=False):
    """Why the agent stays off, as a word; None if it may start. Says a line for a wrong value.

    `asked`: by the program itself, which needs no variable then; all that forbids it still does.
    """
    enable = os.environ.get("TRACEML_ENABLE", "").strip().lower()
    if asked and (not enable or enable in _ON):
        enable = "force"  # `-I` says to ignore the environment, and not what the program does
    if enable in _OFF:
        return "not enabled"
    for name in ("TRACEML_DISABLE", "TRACEML_DISABLED"):
        # Anything but a clear "no" switches off: who sets this wants silence.
        if os.environ.get(name, "").strip().lower() not in _OFF:
            return "disabled"
    if kill_file(sys.prefix) is not None:
        return "forbidden"
    if enable not in _ON and enable != "force":
        shown = repr(os.environ["TRACEML_ENABLE"])[:60]
        if asked and _started:
            return "unknown value"  # said when Python started
        _say(
            "traceml: TRACEML_ENABLE=%s is not understood, so nothing is recorded "
            "(accepted: 1, true, yes, on, force; 0, false, no, off)" % shown
        )
        return "unknown value"
    if hasattr(os, "geteuid") and (os.geteuid() != os.getuid() or os.getegid() != os.getgid()):
        return "setuid"
    if sys.flags.ignore_environment and enable != "force":
        return "isolated"
    if sys.version_info < (3, 10):
        return "python too old"
    return None


def kill_file(prefix):
    """The file that forbids recording on this machine, or in the Python at `prefix`; or None.

    No variable of ours has a say in where it lies. What cannot be looked at counts as there: who
    locks the directory away does not mean to allow.
    """
    for root in ("/", prefix):
        path = os.path.join(root, _KILL_FILE)
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            pass
        return path
    return None


def _say(line):
    try:
        sys.stderr.write(line + "\n")
    except BaseException:  # stderr may be None or closed
        pass
