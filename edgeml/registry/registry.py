"""Releases and the bytes behind them, and the requests other processes leave for the server."""

from __future__ import annotations

import difflib
import functools
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeml.artifacts import Bundle
from edgeml.errors import NotFound, UserError
from edgeml.federated.strategy import strategy
from edgeml.registry import keys, tables
from edgeml.registry.benches import Benches
from edgeml.registry.blobs import Blobs
from edgeml.registry.fleet import Fleet
from edgeml.registry.journals import Journals
from edgeml.registry.records import (
    DeviceRecord,
    FederationOptions,
    FederationRecord,
    Heartbeat,
    Release,
    RolloutOptions,
    RolloutRecord,
)
from edgeml.registry.selector import select
from edgeml_runtime.wire import MalformedMessage, signed
from edgeml_runtime.wire.manifest import Manifest, read_manifest
from edgeml_runtime.wire.plain import from_plain

T = TypeVar("T")
MIN_DIGEST = 2  # digits of a release id that name it; `model@3` of digits only is its number first


class Registry:
    """`index.db`, `blobs/` and `keys/` under one root. `fleet` is the server's side of the index.

    `benches` are the benchmarks on devices and what they measured, `journals` the federations under way.
    """

    def __init__(self, root: Path, engine: sa.Engine) -> None:
        self.root, self._engine = root, engine
        self.fleet, self.benches, self._blobs = Fleet(engine), Benches(engine), Blobs(root / "blobs")
        self.journals = Journals(engine)

    @classmethod
    def open(cls, root: Path) -> Registry:
        """Return the registry at `root`, made if absent."""
        try:
            root.mkdir(parents=True, exist_ok=True)
            return cls(root.resolve(), tables.open_index(root / "index.db"))
        except (OSError, sa.exc.DatabaseError) as error:
            said = getattr(error, "orig", error)
            raise UserError(
                f"no registry can be opened at {root}: {said}; make room there or choose another"
            ) from error

    def close(self) -> None:
        self._engine.dispose()

    # --- releases

    def add_release(self, bundle: Bundle, *, summary: Mapping[str, Any], run_dir: str) -> Release:
        """Keep `bundle`, its manifest signed, and return its release; a release that is known is returned as it is."""
        manifest = bundle.manifest
        for data in bundle.blobs.values():
            self._blobs.put(data)
        envelope = signed.sign(manifest.to_document(), self.signing_key())
        row = {
            "model": manifest.model,
            "release": manifest.release,
            "created": time.time(),
            "manifest": self._blobs.put(envelope),
            "manifest_bytes": len(envelope),
            "summary": dict(summary),
            "run_dir": run_dir,
        }
        table = tables.releases
        with self._engine.begin() as connection:
            where = (table.c.model == manifest.model) & (table.c.release == manifest.release)
            if connection.execute(sa.select(table.c.number).where(where)).first() is None:
                last = sa.select(sa.func.max(table.c.number)).where(table.c.model == manifest.model)
                number = (connection.execute(last).scalar() or 0) + 1
                connection.execute(sa.insert(table).values(**row, number=number))
            return _release(connection.execute(sa.select(table).where(where)).mappings().one())

    def has_release(self, model: str, release: str) -> bool:
        """Say whether `release` (the whole id) of `model` is here."""
        return any(found.release == release for found in self.releases(model))

    def releases(self, model: str | None = None) -> list[Release]:
        """Return releases, newest first; of `model` only when it is given."""
        table = tables.releases
        query = sa.select(table).order_by(table.c.created.desc(), table.c.number.desc())
        if model is not None:
            query = query.where(table.c.model == model)
        with tables.reader(self._engine) as connection:
            return [_release(row) for row in connection.execute(query).mappings()]

    def find(self, name: str) -> Release:
        """Return the release called `model` (its newest), `model@3` (by number) or `model@ab12` (start of its id).

        Raises NotFound naming the nearest or the known ones.
        """
        model, _, which = name.partition("@")
        found = self.releases(model)
        if not found:
            raise NotFound(f"no model {model!r}; {self._known(model)}")
        if not which:
            return found[0]
        chosen = [release for release in found if str(release.number) == which]
        if not chosen and len(which) >= MIN_DIGEST:
            chosen = [release for release in found if release.release.startswith(which)]
        if len(chosen) != 1:
            listed = ", ".join(f"{model}@{release.number} ({release.release})" for release in found[:8])
            wrong = "names no release" if not chosen else f"names {len(chosen)} releases, give more digits"
            raise NotFound(f"{name!r} {wrong}; known: {listed}")
        return chosen[0]

    def bundle_of(self, release: Release) -> Bundle:
        """Return the bundle of `release`, its manifest verified with this registry's key and every blob by digest."""
        manifest = self.manifest_of(release)
        digests = {variant.graph.digest for variant in manifest.variants} | {manifest.goldens.digest}
        return Bundle(manifest, {digest: self._blobs.get(digest) for digest in sorted(digests)})

    def manifest_of(self, release: Release) -> Manifest:
        """Return the verified manifest of `release`."""
        return read_manifest(signed.verify(self._blobs.get(release.manifest), [self.public_key_hex()]))

    # --- bytes and keys

    def put_blob(self, data: bytes) -> str:
        """Keep `data` and return its digest."""
        return self._blobs.put(data)

    def blob(self, digest: str) -> bytes:
        """Return the bytes of `digest`, checked."""
        return self._blobs.get(digest)

    def blob_path(self, digest: str) -> Path:
        return self._blobs.path(digest)

    def signing_key(self) -> Ed25519PrivateKey:
        """Return the key that signs manifests, assignments and tasks; it is made at first use."""
        return self._key

    @functools.cached_property
    def _key(self) -> Ed25519PrivateKey:
        return keys.signing_key(self.root / "keys" / "signing.key")

    def public_key_hex(self) -> str:
        """Return what a device is told to trust."""
        return signed.public_hex(self._key)

    # --- requests to the server

    def request_rollout(self, model: str, release: str | None, selector: str, **options: float) -> str:
        """Ask the server to ship a release of `model` (the newest when None) and return the rollout's id.

        `options` are those of RolloutOptions. Raises NotFound for a release or device that is not known,
        FleetError when `selector` is nobody.
        """
        found = self.find(f"{model}@{release}" if release else model)
        boards = {device.id: device.board for device in self.devices()}
        chosen = _options(RolloutOptions, options)
        return self.fleet.add_rollout(found, selector, devices=select(selector, boards), options=chosen)

    def rollout(self, rollout_id: str) -> RolloutRecord:
        return self.fleet.rollout(rollout_id)

    def request_federation(self, model: str, options: Mapping[str, Any]) -> str:
        """Ask the server for federated rounds over `model` (or `model@release`) and return the federation's id.

        `options` are those of FederationOptions. Raises UserError for options that no federation has, such as an
        unknown strategy: here, since a record that is in the index must stay readable whatever it asks for.
        """
        chosen = _options(FederationOptions, options)
        strategy(chosen.strategy)
        return self.fleet.add_federation(self.find(model), chosen)

    def federation(self, federation_id: str) -> FederationRecord:
        return self.fleet.federation(federation_id)

    def devices(self) -> list[DeviceRecord]:
        return self.fleet.devices()

    def server_alive(self, now: float | None = None) -> Heartbeat:
        """Return the server's heartbeat; raise ServerUnavailable, with the way out, when it is not alive."""
        return self.fleet.server_alive(now)

    def _known(self, model: str) -> str:
        known = sorted({release.model for release in self.releases()})
        if not known:
            return f"the registry at {self.root} is empty: run `edgeml build` first"
        near = difflib.get_close_matches(model, known, n=1)
        return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known[:8])}"


def _options(kind: type[T], given: Mapping[str, Any]) -> T:
    try:
        return from_plain(kind, dict(given))
    except MalformedMessage as error:
        raise UserError(re.sub(r"^\w+Options", "option", str(error))) from error


def _release(row: Any) -> Release:
    return Release(**dict(row))
