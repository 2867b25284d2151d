"""Bundles and caches on a real disk, with the damage that disks do."""

from __future__ import annotations

import pickle
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from edgeml.artifacts import Bundle
from edgeml.errors import NotFound, VerificationError
from edgeml.files import BLOBS, MANIFEST, Cache, read_bundle, write_atomic, write_bundle
from edgeml_runtime.wire import signed
from edgeml_runtime.wire.manifest import Bounds, Manifest, ReleaseVariant, TensorSpec, blob_of

GRAPH, GOLDENS = b"graph " * 20_000, b"goldens"


def a_bundle() -> Bundle:
    graph, goldens = blob_of(GRAPH), blob_of(GOLDENS)
    manifest = Manifest(
        model="digits",
        release="ab12ab12ab12",
        task="classification",
        created="2026-01-02T03:04:05Z",
        inputs=(TensorSpec(name="numeric", dtype="float32", shape=(-1, 64)),),
        outputs=(TensorSpec(name="label", dtype="int64", shape=(-1,)),),
        variants=(ReleaseVariant(name="fp32", graph=graph, bounds=Bounds(max_abs=1e-4, label_flips=0)),),
        default_variant="fp32",
        boards={"raspberry-pi-4": "fp32"},
        goldens=goldens,
    )
    return Bundle(manifest, {graph.digest: GRAPH, goldens.digest: GOLDENS})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", a_bundle(), Ed25519PrivateKey.generate())


def test_a_bundle_comes_back_as_it_was_written(folder: Path) -> None:
    assert read_bundle(folder) == a_bundle()


def test_the_signer_of_a_bundle_can_be_insisted_on(tmp_path: Path) -> None:
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    folder = write_bundle(tmp_path / "bundle", a_bundle(), key)
    assert read_bundle(folder, trusted=[signed.public_hex(key)]) == a_bundle()
    with pytest.raises(VerificationError, match=r"signed by .* but this side trusts"):
        read_bundle(folder, trusted=[signed.public_hex(other)])


@given(position=st.integers(0, len(GRAPH) - 1), bit=st.integers(0, 7))
def test_any_flipped_bit_of_a_blob_is_found(tmp_path_factory: pytest.TempPathFactory, position: int, bit: int) -> None:
    bundle = a_bundle()
    folder = write_bundle(tmp_path_factory.mktemp("flip"), bundle, Ed25519PrivateKey.generate())
    digest = bundle.manifest.variants[0].graph.digest
    damaged = bytearray(GRAPH)
    damaged[position] ^= 1 << bit
    (folder / BLOBS / digest).write_bytes(damaged)
    with pytest.raises(VerificationError, match=f"blob {digest[:12]}.*120,000 bytes"):
        read_bundle(folder)


def test_a_truncated_blob_is_named_with_both_sizes(folder: Path) -> None:
    path = folder / BLOBS / a_bundle().manifest.goldens.digest
    path.write_bytes(GOLDENS[:3])
    with pytest.raises(VerificationError, match=f"blob {path.name[:12]}.*: 3 bytes .* promises 7 bytes"):
        read_bundle(folder)


def test_a_missing_blob_is_named(folder: Path) -> None:
    path = folder / BLOBS / a_bundle().manifest.goldens.digest
    path.unlink()
    with pytest.raises(VerificationError, match=rf"blob {path.name[:12]} \(7 bytes\) is missing"):
        read_bundle(folder)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no bundle at"):
        read_bundle(tmp_path)


def test_a_manifest_that_is_no_manifest_is_refused(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(b"{}")
    with pytest.raises(VerificationError, match="not a signed document"):
        read_bundle(folder)


def test_an_atomic_write_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file"
    write_atomic(target, b"old")
    write_atomic(target, b"new")
    assert target.read_bytes() == b"new"
    assert [path.name for path in target.parent.iterdir()] == ["file"]


def test_a_write_that_cannot_end_leaves_the_old_file(tmp_path: Path) -> None:
    folder = tmp_path / "target"
    (folder / "inside").mkdir(parents=True)  # a folder with something in it cannot be replaced by a file
    with pytest.raises(OSError):
        write_atomic(folder, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert stat.S_ISDIR(folder.stat().st_mode)


def test_a_stage_is_computed_once_per_key(tmp_path: Path) -> None:
    calls: list[str] = []
    cache = Cache(tmp_path)

    def compute(name: str) -> str:
        calls.append(name)
        return name

    assert not cache.has("train", "k1")
    assert [cache.stage("train", key, lambda key=key: compute(key)) for key in ("k1", "k1", "k2")] == ["k1", "k1", "k2"]
    assert calls == ["k1", "k2"]
    assert cache.has("train", "k1")


def test_refreshing_computes_again_and_keeps_the_new_result(tmp_path: Path) -> None:
    assert Cache(tmp_path).stage("train", "k", lambda: 1) == 1
    assert Cache(tmp_path, refresh=True).stage("train", "k", lambda: 2) == 2
    assert Cache(tmp_path).stage("train", "k", lambda: 3) == 2


@pytest.mark.parametrize("damage", [b"", b"not a pickle", pickle.dumps(1)[:-2], b"cedgeml.nowhere\nNothing\n."])
def test_an_unreadable_entry_is_computed_again_with_a_warning(tmp_path: Path, damage: bytes) -> None:
    warnings: list[str] = []
    cache = Cache(tmp_path, warn=warnings.append)
    cache.stage("train", "k", lambda: "good")
    next(tmp_path.glob("train-*.pkl")).write_bytes(damage)
    assert cache.stage("train", "k", lambda: "again") == "again"
    assert len(warnings) == 1
    assert "stage train is unreadable" in warnings[0]
    assert cache.stage("train", "k", lambda: "third") == "again"
