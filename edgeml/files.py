"""Artifacts on disk: atomic writes, bundles as folders, and a cache of pipeline stages.

    bundle/manifest.json     the manifest in its signed envelope
    bundle/blobs/<sha256>    every graph and the goldens, named by their bytes

Whatever is read is checked against its digest; whatever is written is whole or absent after a power cut.
"""

from __future__ import annotations

import os
import pickle
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeml.artifacts import Bundle
from edgeml.errors import NotFound, UserError, VerificationError
from edgeml_runtime.wire import WireError, blocks, signed
from edgeml_runtime.wire.manifest import Blob, Manifest, read_manifest

T = TypeVar("T")
MANIFEST, BLOBS = "manifest.json", "blobs"


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a crash leaves the old file or the new one, never half of either."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def require_room(folder: Path, needed: int, *, what: str) -> None:
    """Raise UserError, with the numbers, unless the disk of `folder` has `needed` bytes for `what`."""
    there = next(parent for parent in (folder.resolve(), *folder.resolve().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(
            f"{what} needs about {needed / 1e6:,.1f} MB on disk, {there} has {free / 1e6:,.1f} MB free: "
            f"make room, or choose another folder with -o; nothing was written"
        )


def write_bundle(path: Path, bundle: Bundle, key: Ed25519PrivateKey) -> Path:
    """Write `bundle` as the folder `path`, its manifest signed by `key`, and return the folder.

    The manifest is written last: a folder that has one is complete.
    """
    for blob in blobs_of(bundle.manifest):
        write_atomic(path / BLOBS / blob.digest, bundle.blobs[blob.digest])
    write_atomic(path / MANIFEST, signed.sign(bundle.manifest.to_document(), key))
    return path


def read_bundle(path: Path, *, trusted: Iterable[str] | None = None) -> Bundle:
    """Return the bundle in the folder `path`, every blob checked against the manifest.

    With `trusted` public keys (hex) the manifest's signature is checked too. Raises NotFound when it
    is no bundle, and VerificationError naming the blob when its bytes are not the promised ones.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise NotFound(f"no bundle at {path}: {MANIFEST} is missing; give the folder that `edgeml build` printed")
    try:
        envelope = file.read_bytes()
        document = signed.unverified(envelope) if trusted is None else signed.verify(envelope, trusted)
        manifest = read_manifest(document)
    except WireError as error:
        raise VerificationError(f"{file} cannot be accepted: {error}") from error
    return Bundle(manifest, {blob.digest: _read_blob(path / BLOBS, blob) for blob in blobs_of(manifest)})


def blobs_of(manifest: Manifest) -> tuple[Blob, ...]:
    """Return every blob that `manifest` names, each once."""
    named = [variant.graph for variant in manifest.variants] + [manifest.goldens]
    return tuple({blob.digest: blob for blob in named}.values())


def _read_blob(folder: Path, blob: Blob) -> bytes:
    try:
        data = (folder / blob.digest).read_bytes()
    except FileNotFoundError as error:
        raise VerificationError(f"blob {blob.digest[:12]} ({blob.size:,} bytes) is missing from {folder}") from error
    found = blocks.digest_of(data)
    if found != blob.digest:
        raise VerificationError(
            f"blob {blob.digest[:12]} of {folder}: {len(data):,} bytes with digest {found[:12]}, "
            f"but the manifest promises {blob.size:,} bytes; it was truncated or changed, copy or build it again"
        )
    return data


class Cache:
    """Results of pipeline stages by the digest of what went in: `<root>/<stage>-<key>.pkl`.

    Entries are pickles, so the folder must be the user's own; it lies inside the project. Deleting
    it costs time and nothing else.
    """

    def __init__(self, root: Path, *, refresh: bool = False, warn: Callable[[str], None] = warnings.warn) -> None:
        self._root, self._refresh, self._warn = root, refresh, warn  # refresh: write every entry anew, read none

    def has(self, name: str, key: str) -> bool:
        """Say whether stage `name` was done for `key`; the entry is not read."""
        return self._path(name, key).is_file()

    def stage(self, name: str, key: str, compute: Callable[[], T], *, whole: Callable[[T], bool] | None = None) -> T:
        """Return the cached result of stage `name` for `key`; compute and keep it when there is none.

        A result that is not `whole`, an interrupted search, is returned but not kept.

        An entry that cannot be read (cut short, or of another version) is computed again, with a warning.
        """
        path = self._path(name, key)
        if path.is_file() and not self._refresh:
            try:
                value: T = pickle.loads(path.read_bytes())
                return value
            except Exception as error:  # unpickling runs foreign constructors: anything can come out of them
                self._warn(f"the cached stage {name} is unreadable ({type(error).__name__}: {error}); doing it again")
        value = compute()
        if whole is not None and not whole(value):
            return value
        write_atomic(path, pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL))
        return value

    def _path(self, name: str, key: str) -> Path:
        return self._root / f"{name}-{key[:16]}.pkl"
