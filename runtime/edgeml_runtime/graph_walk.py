"""What is in an ONNX file, read without the onnx package: operators of all depths, constants, loops.

Only the fields that `vetting` decides on are read; the rest is skipped by its length. Field numbers are those of
onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto). Where protobuf merges a field that comes twice,
each of its parts is read, so nothing can hide behind a second one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from edgeml_runtime.errors import TaskRefused

MAX_DEPTH = 8  # graphs inside graphs; a whole training run has three
MAX_NODES = 200_000
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_INT64 = 7  # TensorProto.DataType
_ITEM_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 8: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 14: 8, 15: 16, 16: 2}
Field = tuple[int, int, int | memoryview]  # number, wire type, value


@dataclass(frozen=True)
class Constant:
    """A tensor that the file holds, as far as a decision needs it."""

    name: str
    shape: tuple[int, ...]
    size: int  # bytes
    external: bool  # its values are in another file
    numbers: tuple[int, ...] | None  # its values, of a short int64 one


@dataclass(frozen=True)
class Node:
    """One operator; `depth` is 0 in the graph itself, 1 in the body of its loops."""

    domain: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    depth: int


@dataclass
class Outline:
    """A file's content. `odd` names parts that no task needs: functions, sparse tensors, training information."""

    nodes: list[Node] = field(default_factory=list)
    constants: list[Constant] = field(default_factory=list)
    domains: set[str] = field(default_factory=set)  # that the file imports
    odd: list[str] = field(default_factory=list)


def outline(data: bytes) -> Outline:
    """Return what is in the model `data`; raise TaskRefused when it is not one that can be read through."""
    found = Outline()
    try:
        for number, kind, value in _fields(memoryview(data)):
            if number == 7 and kind == _BYTES:
                _graph(value, found, 0)
            elif number == 8 and kind == _BYTES:
                found.domains.add(_text(value, 1) or "ai.onnx")
            elif number in (20, 25) and kind == _BYTES:
                found.odd.append("functions of its own" if number == 25 else "training information")
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise TaskRefused(f"the task's graph is not a model: {error}") from error
    if not found.nodes:
        raise TaskRefused("the task's graph is not a model: it has no operators")
    return found


def _graph(value: int | memoryview, found: Outline, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise TaskRefused(f"the task has graphs {depth} deep inside each other; {MAX_DEPTH} are allowed")
    for number, kind, part in _fields(value):
        if kind != _BYTES:
            continue
        if number == 1:
            _node(part, found, depth)
        elif number == 5:
            found.constants.append(_tensor(part))
        elif number == 15:
            found.odd.append("sparse tensors")


def _node(value: int | memoryview, found: Outline, depth: int) -> None:
    inputs, outputs, operator, domain = [], [], "", ""
    attributes = []
    for number, kind, part in _fields(value):
        if kind != _BYTES or isinstance(part, int):
            continue
        if number == 1:
            inputs.append(str(part, "utf-8"))
        elif number == 2:
            outputs.append(str(part, "utf-8"))
        elif number == 4:
            operator = str(part, "utf-8")
        elif number == 7:
            domain = str(part, "utf-8")
        elif number == 5:
            attributes.append(part)
    found.nodes.append(Node(domain or "ai.onnx", operator, tuple(inputs), tuple(outputs), depth))
    if len(found.nodes) > MAX_NODES:
        raise TaskRefused(f"the task has more than {MAX_NODES:,} operators")
    for part in attributes:
        _attribute(part, found, depth=depth, of=outputs[0] if outputs else "")


def _attribute(value: int | memoryview, found: Outline, *, depth: int, of: str) -> None:
    """Take the tensors and graphs of an attribute; a Constant's is known by the output it is `of`."""
    floats = 0
    for number, kind, part in _fields(value):
        if number in (7, 8) and kind in (_BYTES, _FIXED32, _VARINT):
            floats += 8 if isinstance(part, int) else len(part)
        if kind != _BYTES:
            continue
        if number in (5, 10):
            tensor = _tensor(part)
            found.constants.append(Constant(of, tensor.shape, tensor.size, tensor.external, tensor.numbers))
        elif number in (6, 11):
            _graph(part, found, depth + 1)
        elif number in (22, 23):
            found.odd.append("sparse tensors")
        elif number in (4, 9) and not isinstance(part, int):
            floats += len(part)
    if floats:
        found.constants.append(Constant(of, (), floats, False, None))


def _tensor(value: int | memoryview) -> Constant:
    name, dtype, held, external = "", 0, 0, False
    dims: list[int] = []
    numbers: list[int] = []
    for number, kind, part in _fields(value):
        if number == 1:
            dims += _ints(part)
        elif number == 2 and isinstance(part, int):
            dtype = part
        elif number == 8 and not isinstance(part, int):
            name = str(part, "utf-8")
        elif number == 13 or (number == 14 and part == 1):
            external = True
        elif kind in (_BYTES, _VARINT, _FIXED32, _FIXED64) and number in (4, 5, 6, 7, 9, 10, 11):
            held += 8 if isinstance(part, int) else len(part)
            if number == 7:
                numbers += _ints(part, most=16)
            elif number == 9 and not isinstance(part, int) and len(part) <= 128:  # int64, or not looked at
                numbers += [int.from_bytes(part[i : i + 8], "little", signed=True) for i in range(0, len(part), 8)]
    if any(size < 0 for size in dims):
        raise ValueError(f"constant {name!r} has the shape {tuple(dims)}")
    declared = math.prod(dims) * _ITEM_BYTES.get(dtype, 1)
    return Constant(name, tuple(dims), max(held, declared), external, tuple(numbers) if dtype == _INT64 else None)


def _ints(value: int | memoryview, most: int = 1 << 16) -> list[int]:
    """Return the integers of a field, which may be packed, as signed ones; no more than `most` of them."""
    if isinstance(value, int):
        return [_signed(value)]
    found: list[int] = []
    at = 0
    while at < len(value) and len(found) < most:
        number, at = _varint(value, at)
        found.append(_signed(number))
    return found


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _text(value: int | memoryview, wanted: int) -> str:
    """Return the last string of field `wanted` in the message `value`."""
    found = ""
    for number, kind, part in _fields(value):
        if number == wanted and kind == _BYTES and not isinstance(part, int):
            found = str(part, "utf-8")
    return found


def _fields(value: int | memoryview) -> Iterator[Field]:
    """Yield the fields of a message; raise ValueError when it is cut off or has what onnx.proto has not."""
    if isinstance(value, int):
        raise ValueError("a number where a message should be")
    at, end = 0, len(value)
    while at < end:
        key, at = _varint(value, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            item, at = _varint(value, at)
            yield number, kind, item
        else:
            size = {_FIXED64: 8, _FIXED32: 4}.get(kind, -1)
            if kind == _BYTES:
                size, at = _varint(value, at)
            if size < 0 or at + size > end or not number:
                raise ValueError(f"field {number} of wire type {kind} at byte {at} of {end} cannot be read")
            yield number, kind, value[at : at + size]
            at += size


def _varint(value: memoryview, at: int) -> tuple[int, int]:
    result = 0
    for shift in range(0, 70, 7):
        byte = value[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & (1 << 64) - 1, at
    raise ValueError(f"a number of more than 10 bytes at byte {at}")
