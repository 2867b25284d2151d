"""Signed releases of small classifiers, and their blobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeml_runtime.session import Session
from edgeml_runtime.wire import signed, tensors
from edgeml_runtime.wire.manifest import Bounds, Feature, Manifest, ReleaseVariant, blob_of
from tests.runtime.graphs import mlp

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
CLASSES = tuple(str(digit) for digit in range(10))


@dataclass(frozen=True)
class Release:
    """A signed release and the blobs it names."""

    manifest: Manifest
    envelope: bytes
    blobs: tuple[bytes, ...]


def a_release(
    name: str,
    graph: bytes | None = None,
    *,
    key: Ed25519PrivateKey = KEY,
    goldens_of: bytes | None = None,
    padding: int = 0,
    model: str = "digits",
    classes: tuple[str, ...] = CLASSES,
    others: Mapping[str, bytes] | None = None,
) -> Release:
    """Return a release of `graph` (a small MLP by default) whose goldens come from `goldens_of` (itself by default).

    `others` are more variants, that answer the same. `padding` makes the graph's bytes longer without changing what
    it computes.
    """
    graph = mlp(seed=int.from_bytes(name.encode(), "big") % 2**31) if graph is None else graph
    if padding:  # an unknown field of the protobuf, as long as needed
        graph += _unknown_field(padding, seed=len(name))
    session = Session(graph)
    (spec,) = session.inputs
    rows = np.random.default_rng(0).normal(size=(16, *spec.shape[1:])).astype(np.float32)
    answers = Session(goldens_of or graph).run({spec.name: rows})
    graphs = {"fp32": graph, **(others or {})}
    named = {f"{variant}.{output}": value for variant in graphs for output, value in answers.items()}
    goldens = tensors.pack({f"input.{spec.name}": rows, **named})
    manifest = Manifest(
        model=model,
        release=name,
        task="classification",
        created="2030-01-01T00:00:00Z",
        inputs=session.inputs,
        outputs=session.outputs,
        features=tuple(Feature(name=f"p{i}", kind="numeric") for i in range(spec.shape[1])),
        classes=classes,
        variants=tuple(
            ReleaseVariant(name=variant, graph=blob_of(data), bounds=Bounds(max_abs=1e-4, label_flips=0))
            for variant, data in graphs.items()
        ),
        default_variant="fp32",
        boards={},
        goldens=blob_of(goldens),
    )
    return Release(manifest, signed.sign(manifest.to_document(), key), (*graphs.values(), goldens))


def _unknown_field(size: int, *, seed: int) -> bytes:
    """Return protobuf field 1000 (length-delimited) with `size` random bytes, which readers skip."""
    tag, length = 1000 << 3 | 2, size
    out = bytearray()
    for number in (tag, length):
        while number > 127:
            out.append(number & 127 | 128)
            number >>= 7
        out.append(number)
    return bytes(out) + np.random.default_rng(seed).bytes(size)
