"""One line for the user, on stderr, starting with `traceml: `. Never on stdout, never an error."""

import contextlib
import sys


def say(text: str) -> None:
    """Writes the lines of `text`, each with the prefix; silent where stderr is closed or gone."""
    stream = sys.stderr
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


_SAID: set[str] = set()


def say_once(text: str) -> None:
    """The same, once in a process."""
    if text not in _SAID:
        _SAID.add(text)
        say(text)


def takes_unicode() -> bool:
    """Whether stderr is a terminal that takes UTF-8."""
    stream = sys.stderr
    encoding = getattr(stream, "encoding", None) or ""
    try:
        return stream.isatty() and encoding.lower().replace("-", "") == "utf8"
    except (AttributeError, ValueError):  # no stream, or a closed one
        return False
