"""What may be kept of the texts that a program makes: messages without secrets, frames as places.

Arguments and environment of the program are never recorded. But a message repeats what it was made
from: `401 for https://u:p@host`, `Command '['login', '--token', '...']' failed`. So every such text
passes here before it is written. Rather too much is hidden than too little, except what people need
to understand why a training failed: paths, shapes, numbers, names of layers and of special tokens.
"""

import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

HIDDEN = "[redacted]"
READ_LIMIT = 4000
"""Characters of a text that are looked at. The rest is dropped, never passed on unseen."""
KEPT_LIMIT = 500
STACK_LIMIT = 8000
SECRET_LENGTH = 6
"""Shorter values are not searched for: a password `abc` would hide half of any text."""

_ANYWHERE = """
password passwd passphrase pwd secret secrets credential credentials cookie apikey authorization
"""
_AT_THE_END = "password passwd passphrase secret token apikey accesskey secretkey auth"
_ALONE = "dsn sas sig bearer pw sessionid"
_KEY_KINDS = """
api access secret private account auth encryption signing master storage license subscription
service deploy ssh client
"""
_SPECIAL = "pad eos bos unk sep cls mask image audio video next last first special end start new"
_PASSES = "forward backward first second single one another"
ANYWHERE = frozenset(_ANYWHERE.split())
AT_THE_END = tuple(_AT_THE_END.split())
ALONE = frozenset(_ALONE.split())
KEY_KINDS = frozenset(_KEY_KINDS.split())
SPECIAL = frozenset(_SPECIAL.split())
"""`eos_token` and its kin belong to a tokenizer."""
PASSES = frozenset(_PASSES.split())
HARMLESS = frozenset(("", "none", "null", "true", "false", "yes", "no", "0", "1"))
_NO_SECRETS = frozenset(("PWD", "OLDPWD"))  # the working directory of a shell

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_VALUE = r"""(?P<value>
    (?:(?:bearer|basic|digest|token)\s+)?
    (?: b?"[^"]*"? | b?'[^']*'? | [^\s"',;&)}\]]+ )
)"""
_NAMED = re.compile(
    r"""(?<![\w-])(?P<name>-{0,2}(?:(?:api|access|secret|private|auth)[ ])?[a-z][\w.-]{0,100}?)
    (?: (?P<assigned>["']?\s*(?:=>|:=|=|:)\s*)
      | \s+(?:is|was)\s+
      | ["']?,\s*(?=["'])
      | \s+(?!--|=|:|-\s)
    )"""
    + _VALUE,
    re.IGNORECASE | re.VERBOSE,
)
_SHAPES = re.compile(
    r"""
    -----BEGIN[ ][A-Z ]*PRIVATE[ ]KEY-----.*?(?:-----END[ ][A-Z ]*PRIVATE[ ]KEY-----|\Z)
  | (?<![A-Za-z0-9])(?:
      (?:sk|pk|rk)-[\w-]{12,} | (?:sk|pk|rk)_(?:live|test)_\w{8,} | hf_[A-Za-z0-9]{20,}
    | gh[pousr]_[A-Za-z0-9]{20,} | github_pat_\w{20,} | gl[a-z]{2,5}-[\w-]{16,}
    | xox[a-z]-[\w-]{10,} | (?:AKIA|ASIA)[A-Z0-9]{16} | AIza[\w-]{30,} | ya29\.[\w-]{10,}
    | eyJ[\w-]{10,}\.[\w-]{10,}(?:\.[\w-]*)? | (?:npm|r8|gsk|dckr_pat|wandb_v1|dop_v1)_\w{20,}
    | (?:nvapi|xai|pypi)-[\w-]{20,} | hvs\.[\w-]{20,} | SG\.[\w-]{16,}\.[\w-]{16,}
    )
  | (?<=bearer[ ])(?=\S*\d)[\w.~+/=-]{8,} | (?<=basic[ ])(?=\S*\d)[\w.~+/=-]{8,}
    """,
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)
"""Tokens whose issuer gave them a form that can be known by sight."""
_URL_USER = re.compile(r"(?<=://)[^\s/?#\"'<>]+@|(?<=://)[^\s/:@\"'<>]+:[^\s@\"'<>]+@")
_USER = re.compile(r"(?<![\w./-])([\w.+-]+):([^\s:/@\"']{3,})@(?=[\w\[])")
# No part of a path or of a longer name: a cache is full of directories named after a hash.
_OPAQUE = re.compile(r"(?<![\w./\\-])[A-Za-z0-9]{32,}(?![\w/\\-]|\.\w)")
_OPTION_NAME = re.compile(r"-{1,2}[A-Za-z][\w.-]*")


def redact(text: str, secrets: Sequence[str] = ()) -> str:
    """The text with everything hidden that is one of `secrets` or looks like one."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    if len(text) > READ_LIMIT:
        # Not in the middle of a word: half a token is known neither by its form nor by its length.
        end = max(text.rfind(" ", 0, READ_LIMIT), text.rfind("\n", 0, READ_LIMIT))
        text = text[: end + 1] + "..."
    text = _URL_USER.sub(f"{HIDDEN}@", text)
    text = _USER.sub(rf"\1:{HIDDEN}@", text)
    text = _without_named(text)
    text = _SHAPES.sub(HIDDEN, text)
    return _OPAQUE.sub(_opaque, text)


def secrets_of(variables: Iterable[tuple[str, str]], argv: Sequence[str]) -> tuple[str, ...]:
    """The values in an environment and a command line that must not be repeated, longest first."""
    found: set[str] = set()
    for name, value in variables:
        found.update(_secret_parts(name, value))
    for word, after in zip(argv, [*argv[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        if equals:
            found.update(_secret_parts(name, value))
        elif name == "-p" or _OPTION_NAME.fullmatch(name):
            found.update(_secret_parts(name, after))
        found.update(_secret_parts("", word))
    return tuple(sorted(found, key=lambda secret: (-len(secret), secret)))


def own_secrets() -> tuple[str, ...]:
    """The same for this process: what it was started with, and what it has by now."""
    variables = list(os.environ.items())
    # A careful program takes a token out of its environment once it has read it.
    with contextlib.suppress(OSError):
        for entry in os.fsdecode(Path("/proc/self/environ").read_bytes()).split("\0"):
            name, _, value = entry.partition("=")
            variables.append((name, value))
    argv: Any = getattr(sys, "argv", None)  # the program may have put anything there
    words = [*sys.orig_argv, *(argv if isinstance(argv, list) else ())]
    return secrets_of(variables, [word for word in words if isinstance(word, str)])


def is_secret_name(name: str) -> bool:
    """Whether a variable, an option or a key of this name holds a secret."""
    if name in _NO_SECRETS:
        return False
    words = [word.lower() for word in _WORD.findall(name)]
    if not words:
        return False
    last, before = words[-1], words[-2] if len(words) > 1 else ""
    if last in ("value", "header", "string", "data") and before:
        return is_secret_name("_".join(words[:-1])) or words[-2:] == ["connection", "string"]
    if last == "pass":  # a password, or a pass over the data
        return (bool(before) or name.startswith("-")) and before not in PASSES
    if last in ALONE or ANYWHERE.intersection(words):
        return True
    if last == "key":
        return before in KEY_KINDS or name.isupper()
    return last.endswith(AT_THE_END) and not (last == "token" and before in SPECIAL)


def describe(kind: type, message: str | None, secrets: Sequence[str] = ()) -> str:
    """An error as `Type: message` without its secrets; its source text and notes are left out."""
    name = kind.__qualname__
    if kind.__module__ not in ("builtins", "__main__"):
        name = f"{kind.__module__}.{name}"
    if not message:
        return name
    return f"{name}: {printable(redact(message, secrets))}"[:KEPT_LIMIT].strip()


def places(traceback: TracebackType | None, secrets: Sequence[str] = ()) -> str:
    """The frames of a traceback as file, line and function, the innermost last; no source text.

    A line of source may hold a secret in any form. Of a long stack the outer frames are left out.
    """
    lines = list(_places(traceback, secrets))
    length = 0
    for number in range(len(lines) - 1, -1, -1):
        length += len(lines[number])
        if length > STACK_LIMIT:
            return "".join(lines[number + 1 :])
    return "".join(lines)


def _places(traceback: TracebackType | None, secrets: Sequence[str]) -> Iterator[str]:
    while traceback is not None:
        code = traceback.tb_frame.f_code
        file = redact(code.co_filename, secrets)
        yield printable(f'  File "{file}", line {traceback.tb_lineno}, in {code.co_name}') + "\n"
        traceback = traceback.tb_next


def printable(text: str) -> str:
    """Without what would steer a terminal, and without halves of characters: no file takes them."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def _secret_parts(name: str, value: str) -> Iterator[str]:
    """The value if its name says so, and what stands before the `@` of a URL in it."""
    parts = []
    if is_secret_name(name) or (name == "-p" and not value.isdigit() and "/" not in value):
        parts.append(value)
    for user in _URL_USER.findall(value):
        parts += [user[:-1], user[:-1].partition(":")[2]]
    for part in parts:
        if len(part) >= SECRET_LENGTH and part.lower() not in HARMLESS:
            yield part


def _without_named(text: str) -> str:
    """Hides each value that a name of a secret stands before: `token=...`, `--password ...`."""
    parts: list[str] = []
    position = 0
    while (found := _NAMED.search(text, position)) is not None:
        name, value = found["name"], found["value"]
        if is_secret_name(name) and _is_worth_hiding(found):
            parts += [text[position : found.start("value")], _hidden_like(value)]
            position = found.end()
        else:  # the value may be the name of the next one
            parts.append(text[position : found.end("name")])
            position = found.end("name")
    return "".join(parts) + text[position:]


def _is_worth_hiding(found: "re.Match[str]") -> bool:
    name, value = found["name"], found["value"]
    bare = value.strip("\"'").lower()
    if bare in HARMLESS or value.startswith(HIDDEN):
        return False
    if found["assigned"] is not None:
        return not (name.lower().endswith("token") and bare.isdigit())
    if name.startswith("-"):
        return True
    # Without a sign between them: only what is no word of a sentence.
    return "token" not in name.lower() and (value != bare or any(c.isdigit() for c in bare))


def _hidden_like(value: str) -> str:
    quote = value[-1] if value[-1] in "\"'" else ""
    return f"{quote}{HIDDEN}{quote}"


def _opaque(found: "re.Match[str]") -> str:
    """Hides a long hexadecimal number, and a long word of digits and letters of both cases."""
    word = found[0]
    digits = sum(c.isdigit() for c in word)
    is_hexadecimal = digits and re.fullmatch(r"[0-9a-f]+|[0-9A-F]+", word)
    is_mixed = digits > 1 and word != word.lower() and word != word.upper()
    return HIDDEN if is_hexadecimal or is_mixed else word
