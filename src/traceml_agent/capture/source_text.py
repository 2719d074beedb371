"""The text of a line of the program, where it can be trusted, without what may be a secret.

Nothing is imported or executed to read it, and a file that was written after the process began is
not read: its lines need not be those that run.
"""

import os
import re
import stat
import sys

from traceml_agent.redact import own_secrets, printable, redact

FILE_LIMIT = 2_000_000
"""Bytes of a source file that is read. Chosen: the longest module of torch has half of it."""
MOST_FILES = 32
"""Chosen: the hot lines of a program lie in a handful of files."""
TEXT_LIMIT = 120
_STRING = re.compile(
    r"(?i)(?P<head>\b[rbfut]{1,2}|)(?P<quote>\"\"\"|'''|\"|')"
    r"(?P<text>(?:\\.|(?!(?P=quote)).)*)(?P<end>(?P=quote)|$)(?P<colon>\s*:)?",
    re.DOTALL,
)
_COMMENT = re.compile(r"\s+#[^'\"]*$")
_CODING = re.compile(rb"^[ \t\f]*#.*?coding[:=][ \t]*(?!utf-?8)[-\w.]+", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z_]\w{0,30}")


class SourceText:
    """Reads files once; a file that cannot be read stays without text."""

    def __init__(self, started_wall_s: float, directory: str) -> None:
        """When the process began, and its working directory then."""
        self._started_wall_s = started_wall_s
        self._directory = directory
        self._secrets = own_secrets()
        self._files: dict[str, list[bytes]] = {}

    def file_name(self, name: str) -> str:
        """The name of a file as it may be written down."""
        return printable(redact(name, self._secrets))

    def line(self, file: str, number: int) -> str | None:
        """The text of a line."""
        lines = self._lines(file)
        return self._shown(lines[number - 1]) if 0 < number <= len(lines) else None

    def part(self, file: str, first: int, last: int, begin: int, end: int) -> str | None:
        """The text from one place to another; columns count bytes, as in `co_positions`."""
        lines = self._lines(file)
        if not 0 < first <= last <= len(lines):
            return None
        found = lines[first - 1 : last]
        found[-1] = found[-1][:end]
        found[0] = found[0][begin:]
        return self._shown(b" ".join(line.strip() for line in found))

    def _lines(self, file: str) -> list[bytes]:
        if file not in self._files:
            if len(self._files) >= MOST_FILES:
                return []
            self._files[file] = self._of_file(file) or _of_cell(file)
        return self._files[file]

    def _of_file(self, file: str) -> list[bytes]:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        path = os.path.join(self._directory, file)
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                return []
            with os.fdopen(os.open(path, flags), "rb") as source:
                found = os.fstat(source.fileno())
                if not stat.S_ISREG(found.st_mode) or found.st_size > FILE_LIMIT:
                    return []
                if max(found.st_mtime, found.st_ctime) > self._started_wall_s:
                    return []
                lines = source.read(FILE_LIMIT).split(b"\n")
        except (OSError, ValueError):
            return []
        return [] if any(map(_CODING.match, lines[:2])) else lines

    def _shown(self, text: bytes) -> str | None:
        try:
            words = " ".join(text.decode("utf-8").split())
        except UnicodeDecodeError:
            return None
        words = printable(redact(without_strings(words), self._secrets))
        if len(words) > TEXT_LIMIT:
            words = words[: TEXT_LIMIT - 1].rstrip() + "…"
        return words or None


def without_strings(text: str) -> str:
    """Source text without comments and without the content of strings, which may be secrets.

    Keys stay: what stands before a colon, or alone in brackets.
    """
    return _COMMENT.sub("", _STRING.sub(_hidden, text))


def _hidden(found: "re.Match[str]") -> str:
    before = found.string[: found.start()].rstrip()
    after = found.string[found.end() :].lstrip()
    is_key = found["colon"] or (before.endswith("[") and after.startswith("]"))
    if not found["text"] or (is_key and _NAME.fullmatch(found["text"])):
        return found[0]
    quote = found["quote"]
    return f"{found['head']}{quote}…{quote}{found['colon'] or ''}"


def _of_cell(file: str) -> list[bytes]:
    """The lines of a cell of a notebook, which the notebook keeps for tracebacks."""
    cache = getattr(sys.modules.get("linecache"), "cache", None)
    entry = cache.get(file) if isinstance(cache, dict) else None
    if not isinstance(entry, tuple) or len(entry) != 4 or os.path.exists(file):
        return []
    is_cell = "ipykernel" in file or file.startswith(("<ipython-input", "<python-input"))
    lines = entry[2]
    if not is_cell or not isinstance(lines, list) or sum(map(len, lines)) > FILE_LIMIT:
        return []
    return [str(line).rstrip("\n").encode("utf-8", "replace") for line in lines]
