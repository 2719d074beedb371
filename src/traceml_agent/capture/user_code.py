"""Which code is the user's and which a library's, and how files of both are called."""

import os
import re
import sys
from functools import lru_cache
from types import CodeType, FrameType
from typing import Any

from traceml_agent.guard import or_none

DEEPEST = 500
"""Frames between a line of the user and what it led to. Chosen: the compiler takes some 100."""
OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
STANDARD = os.path.dirname(os.__file__) + os.sep
_LIBRARY = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_TYPED = ("<string>", "<stdin>", "<console>", "<ipython-input", "<python-input")
"""Code without a file that a person wrote; whatever else is in angle brackets was generated."""
_RESUMED = re.compile(r"torch_dynamo_resume_in_(.*)_at_\d+$")
_NOT_THE_USERS = frozenset(
    ("IPython", "ipykernel", "jupyter_client", "jupyter_core", "pytest", "runpy", "debugpy")
)
_FRAMEWORKS = frozenset(
    ("torch", "ray", "accelerate", "deepspeed", "lightning", "pytorch_lightning", "transformers")
) | {"lightning_fabric"}
"""Programs that run the code of a user and are none."""


def is_library(file: str) -> bool:
    """Whether code of a file with this name is of an installed package or of Python itself."""
    if any(part in file for part in _LIBRARY) or file.startswith((STANDARD, OWN)):
        return True
    return file.startswith("<") and not file.startswith(_TYPED)


def installed_program() -> str | None:
    """Where the package lies whose module or command runs, if it is installed like a library.

    Its code is the user's all the same: `python -m mytrainer`, or a command beside the interpreter.
    """
    main = vars(sys.modules.get("__main__", sys))
    spec = main.get("__spec__")
    names = [getattr(spec, "name", None)]
    if spec is None and _is_command(main.get("__file__")):
        names = [getattr(value, "__module__", None) for value in list(main.values())]
    for name in names:
        top = name.partition(".")[0] if isinstance(name, str) else ""
        if top in ("", "__main__") or top in _NOT_THE_USERS | _FRAMEWORKS:
            continue
        if top in sys.stdlib_module_names:
            continue
        file = getattr(sys.modules.get(top), "__file__", None)
        if isinstance(file, str) and is_library(file):
            is_package = os.path.basename(file).startswith("__init__.")
            return os.path.dirname(file) + os.sep if is_package else file
    return None


def _is_command(file: Any) -> bool:
    if not isinstance(file, str):
        return False
    return os.path.dirname(os.path.abspath(file)) == os.path.dirname(sys.executable)


def user_line(frame: FrameType | None) -> str | None:
    """The line of the user's code that led to this frame, as `train.py:71`; None: there is none."""
    for _ in range(DEEPEST):
        if frame is None:
            break
        file = frame.f_code.co_filename
        if not is_library(file):
            return f"{_short_name(file)}:{frame.f_lineno}"
        frame = frame.f_back
    return None


@lru_cache(maxsize=256)  # a checkpoint may be written in each step
def _short_name(file: str) -> str:
    from traceml_agent.redact import printable, redact  # its patterns cost 15 ms

    return printable(redact(os.path.basename(cell(file) or file)))


def function_name(code: CodeType) -> str:
    """The name of a function as its source has it: Dynamo renames what follows a graph break."""
    name: str = getattr(code, "co_qualname", code.co_name)
    resumed = _RESUMED.match(name.rpartition(".")[2])
    return resumed[1] if resumed else name


def library_name(code: CodeType) -> str:
    """A function of a library as `json/encoder.py:iterencode`."""
    file = code.co_filename
    for part in (*_LIBRARY, STANDARD):
        at = file.rfind(part)
        if at >= 0:
            file = file[at + len(part) :]
            break
    return f"{file.removeprefix('<frozen ').rstrip('>')}:{code.co_name}"


@or_none
def cell(file: str) -> str | None:
    """`Cell In[3]` for code of a notebook, whose file name is a number; None for other files."""
    notebook: Any = sys.modules.get("IPython")
    if notebook is None or not ("ipykernel" in file or file.startswith("<ipython-input")):
        return None
    kind, name = notebook.get_ipython().compile.format_code_name(file)
    return f"{kind} {name}"
