"""Frozen dataclasses to and from plain JSON/CBOR values, strictly.

An unknown field, a missing one or a value of the wrong type is a MalformedMessage that names the
field; nothing is guessed. Supported types: bool, int, float, str, bytes, Literal, X | None,
tuple[X, ...], Mapping[str, X] and dataclasses of these.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from edgeml_runtime.errors import MalformedMessage

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Return `value` as dicts, lists and scalars; fields that are None are left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {name: to_plain(item) for name, item in pairs if item is not None}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    return value


def from_plain(cls: type[T], data: Any) -> T:
    """Return a `cls` made of plain `data`, or raise MalformedMessage naming the field.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Point:
    ...     x: int
    >>> from_plain(Point, {"x": 1})
    Point(x=1)
    >>> from_plain(Point, {"x": "one"})
    Traceback (most recent call last):
    edgeml_runtime.errors.MalformedMessage: Point.x: expected int, got str 'one'
    """
    return typing.cast(T, _read(cls, data, cls.__name__))


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _read(kind: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _read_fields(typing.cast(type, kind), value, where)
    if origin in (Union, types.UnionType):
        inner = next(arg for arg in args if arg is not type(None))
        return None if value is None else _read(inner, value, where)
    if origin is Literal:
        if value not in args:
            raise MalformedMessage(f"{where}: expected one of {', '.join(map(str, args))}, got {_show(value)}")
        return value
    if origin is tuple:
        _check(list, value, where)
        return tuple(_read(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin in (Mapping, dict):
        _check(dict, value, where)
        return {str(key): _read(args[1], item, f"{where}[{key!r}]") for key, item in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if kind is not Any:
        _check(kind, value, where)
    return value


def _read_fields(cls: type, value: Any, where: str) -> Any:
    _check(dict, value, where)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    if unknown := set(value) - set(fields):
        raise MalformedMessage(f"{where}: unknown field {sorted(map(str, unknown))[0]!r}; known: {', '.join(fields)}")
    missing = dataclasses.MISSING
    for name, field in fields.items():
        optional = field.default is not missing or field.default_factory is not missing
        if name not in value and not optional:
            raise MalformedMessage(f"{where}: field {name!r} is missing")
    hints = _hints(cls)
    return cls(**{name: _read(hints[name], item, f"{where}.{name}") for name, item in value.items()})


def _check(kind: type, value: Any, where: str) -> None:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise MalformedMessage(f"{where}: expected {kind.__name__}, got {type(value).__name__} {_show(value)}")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
