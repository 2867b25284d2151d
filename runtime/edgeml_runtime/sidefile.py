"""A model's weights in a file beside it, so that the kernel maps them: what a full memory can drop and read again.

    model.onnx  -split->  model.onnx + weights.bin  -joined_digest->  the digest of the first

The bytes in front of, between and behind the weights stay as they were, so that the two files prove the digest which
was signed. Only the few fields of an .onnx file that lead to its weights are read (onnx.proto3: ModelProto.graph,
GraphProto.initializer, TensorProto.raw_data): no device needs the onnx package for it.
"""

from __future__ import annotations

import hashlib
import mmap
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgeml_runtime.errors import ModelRefused
from edgeml_runtime.wire.manifest import Settings

GRAPH, WEIGHTS = "model.onnx", "weights.bin"
LEAST_BYTES = 4096  # what is smaller stays: it saves nothing, and shapes must be known while loading
ALIGNMENT = 4096  # onnx.proto3 asks for it, so that a tensor can be mapped by itself
MODEL_GRAPH, GRAPH_INITIALIZER = 7, 5
RAW_DATA, EXTERNAL_DATA, DATA_LOCATION = 9, 13, 14  # of TensorProto
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types of protobuf

Rewrite = Callable[["Field"], list[memoryview] | None]
Weights = Callable[[int, int], memoryview]  # by offset and length


@dataclass(frozen=True)
class Field:
    """One field of a message, by where it stands in `data`."""

    data: memoryview
    number: int
    kind: int
    start: int  # of its tag
    body: int
    end: int

    def whole(self) -> memoryview:
        return self.data[self.start : self.end]

    def value(self) -> memoryview:
        return self.data[self.body : self.end]


def split(source: Path, folder: Path, *, least: int = LEAST_BYTES) -> bool:
    """Write `source` into `folder` as GRAPH and WEIGHTS; return False, with no file, when no weight is worth it.

    Raises ModelRefused when `source` is no model.
    """
    moved: list[tuple[int, memoryview]] = []
    with mapped(source) as data:
        pieces = rewritten(data, lambda tensor: _move(tensor, moved, least))
        if not moved or _digest(pieces, moved) != hashlib.sha256(data).hexdigest():
            return False  # written by something that does not write the shortest form: it could not be proven
        with (folder / WEIGHTS).open("wb") as stream:
            for offset, weights in moved:
                stream.seek(offset)
                stream.write(weights)
        with (folder / GRAPH).open("wb") as stream:
            stream.writelines(pieces)
    return True


def joined_digest(folder: Path) -> str:
    """Return the sha256 of the model that `split` made GRAPH and WEIGHTS in `folder` of; raise ModelRefused if none."""
    with mapped(folder / GRAPH) as data, mapped(folder / WEIGHTS) as weights:
        return _sha256(
            rewritten(data, lambda tensor: restored(tensor, lambda start, length: weights[start : start + length]))
        )


@contextmanager
def placed(model: str | Path | bytes, settings: Settings) -> Iterator[str | Path | bytes]:
    """Give `model` as `settings` want it loaded: with its weights beside it, for as long as the context lasts."""
    if not settings.external_data:
        yield model
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "whole.onnx" if isinstance(model, bytes) else Path(model)
        if isinstance(model, bytes):
            path.write_bytes(model)
        yield Path(folder) / GRAPH if split(path, Path(folder)) else path


def _move(tensor: Field, moved: list[tuple[int, memoryview]], least: int) -> list[memoryview] | None:
    """Return the pieces of `tensor` with a place in WEIGHTS instead of its bytes, None when it stays."""
    parts = list(fields(tensor.data, tensor.body, tensor.end))
    raw = [field for field in parts if field.number == RAW_DATA]
    elsewhere = any(field.number in (EXTERNAL_DATA, DATA_LOCATION) for field in parts)
    if len(raw) != 1 or elsewhere or len(raw[0].value()) < least:
        return None
    offset = -(-(moved[-1][0] + len(moved[-1][1])) // ALIGNMENT) * ALIGNMENT if moved else 0
    moved.append((offset, raw[0].value()))
    entries = {"location": WEIGHTS, "offset": str(offset), "length": str(len(raw[0].value()))}
    place = b"".join(_bytes(EXTERNAL_DATA, _bytes(1, k.encode()) + _bytes(2, v.encode())) for k, v in entries.items())
    place += _varint(DATA_LOCATION << 3 | VARINT) + b"\1"
    return [memoryview(place) if field is raw[0] else field.whole() for field in parts]


def restored(tensor: Field, weights: Weights) -> list[memoryview] | None:
    """Return the pieces of `tensor` with its bytes where `_move` put their place, None when it was not moved."""
    parts = list(fields(tensor.data, tensor.body, tensor.end))
    if not any(field.number == DATA_LOCATION for field in parts):
        return None
    place, pieces = {}, []
    for field in parts:
        if field.number == EXTERNAL_DATA:
            key, value = (bytes(entry.value()).decode() for entry in fields(field.data, field.body, field.end))
            place[key] = value
        elif field.number == DATA_LOCATION:
            start, length = int(place["offset"]), int(place["length"])
            pieces += framed(RAW_DATA, [weights(start, length)])
        else:
            pieces.append(field.whole())
    return pieces


def rewritten(data: memoryview, rewrite: Rewrite) -> list[memoryview]:
    """Return the pieces of the model in `data` after `rewrite` of every initializer of its main graph."""
    pieces: list[memoryview] = []
    try:
        for field in fields(data, 0, len(data)):
            if field.number != MODEL_GRAPH or field.kind != BYTES:
                pieces.append(field.whole())
                continue
            inner: list[memoryview] = []
            for part in fields(data, field.body, field.end):
                tensor = rewrite(part) if part.number == GRAPH_INITIALIZER and part.kind == BYTES else None
                inner += [part.whole()] if tensor is None else framed(GRAPH_INITIALIZER, tensor)
            pieces += framed(MODEL_GRAPH, inner)
    except (ValueError, KeyError, IndexError) as error:
        raise ModelRefused(f"a model file that is not a model ({error})") from error
    return pieces


def _digest(pieces: list[memoryview], moved: list[tuple[int, memoryview]]) -> str:
    """Return the digest that `pieces` will prove once they are on the disk, without writing them."""
    places = dict(moved)
    graph = memoryview(b"".join(pieces))
    return _sha256(rewritten(graph, lambda tensor: restored(tensor, lambda start, _length: places[start])))


def _sha256(pieces: list[memoryview]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def framed(number: int, pieces: list[memoryview]) -> list[memoryview]:
    return [memoryview(_varint(number << 3 | BYTES) + _varint(sum(map(len, pieces)))), *pieces]


def fields(data: memoryview, start: int, end: int) -> Iterator[Field]:
    """Give the fields of the message between `start` and `end`; raise ValueError where it is none."""
    while start < end:
        tag, body = read_varint(data, start, end)
        kind, size = tag & 7, 0
        if kind == VARINT:
            _, size = read_varint(data, body, end)
            size -= body
        elif kind == BYTES:
            size, body = read_varint(data, body, end)
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {start:,}")
        if body + size > end:
            raise ValueError(f"field {tag >> 3} at byte {start:,} is longer than what holds it")
        yield Field(data, tag >> 3, kind, start, body, body + size)
        start = body + size


def read_varint(data: memoryview, start: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while start < end and shift < 70:
        byte = data[start]
        value, shift, start = value | (byte & 0x7F) << shift, shift + 7, start + 1
        if byte < 0x80:
            return value, start
    raise ValueError(f"a number without an end at byte {start:,}")


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | BYTES) + _varint(len(value)) + value


@contextmanager
def mapped(path: Path) -> Iterator[memoryview]:
    """Give the file's bytes without reading them into memory."""
    if not path.stat().st_size:
        raise ModelRefused(f"{path.name}: a model file that is not a model (it is empty)")
    with path.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        yield memoryview(mapped)  # unmapped with the last view of it
