"""Makes a patched function look like its original, in signatures, pickles and tracebacks."""

from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any, TypeVar, cast

Function = TypeVar("Function")

UNCOUNTED = "(importlib._bootstrap)"
"""In the file name of a frame it makes `warnings` pass over it when it counts `stacklevel`, or a
warning would name another line than without the agent. Source: is_internal_frame in _warnings.c."""

SKIPPED = "<frozen importlib._bootstrap>"


def like(wrapper: Function, original: Any) -> Function:
    """The wrapper with the names and documentation of the original, and a frame nobody counts.

    By hand: `functools.wraps` also copies `__dict__`, where Dynamo keeps its markers, and sets
    `__wrapped__`, which `inspect` follows.
    """
    setattr(wrapper, "__module__", getattr(original, "__module__", None))  # noqa: B010
    for name in ("__name__", "__qualname__", "__doc__"):
        value = getattr(original, name, None)
        if value is not None:
            setattr(wrapper, name, value)
    code = wrapper.__code__  # type: ignore[attr-defined]  # a function
    file_name = code.co_filename + UNCOUNTED
    wrapper.__code__ = code.replace(co_filename=file_name)  # type: ignore[attr-defined]
    return wrapper


def skipped(function: Any) -> None:
    """Lets Dynamo run a function, or each one of a class, that a patch calls: it compiles no frame
    of a file with this name. Without it, what follows a graph break would be compiled, ours too.

    Source: SKIP_DIRS in torch/_dynamo/trace_rules.py.
    """
    if isinstance(function, type):
        for member in vars(function).values():
            if type(member) is FunctionType:
                skipped(member)
    else:
        function.__code__ = _skipped_code(function.__code__)


def _skipped_code(code: CodeType) -> CodeType:
    inner = tuple(_skipped_code(c) if isinstance(c, CodeType) else c for c in code.co_consts)
    file_name = code.co_filename
    if not file_name.startswith(SKIPPED):
        file_name = SKIPPED + file_name
    return code.replace(co_filename=file_name, co_consts=inner)


def hide_frame(error: BaseException) -> None:
    """Takes the frame of the calling patch out of the traceback of `error`.

    Works because a bare `raise` does not add the frame again (CPython 3.11 and later; on 3.10 the
    frame stays visible). The user's traceback is the same with the agent on and off.
    """
    traceback = error.__traceback__
    if traceback is not None:
        error.__traceback__ = traceback.tb_next


def compiling_test(torch: Any) -> Callable[[], bool]:
    """The cheapest call that Dynamo folds to True while it traces, and that is False otherwise."""
    return cast(
        "Callable[[], bool]",
        getattr(torch.compiler, "is_dynamo_compiling", None) or torch.compiler.is_compiling,
    )
