"""The values that a program marks: one number or text each, made plain without any waiting."""

import operator
import sys
from collections.abc import Mapping
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Any, NamedTuple

from traceml_agent.redact import own_secrets, redact

TEXT_BYTES = 256
LOOKED_AT = 4_096
"""Characters of a longer text that are looked through for secrets."""

Value = bool | int | float | str | None
PLAIN = frozenset((bool, int, float, type(None)))
AS_IT_IS = PLAIN | {str}
REAL_KINDS = "biuf"
"""Kinds of numpy's types that are a bool or a real number."""
NESTING, MOST_ITEMS = 3, 64
"""Of the lists, tuples and dicts that are kept of an attribute."""
_HOLDERS: tuple[tuple[Any, Any], ...] = (
    (tuple, tuple.__iter__), (list, list.__iter__), (dict, dict.items),
)  # fmt: skip
_READ = ((str, str.__str__), (int, int.__int__), (float, float.__float__))


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
        """Waits for the device, once. None where the device does not give it."""
        tensor = self._tensor
        if tensor is not None:
            try:
                self._value = _item(self._name, tensor)
            except TypeError:
                self._value = None
            self._tensor = None
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
    return Later(name, value) if _is_on_device(name, value) else _item(name, value)


def check(name: str, value: Any) -> None:
    """Raises TypeError where `plain` does. Nothing is read of an array: it may lie on a device."""
    if isinstance(value, str) or not callable(getattr(value, "item", None)):
        plain(name, value)
        return
    count = getattr(value, "numel", None)
    number = count() if callable(count) else getattr(value, "size", 1)
    kind = getattr(getattr(value, "dtype", None), "kind", "f")  # of numpy and its kin
    is_complex = getattr(value, "is_complex", None)
    if number != 1 or kind not in REAL_KINDS or (callable(is_complex) and is_complex()):
        raise _no_number(name, value)


def _is_on_device(name: str, value: Any) -> bool:
    """Whether this is a scalar on a device, whose value nobody knows yet. Raises TypeError for one
    that is no real number."""
    device = getattr(getattr(value, "device", None), "type", "cpu")
    if device == "cpu" or getattr(value, "numel", lambda: 1)() != 1:
        return False
    is_complex = getattr(value, "is_complex", None)
    if callable(is_complex) and is_complex():
        raise _no_number(name, value)
    return True


def _item(name: str, value: Any) -> Value:
    """The number in an array or tensor that holds one."""
    try:
        found = value.item()
    except (TypeError, ValueError, RuntimeError):
        found = value
    if isinstance(found, (bool, int, float)):
        return found
    raise _no_number(name, value) from None


def _no_number(name: str, value: Any) -> TypeError:
    what = f"{type(value).__name__} of shape {tuple(getattr(value, 'shape', ()))}"
    return TypeError(f"mark {name!r}: a value is one number or text, not {what}")


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


def kept(attrs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The attributes as they are kept: numbers and text, and what holds nothing else, copied. Of
    anything else the name of its type, or a batch would live on with its graph."""
    if all(type(value) in AS_IT_IS for value in attrs.values()):
        return attrs
    return {name: _kept(value, NESTING) for name, value in attrs.items()}


def _kept(value: Any, depth: int) -> Any:
    """Without calling anything of the program."""
    kind = type(value)
    if kind in AS_IT_IS:
        return value
    for plain_kind, read in _READ:  # of a class of the program's own, or of numpy
        if issubclass(kind, plain_kind):
            return read(value)
    if kind in _library_kinds():
        return str(value)
    if issubclass(kind, _scalar_kind()):
        found = value.item()
        return found if type(found) in AS_IT_IS else f"<{kind.__name__}>"
    for holder, items in _HOLDERS:  # torch.Size is a tuple
        if depth and issubclass(kind, holder) and holder.__len__(value) <= MOST_ITEMS:
            if holder is dict:
                pairs = tuple(items(value))
                return {_kept(k, max(1, depth - 1)): _kept(v, depth - 1) for k, v in pairs}
            return holder(_kept(item, depth - 1) for item in tuple(items(value)))
    return f"<{kind.__name__}>"


def _library_kinds() -> tuple[type, ...]:
    """Classes of libraries that are told as text, as far as they are imported."""
    found: list[type] = [PosixPath, PurePosixPath, WindowsPath, PureWindowsPath]
    torch = sys.modules.get("torch")
    if torch is not None:
        found += [kind for name in ("device", "dtype") if (kind := vars(torch).get(name))]
    return tuple(found)


def _scalar_kind() -> type | tuple[()]:
    """That of numpy's scalars, where it is imported."""
    numpy = sys.modules.get("numpy")
    kind: type | None = None if numpy is None else vars(numpy).get("generic")
    return kind or ()


def short(text: str) -> str:
    """At most 256 bytes of UTF-8, cut between two characters. Secrets are taken out before: half of
    one is not known as such."""
    if len(text) * 4 <= TEXT_BYTES or (len(text) <= TEXT_BYTES and text.isascii()):
        return text
    text = redact(text[:LOOKED_AT], own_secrets())
    return text.encode("utf-8", "replace")[:TEXT_BYTES].decode("utf-8", "ignore")
