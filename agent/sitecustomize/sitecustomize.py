"""Overlay on PYTHONPATH: wakes the agent where its `.pth` is not processed, then hands on.

`traceml-agent run` puts this directory first on PYTHONPATH. Python imports only the first
`sitecustomize` it finds, so the one that this file hides is looked up and run as if it were
first. The variable is inherited by every child process, among them Pythons of any version from
2.7 on: in those nothing happens, and nothing is said.
"""

import os
import sys


def _wake():
    """Starts the agent that lies beside this directory, unless this Python has it already."""
    if sys.version_info < (3, 10) or "_traceml_boot" in sys.modules:
        return
    root = _packages()
    if root is None:
        return
    if root not in sys.path:
        # Last: whatever the user's environment holds under the same name comes first.
        sys.path.append(root)
    try:
        import _traceml_boot
    except ImportError:  # the launcher has gone and has removed the directory
        sys.path.remove(root)
        return
    _traceml_boot.start()


def _packages():
    """The directory with the agent for this Python; no variable can name another one.

    It, or what a link of that name leads to, is called after the Python whose compiled modules lie
    in it. This directory lies in it (`pip install --target`) or beside it (`traceml-agent run`).
    """
    tag = (sys.implementation.cache_tag or "unknown") + sys.abiflags
    above = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for root in (above, os.path.join(above, tag)):
        if os.path.basename(os.path.realpath(root)) == tag and os.path.isdir(root):
            return root
    return None


def _import_hidden():
    """Imports the next `sitecustomize` on the path, under its own name, if there is one."""
    here = os.path.dirname(os.path.abspath(__file__))
    # For good: what the user's program sees of sys.path is then as without the overlay.
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or os.curdir) != here]
    own = sys.modules.pop("sitecustomize", None)
    try:
        import sitecustomize  # noqa: F401
    except ImportError as error:
        # Python 2 has no `name` there.
        missing = getattr(error, "name", str(error).rpartition(" ")[2])
        if missing != "sitecustomize":
            raise
        if own is not None:
            sys.modules["sitecustomize"] = own


_wake()
_import_hidden()
