"""An .onnx file and the weights that lie beside it, as one proto: nothing outside its folder is ever opened.

    path -> read_source -> Source

A file, or a place it names for its weights, that is a device, a pipe or a folder is refused before anything opens it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto

from edgeml.errors import NotFound, UnsupportedModel
from edgeml.graph.stored import declared_bytes, tensors

MOST_BYTES = (1 << 31) - 1  # of one protobuf message, and so of a model with its weights
KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device file"),
    (stat.S_ISBLK, "a device file"),
)


@dataclass(frozen=True)
class Source:
    """A model as its file holds it, weights inside; `digest` is of the file and of every byte beside it that counts."""

    proto: ModelProto
    digest: str


def read_source(path: Path) -> Source:
    """Return the model in the file at `path` with its external weights read in.

    Raises NotFound, or UnsupportedModel when the file, or one that it points to, cannot be a model's.
    """
    content = _content(path)
    proto = ModelProto()
    try:
        proto.ParseFromString(content)
    except DecodeError as error:
        raise UnsupportedModel(
            f"{path.name} ({len(content):,} bytes) is not an ONNX model, or cut short: export it again"
        ) from error
    if _garbled(proto):
        raise UnsupportedModel(f"{path.name} ({len(content):,} bytes) is damaged: a name in it is no text")
    if not proto.graph.node or not proto.opset_import:
        raise UnsupportedModel(f"{path.name} ({len(content):,} bytes) holds no ONNX graph: export it again")
    digest = hashlib.sha256(content)
    for data in _gather(proto, path):
        digest.update(data)
    return Source(proto, digest.hexdigest())


def _content(path: Path) -> bytes:
    """Return the bytes of the model file itself."""
    try:
        status = path.stat()
    except OSError as error:
        raise NotFound(f"no model at {path}: {(error.strerror or str(error)).lower()}; check the path") from error
    if what := _no_file(status.st_mode):
        raise UnsupportedModel(f"{path} is {what}, not a model file: check the path")
    if status.st_size > MOST_BYTES:
        raise UnsupportedModel(
            f"{path.name} is {status.st_size:,} bytes, an ONNX file holds {MOST_BYTES:,} at most: "
            f"it is damaged, or no ONNX model"
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from error


def _gather(proto: ModelProto, path: Path) -> Iterator[bytes]:
    """Put the external data of every tensor into `proto`, in place; return each piece."""
    outside = [tensor for tensor in tensors(proto) if tensor.data_location == TensorProto.EXTERNAL]
    total = proto.ByteSize() + sum(declared_bytes(tensor) for tensor in outside)
    if total > MOST_BYTES:
        raise UnsupportedModel(
            f"{path.name} and its weights are {total:,} bytes, boards load one file of {MOST_BYTES:,} at most: "
            f"use a smaller model"
        )
    for tensor in outside:
        data = _Piece(tensor, path).read()
        tensor.raw_data = data
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        yield data


class _Piece:
    """The part of a file in which one tensor says its values are."""

    def __init__(self, tensor: TensorProto, path: Path) -> None:
        given = {entry.key: entry.value for entry in tensor.external_data}
        self.model, self.folder, self.tensor = path.name, path.resolve().parent, tensor
        self.location = given.get("location", "")
        self.offset = self._number(given.get("offset", "0"), "offset")
        self.length = self._number(given.get("length", str(declared_bytes(tensor))), "length")

    def read(self) -> bytes:
        """Return the bytes; raise UnsupportedModel, naming the tensor and the place, when they may not be read."""
        if self.length != (wanted := declared_bytes(self.tensor)):
            raise self._refuse(f"is {self.length:,} bytes there, its shape needs {wanted:,}")
        place = self._place()
        try:
            # a file that was swapped for a pipe meanwhile must not make the open wait
            file = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise self._refuse(f"cannot be read: {(error.strerror or str(error)).lower()}") from error
        with os.fdopen(file, "rb") as opened:
            status = os.fstat(file)
            if what := _no_file(status.st_mode):
                raise self._refuse(f"which is {what}")
            if self.offset + self.length > status.st_size:
                end = self.offset + self.length
                raise self._refuse(f"ends at byte {end:,}, the file has {status.st_size:,}: copy it whole")
            opened.seek(self.offset)
            return opened.read(self.length)

    def _place(self) -> Path:
        """Return the real path of the file; refuse one outside the model's folder, or that is no file."""
        location = self.location
        windows = PureWindowsPath(location)  # its rules take both kinds of slash apart
        if not location or "\0" in location:
            raise self._refuse("without a file name: export it again")
        if location.startswith("/") or windows.drive or windows.root:
            raise self._refuse("an absolute path: weights must lie beside the model")
        if ".." in windows.parts:
            raise self._refuse("outside the model's folder: weights must lie beside the model")
        try:
            place: Path = (self.folder / location).resolve(strict=True)
            mode = place.stat().st_mode
        except (OSError, RuntimeError) as error:  # RuntimeError: symlinks in a circle
            raise self._refuse("which is not there: copy it beside the model") from error
        if not place.is_relative_to(self.folder):
            raise self._refuse(f"a link to {place}, outside the model's folder: weights must lie beside the model")
        if what := _no_file(mode):
            raise self._refuse(f"which is {what}: weights must be in a file beside the model")
        return place

    def _number(self, text: str, what: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 19):
            raise self._refuse(f"with the {what} {text[:30]!r}, which is no number of bytes: export it again")
        return int(text)

    def _refuse(self, why: str) -> UnsupportedModel:
        return UnsupportedModel(
            f"{self.model}: its weight {self.tensor.name[:80]!r} is kept in {self.location[:120]!r}, {why}"
        )


def _garbled(message: Message) -> bool:
    """Say whether a text anywhere in `message` is none: protobuf hands such bytes on, and whatever reads them fails."""
    for field, found in message.ListFields():
        if field.type == field.TYPE_STRING and not _all_text(found if field.is_repeated else [found]):
            return True
        if field.type == field.TYPE_MESSAGE and any(map(_garbled, found if field.is_repeated else [found])):
            return True
    return False


def _all_text(found: Iterable[object]) -> bool:
    return all(isinstance(text, str) for text in found)


def _no_file(mode: int) -> str:
    """Return what a path of this mode is, "" when it is a plain file."""
    if stat.S_ISREG(mode):
        return ""
    return next((what for is_kind, what in KINDS if is_kind(mode)), "no plain file")
