"""Turns records into lines of a spool and back. The format is public: docs/spool-format.md."""

import dataclasses
from array import array
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import orjson

from traceml_agent.errors import TracemlError
from traceml_agent.schema.digests import Samples
from traceml_agent.schema.records import (
    RECORD_TYPES,
    GpuSample,
    HostSample,
    ProcessSample,
    Record,
)

SPOOL_SUFFIX = ".jsonl"
DIGEST_SUFFIX = ".digest"
RING_SUFFIX = ".ring"
ALIVE_SUFFIX = ".alive"
STACK_SUFFIX = ".stack"
CLAIM_SUFFIX = ".claim"
LAUNCH_SUFFIX = ".launch"
_ABSENT = object()
_SAMPLE_TYPES: dict[str, type[Any]] = {
    record.kind: record for record in (ProcessSample, HostSample, GpuSample)
}


class BadRecord(TracemlError):
    """A line is no record of this format."""


def spool_path(run_dir: Path, hostname: str, pid: int, attempt: int, rank: int) -> Path:
    """Where a process writes; unique over nodes, process ids and attempts."""
    letters = (c if c.isascii() and (c.isalnum() or c in "-.") else "-" for c in hostname)
    safe_host = "".join(letters)[:64]
    return run_dir / f"rank{rank:05d}-attempt{attempt}-{safe_host}-{pid}{SPOOL_SUFFIX}"


def encode(record: Record) -> bytes:
    """One line, newline included. Fields that are None are left out."""
    line: dict[str, Any] = {"kind": record.kind}
    for name in _fields(type(record)):  # type: ignore[arg-type]  # a class is hashable
        value = getattr(record, name)
        if value is not None:
            line[name] = value
    options = orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS
    try:
        return orjson.dumps(line, _as_list, option=options)
    except orjson.JSONEncodeError:  # a file name that is no UTF-8
        return orjson.dumps(_encodable(line), _as_list, option=options)


def _as_list(value: Any) -> Any:
    """A column of joined steps."""
    if isinstance(value, array):
        return value.tolist()
    raise TypeError


def _encodable(value: Any) -> Any:
    """The same with `?` for what UTF-8 cannot hold."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encodable(item) for item in value]
    return value


def decode(line: bytes) -> Record | None:
    """The record of a line; None for a kind that this version does not know.

    Unknown fields are ignored, so that a newer minor version can add some. Raises BadRecord.
    """
    try:
        data = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise BadRecord(f"not JSON: {error}") from None
    if not isinstance(data, dict) or not isinstance(data.get("kind"), str):
        raise BadRecord("not an object with a `kind`")
    record_type = RECORD_TYPES.get(data["kind"])
    return None if record_type is None else _build(record_type, data)


def columns_of(samples: Sequence[ProcessSample | HostSample | GpuSample]) -> dict[str, list[Any]]:
    """Samples of one kind, a list a field; a field that is None in all of them is left out."""
    names = _fields(type(samples[0]))  # type: ignore[arg-type]  # a class is hashable
    columns = {name: [getattr(sample, name) for sample in samples] for name in names}
    return {name: c for name, c in columns.items() if c.count(None) < len(c)}


def samples_of(found: Samples) -> list[Any]:
    """The single samples: ProcessSample, HostSample or GpuSample. Raises BadRecord."""
    record_type = _SAMPLE_TYPES.get(found.of)
    if record_type is None:
        raise BadRecord(f"samples of an unknown kind {found.of[:80]!r}")
    columns = []
    for name, types, convert, is_required, default in _readers(record_type):  # type: ignore[arg-type]
        column = found.columns.get(name)
        if column is None:
            if is_required:
                raise BadRecord(f"samples without `{name}`")
            column = [default()] * found.count  # one for all: nobody changes a sample
        elif len(column) != found.count:
            raise BadRecord(f"samples: a column of another length: {name}")
        elif not types.issuperset(map(type, column)):
            try:
                column = [v if type(v) in types else convert(v) for v in column]
            except (TypeError, ValueError, AttributeError) as error:
                raise BadRecord(f"samples: {name}: {error}") from None
        columns.append(column)
    return list(map(record_type, *columns))


@cache
def _fields(record_type: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(record_type))


class _Field(NamedTuple):
    """How a field is read."""

    name: str
    types: frozenset[type]  # values of these types are taken as they are
    convert: Callable[[Any], Any]  # for the others: the value as the hint says, or TypeError
    is_required: bool
    default: Callable[[], Any]


@cache
def _readers(record_type: type) -> tuple[_Field, ...]:
    """One a field, in the order of the constructor."""
    hints = get_type_hints(record_type)
    return tuple(
        _Field(
            name=field.name,
            types=_plain_types(hints[field.name]),
            convert=_converter(hints[field.name]),
            is_required=field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
            and type(None) not in get_args(hints[field.name]),
            default=_default(field),
        )
        for field in dataclasses.fields(record_type)
    )


def _build(record_type: type, data: dict[str, Any]) -> Any:
    values = []
    for name, types, convert, is_required, default in _readers(record_type):
        value = data.get(name, _ABSENT)
        if type(value) in types:
            values.append(value)
        elif value is not _ABSENT:
            try:
                values.append(convert(value))
            except (TypeError, ValueError, AttributeError) as error:
                raise BadRecord(f"{record_type.__name__}.{name}: {error}") from None
        elif is_required:
            raise BadRecord(f"{record_type.__name__} without `{name}`")
        else:
            values.append(default())
    return record_type(*values)


def _default(field: Any) -> Callable[[], Any]:
    """What makes the value of a field that is not in the line."""
    if field.default_factory is not dataclasses.MISSING:
        factory: Callable[[], Any] = field.default_factory
        return factory
    value = None if field.default is dataclasses.MISSING else field.default
    return lambda: value


def _plain_types(hint: Any) -> frozenset[type]:
    """Types whose values need no look inside."""
    # Not the arguments of list[int]: a number is no column.
    alternatives = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    plain = {h for h in alternatives if h in (int, str, float, bool, type(None))}
    return frozenset(plain | ({int} if float in plain else set()))


def _converter(hint: Any) -> Callable[[Any], Any]:
    """A function that returns the value as `hint` says or raises TypeError."""
    if hint in (int, str, float, bool, type(None)):
        return _scalar(hint)
    if hint is Any:
        return lambda value: value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return lambda value: _build(hint, value if isinstance(value, dict) else {})
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is list or origin is tuple:
        return _sequence(origin, arguments[0])
    if origin is dict:
        return _mapping(arguments[1])
    return _union([_converter(argument) for argument in arguments])


def _scalar(wanted: type) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if type(value) is wanted or (wanted is float and type(value) is int):
            return value
        raise TypeError(f"expected {wanted.__name__}, found {type(value).__name__}")

    return convert


def _sequence(origin: type, item_hint: Any) -> Callable[[Any], Any]:
    allowed = _scalar_types(item_hint)
    convert_item = _converter(item_hint)
    is_free = item_hint is Any

    def convert(value: Any) -> Any:
        if type(value) is not list:
            raise TypeError(f"expected a list, found {type(value).__name__}")
        if is_free:
            return value
        if allowed is not None:
            # One pass in C: a spool holds millions of these integers.
            if not set(map(type, value)) <= allowed:
                raise TypeError("a list with items of another type")
            return value if origin is list else tuple(value)
        return origin(convert_item(item) for item in value)

    return convert


def _scalar_types(hint: Any) -> set[type] | None:
    hints = get_args(hint) or (hint,)
    return set(hints) if all(h in (int, str, type(None)) for h in hints) else None


def _mapping(value_hint: Any) -> Callable[[Any], Any]:
    convert_value = _converter(value_hint)

    def convert(value: Any) -> Any:
        if type(value) is not dict:
            raise TypeError(f"expected an object, found {type(value).__name__}")
        return {key: convert_value(item) for key, item in value.items()}

    return convert


def _union(converters: list[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        for candidate in converters:
            try:
                return candidate(value)
            except TypeError:
                continue
        raise TypeError(f"a value of type {type(value).__name__} does not fit")

    return convert
