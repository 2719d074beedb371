"""A context manager as a decorator of what may be a coroutine function. Stdlib only."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any

_COROUTINE, _GENERATOR = 0x80, 0x20 | 0x200
"""Of `co_flags`. Source: the documentation of `inspect`, whose import takes 10 ms."""


def decorated(
    call: str, function: Callable[..., Any], make: Callable[[], AbstractContextManager[Any]]
) -> Callable[..., Any]:
    """The function, each call of it within what `make` gives: of a coroutine function until it is
    done. Raises TypeError for a generator function, whose body runs when somebody asks for its
    items."""
    flags = getattr(getattr(function, "__code__", None), "co_flags", 0)
    if flags & _GENERATOR:
        raise TypeError(
            f"{call}: {function.__qualname__} is a generator function; put `with {call}():` "
            "around what is one step in it"
        )
    if flags & _COROUTINE:

        @wraps(function)
        async def wait(*args: Any, **kwargs: Any) -> Any:
            with make():
                return await function(*args, **kwargs)

        return wait

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with make():
            return function(*args, **kwargs)

    return run
