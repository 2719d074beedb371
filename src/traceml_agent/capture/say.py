"""One line for the user, on stderr, starting with `traceml: `. Never on stdout, never an error."""

import contextlib
import io
import sys
from typing import TextIO


def say(text: str) -> None:
    """Writes the lines of `text`, each with the prefix; silent where stderr is closed or gone."""
    stream = _stream()
    if stream is None:
        return
    lines = "".join(f"traceml: {line}".rstrip() + "\n" for line in text.splitlines())
    # ValueError: the stream is closed. UnicodeError: it cannot take a character.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        try:
            stream.write(lines)
        except UnicodeError:
            stream.write(lines.encode("ascii", "replace").decode("ascii"))
        stream.flush()


def _stream() -> TextIO | None:
    """stderr; that of the process where the program has led its own into its stdout or a string.
    One that it led to a file, or nowhere, is followed."""
    stream = sys.stderr
    is_lent = stream is not None and stream is sys.__stdout__
    return sys.__stderr__ if is_lent or isinstance(stream, io.StringIO) else stream


_SAID: set[str] = set()


def say_once(text: str) -> None:
    """The same, once in a process."""
    if text not in _SAID:
        _SAID.add(text)
        say(text)


def takes_unicode() -> bool:
    """Whether stderr is a terminal that takes UTF-8."""
    stream = _stream()
    encoding = getattr(stream, "encoding", None) or ""
    try:
        return (
            stream is not None and stream.isatty() and encoding.lower().replace("-", "") == "utf8"
        )
    except (AttributeError, ValueError):  # no stream, or a closed one
        return False
