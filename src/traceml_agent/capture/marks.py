"""The values that a program marks: one number or text each, made plain without any waiting."""

import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

from traceml_agent.redact import own_secrets, redact

TEXT_BYTES = 256
LOOKED_AT = 4_096
"""Characters of a longer text that are looked through for secrets."""

Value = bool | int | float | str | None
PLAIN = frozenset((bool, int, float, type(None)))


class Mark(NamedTuple):
    """A value at one moment."""

    monotonic_ns: int
    name: str
    value: "Value | Later"
    kind: str
    attrs: Mapping[str, Any]

    def plain_value(self) -> Value:
        """The value; of a scalar on a device it waits until the device has it."""
        return self.value.value() if isinstance(self.value, Later) else self.value


class Later:
    """A scalar on a device. Its value is fetched when somebody reads it."""

    __slots__ = ("_name", "_tensor", "_value")

    def __init__(self, name: str, tensor: Any) -> None:
        self._name = name
        # A copy on the device: the program may change its tensor in place.
        self._tensor = tensor.detach().clone()
        self._value: Value = None

    @property
    def is_known(self) -> bool:
        """Whether somebody fetched it."""
        return self._tensor is None

    def value(self) -> Value:
        """Waits for the device, once."""
        if self._tensor is not None:
            self._value, self._tensor = _item(self._name, self._tensor), None
        return self._value


def plain(name: str, value: Any) -> Value | Later:
    """What is kept of a value. Raises TypeError for what is neither one number nor text."""
    if type(value) in PLAIN:
        return value  # type: ignore[no-any-return]
    if isinstance(value, str):
        return short(str.__str__(value))
    if not callable(getattr(value, "item", None)):
        if isinstance(value, int):  # an enumeration, say
            return int(value)
        if callable(getattr(value, "__float__", None)):
            return float(value)
        raise TypeError(f"mark {name!r}: a value is one number or text, not {type(value).__name__}")
    device = getattr(getattr(value, "device", None), "type", "cpu")
    if device == "cpu" or getattr(value, "numel", lambda: 1)() != 1:
        return _item(name, value)
    return Later(name, value)


def _item(name: str, value: Any) -> Value:
    """The number in an array or tensor that holds one."""
    try:
        found = value.item()
    except (TypeError, ValueError, RuntimeError):
        found = value
    if isinstance(found, (bool, int, float)):
        return found
    shape = tuple(getattr(value, "shape", ()))
    what = f"{type(value).__name__} of shape {shape}"
    raise TypeError(f"mark {name!r}: a value is one number or text, not {what}") from None


def check(name: str, value: Any) -> None:
    """Raises TypeError for what is neither one number nor text; nothing of it is read."""
    if type(value) in PLAIN or isinstance(value, (str, int)):
        return
    if callable(getattr(value, "item", None)):
        count = getattr(value, "numel", None)
        number = count() if callable(count) else getattr(value, "size", 1)
        if number == 1:
            return
        what = f"{type(value).__name__} of shape {tuple(getattr(value, 'shape', ()))}"
    elif callable(getattr(value, "__float__", None)):
        return
    else:
        what = type(value).__name__
    raise TypeError(f"mark {name!r}: a value is one number or text, not {what}")


def text_of(name: Any) -> str:
    """A name that is no plain text, without calling anything of the program."""
    if isinstance(name, str):
        return str.__str__(name)
    return str(name) if type(name) in PLAIN else f"<{type(name).__name__}>"


def index_of(index: Any) -> int | str:
    """An index as an integer where it is one, else as text."""
    try:
        return operator.index(index)
    except TypeError:
        return text_of(index)


def without_tensors(attrs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The attributes; a tensor is kept by the name of its type, or it would live on with its
    graph."""
    if not any(hasattr(type(value), "detach") for value in attrs.values()):
        return attrs
    return {
        name: f"<{type(value).__name__}>" if hasattr(type(value), "detach") else value
        for name, value in attrs.items()
    }


def short(text: str) -> str:
    """At most 256 bytes of UTF-8, cut between two characters. Secrets are taken out before: half of
    one is not known as such."""
    if len(text) * 4 <= TEXT_BYTES or (len(text) <= TEXT_BYTES and text.isascii()):
        return text
    text = redact(text[:LOOKED_AT], own_secrets())
    return text.encode("utf-8", "replace")[:TEXT_BYTES].decode("utf-8", "ignore")
