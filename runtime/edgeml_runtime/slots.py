"""Two places for releases and a switch that a power cut cannot catch half-way.

    <root>/a, <root>/b     manifest.json, model.onnx, goldens.safetensors; `complete` written last;
                           weights.bin where the variant's settings want the weights beside the model
    <root>/current         symbolic link to the one that serves, replaced by one atomic rename

A release goes into the idle slot only, so the one that serves is never touched. A slot without
`complete` is half-installed: never activated, never rolled back to.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeml_runtime.download import free_bytes, sync_folder
from edgeml_runtime.errors import AgentRefused, BadDigest, MalformedMessage, StorageFull
from edgeml_runtime.sidefile import WEIGHTS, joined_digest, split
from edgeml_runtime.wire.manifest import Manifest, Settings, read_manifest
from edgeml_runtime.wire.signed import unverified

NAMES = ("a", "b")
MANIFEST, GRAPH, GOLDENS, COMPLETE = "manifest.json", "model.onnx", "goldens.safetensors", "complete"
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Slot:
    """One installed release. Read its manifest's signature again before serving: disks can lie."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def graph(self) -> Path:
        return self.path / GRAPH

    @property
    def goldens(self) -> Path:
        return self.path / GOLDENS

    @property
    def split(self) -> bool:
        """Whether the graph's weights lie in a file beside it."""
        return (self.path / WEIGHTS).is_file()

    @property
    def complete(self) -> bool:
        return (self.path / COMPLETE).is_file()

    @property
    def variant(self) -> str:
        """The name of the release's variant that is installed here."""
        return str(json.loads((self.path / COMPLETE).read_bytes())["variant"])

    @property
    def settings(self) -> Settings:
        """How this board runs what is installed here."""
        marks = json.loads((self.path / COMPLETE).read_bytes())
        return _settings(self.manifest(), variant=marks["variant"], board=marks.get("board", ""))

    def envelope(self) -> bytes:
        """Return the signed manifest as it arrived."""
        return (self.path / MANIFEST).read_bytes()

    def manifest(self) -> Manifest:
        """Return the manifest without looking at its signature."""
        return read_manifest(unverified(self.envelope()))

    def check(self) -> None:
        """Raise BadDigest when a file is not what the manifest promises."""
        manifest = self.manifest()
        promised = {v.graph.digest for v in manifest.variants if v.name == self.variant}
        _compare(GRAPH, joined_digest(self.path) if self.split else _digest(self.graph), promised)
        _compare(GOLDENS, _digest(self.goldens), {manifest.goldens.digest})


class Slots:
    """The two slots under `root`. One process at a time may install and switch."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in NAMES:
            (root / name).mkdir(parents=True, exist_ok=True)

    @property
    def current(self) -> Slot | None:
        """The slot that serves, if any does."""
        link = self.root / "current"
        slot = Slot(self.root / link.readlink()) if link.is_symlink() else None
        return slot if slot and slot.complete else None

    @property
    def previous(self) -> Slot | None:
        """The other slot, if it holds a whole release to go back to."""
        slot = self._idle()
        return slot if self.current and slot.complete else None

    def install(self, manifest_bytes: bytes, files: Mapping[str, Path], *, variant: str = "", board: str = "") -> Slot:
        """Put a release into the idle slot, ready to be activated; the current slot is not touched.

        `files` are model.onnx and goldens.safetensors by name; `variant` is found by the graph's
        digest when not given; `board` says with which settings it runs. Raises BadDigest when they are not the
        manifest's, StorageFull when there is no room; the idle slot is empty then.
        """
        manifest = read_manifest(unverified(manifest_bytes))
        if missing := {GRAPH, GOLDENS} - files.keys():
            raise MalformedMessage(f"release {manifest.release}: {', '.join(sorted(missing))} is not among its files")
        digest = _digest(files[GRAPH])
        names = [v.name for v in manifest.variants if v.graph.digest == digest and variant in ("", v.name)]
        if not names:
            raise BadDigest(f"release {manifest.release}: no variant {variant or 'at all'} has graph {digest[:12]}")
        _compare(GOLDENS, _digest(files[GOLDENS]), {manifest.goldens.digest})
        slot = self._idle()
        try:
            self._empty(slot)
            marks = {"variant": names[0], "board": board}
            apart = _settings(manifest, **marks).external_data and split(files[GRAPH], slot.path)
            linked = (GOLDENS,) if apart else (GRAPH, GOLDENS)
            _fill(slot, manifest_bytes, files={name: files[name] for name in linked})
            _mark(slot, marks)
        except OSError as error:
            self._empty(slot)
            if error.errno not in _FULL:
                raise
            size = sum(path.stat().st_size for path in files.values())
            raise StorageFull(
                f"release {manifest.release} needs {size:,} bytes and {self.root} has {free_bytes(self.root):,} free; "
                f"the release that serves was not touched: free some space and deploy again"
            ) from error
        return slot

    def activate(self, slot: Slot) -> None:
        """Let `slot` serve from now on; raise AgentRefused when it is not whole, StorageFull without room."""
        if slot.path.parent != self.root or not slot.complete:
            raise AgentRefused(f"slot {slot.name} of {slot.path.parent} holds no whole release: install one first")
        fresh = self.root / "current.new"
        fresh.unlink(missing_ok=True)
        try:
            fresh.symlink_to(slot.name)
            fresh.replace(self.root / "current")
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise StorageFull(f"{self.root}: no room for the link to slot {slot.name}; nothing was switched") from error
        sync_folder(self.root)

    def rollback(self) -> Slot | None:
        """Go back to the previous release and return its slot; None, and no change, when there is none.

        The release left behind is not kept: going back twice must not bring it up again.
        """
        failed, previous = self.current, self.previous
        if previous is None or failed is None:
            return None
        self.activate(previous)
        self._empty(failed)
        return previous

    def _idle(self) -> Slot:
        current = self.current
        return Slot(self.root / next(name for name in NAMES if current is None or name != current.name))

    def _empty(self, slot: Slot) -> None:
        """Take away the mark first, so that a crash in between leaves a slot that says it is not whole."""
        (slot.path / COMPLETE).unlink(missing_ok=True)
        sync_folder(slot.path)
        for path in slot.path.iterdir():
            path.unlink()


def _fill(slot: Slot, manifest_bytes: bytes, *, files: Mapping[str, Path]) -> None:
    _write(slot.path / MANIFEST, manifest_bytes)
    for name, source in files.items():
        try:
            os.link(source, slot.path / name)  # the blob store keeps no second copy
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                raise
            shutil.copyfile(source, slot.path / name)
    for path in slot.path.iterdir():
        if path.name != MANIFEST:
            _sync(path)
    sync_folder(slot.path)


def _settings(manifest: Manifest, *, variant: str, board: str) -> Settings:
    """Return how `board` runs `variant`, which need not be the one that was chosen for it."""
    if manifest.variant_for(board).name == variant:
        return manifest.session_for(board)
    return next(one.session for one in manifest.variants if one.name == variant)


def _mark(slot: Slot, marks: Mapping[str, str]) -> None:
    fresh = slot.path / (COMPLETE + ".new")
    _write(fresh, json.dumps(dict(marks)).encode())
    fresh.replace(slot.path / COMPLETE)
    sync_folder(slot.path)
    sync_folder(slot.path.parent)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _compare(name: str, found: str, digests: Iterable[str]) -> None:
    wanted = set(digests)
    if found not in wanted:
        promised = ", ".join(sorted(digest[:12] for digest in wanted)) or "nothing"
        raise BadDigest(f"{name}: sha256 {found[:12]}, but the manifest promises {promised}: download it again")
