"""Weights beside the model: the same answers, the same digest, far less memory; and what is no model is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from edgeml_runtime import serving
from edgeml_runtime.errors import BadDigest, ModelRefused
from edgeml_runtime.measure import cold_start
from edgeml_runtime.probe import probe
from edgeml_runtime.session import Session
from edgeml_runtime.sidefile import GRAPH, WEIGHTS, joined_digest, placed, split
from edgeml_runtime.slots import GOLDENS, Slot, Slots
from edgeml_runtime.wire import tensors
from edgeml_runtime.wire.manifest import Bounds, Manifest, ReleaseVariant, Settings, TensorSpec, blob_of
from edgeml_runtime.wire.signed import sign
from tests.runtime.graphs import FLOAT, mlp, model

ROWS = np.random.default_rng(5).normal(size=(20, 64)).astype(np.float32)
APART = Settings(external_data=True, prepacking=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "split"
    target.mkdir()
    return target


def a_slot(tmp_path: Path, graph: bytes, *, board: str = "small") -> Slot:
    """Return an installed release of `graph` whose variant wants its weights beside it on the board `small`."""
    answers = Session(graph).run({"numeric": ROWS})
    goldens = tensors.pack({"input.numeric": ROWS} | {f"fp32.{name}": array for name, array in answers.items()})
    files = {"model.onnx": tmp_path / "graph", GOLDENS: tmp_path / "goldens"}
    files["model.onnx"].write_bytes(graph)
    files[GOLDENS].write_bytes(goldens)
    variant = ReleaseVariant(name="fp32", graph=blob_of(graph), bounds=Bounds(max_abs=1e-4, label_flips=0))
    manifest = Manifest(
        model="digits",
        release="r1",
        task="classification",
        created="2030-01-01T00:00:00Z",
        inputs=(TensorSpec(name="numeric", dtype="float32", shape=(-1, 64)),),
        outputs=(TensorSpec(name="label", dtype="int64", shape=(-1,)),),
        variants=(variant,),
        default_variant="fp32",
        boards={},
        sessions={"small": APART},
        goldens=blob_of(goldens),
    )
    envelope = sign(manifest.to_document(), Ed25519PrivateKey.generate())
    return Slots(tmp_path / "slots").install(envelope, files, board=board)


@pytest.mark.parametrize("hidden", [64, 300, 2048])
def test_a_split_model_answers_alike_and_proves_the_digest_of_the_whole(
    tmp_path: Path, folder: Path, hidden: int
) -> None:
    whole = tmp_path / "whole.onnx"
    whole.write_bytes(mlp(hidden=hidden))
    assert split(whole, folder)
    assert joined_digest(folder) == hashlib.sha256(whole.read_bytes()).hexdigest()
    assert (folder / GRAPH).stat().st_size < 6000 + 4 * hidden, "small tensors stay, large ones do not"
    for name, answer in Session(whole, Settings(prepacking=False)).run({"numeric": ROWS}).items():
        np.testing.assert_array_equal(Session(folder / GRAPH, APART).run({"numeric": ROWS})[name], answer)


def test_a_model_of_small_weights_stays_whole(tmp_path: Path, folder: Path) -> None:
    whole = tmp_path / "whole.onnx"
    whole.write_bytes(mlp(features=4, hidden=4))
    assert not split(whole, folder)
    assert not list(folder.iterdir())
    with placed(whole, APART) as path:
        assert path == whole


@settings(deadline=None, max_examples=60)
@given(
    widths=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    least=st.integers(1, 4000),
    seed=st.integers(0, 2**32 - 1),
)
def test_splitting_any_weights_at_any_size_can_be_undone(
    tmp_path_factory: pytest.TempPathFactory, *, widths: list[int], least: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    weights = {f"w{i}": draw.normal(size=(1, width, 3)).astype(np.float32) for i, width in enumerate(widths)}
    nodes = [helper.make_node("Concat", ["x", *weights], ["y"], axis=1)]
    data = model(nodes, [("x", FLOAT, [1, "n", 3])], outputs=[("y", FLOAT, [1, "m", 3])], weights=weights)
    folder = tmp_path_factory.mktemp("any")
    (folder / "whole").write_bytes(data)
    if split(folder / "whole", folder, least=least):
        assert joined_digest(folder) == hashlib.sha256(data).hexdigest()
    else:
        assert all(array.nbytes < least for array in weights.values())


@settings(deadline=None, max_examples=150)
@given(place=st.integers(0, 10**6), change=st.integers(1, 255), cut=st.integers(0, 10**6))
def test_damaged_models_are_refused_or_kept_but_never_changed(
    tmp_path_factory: pytest.TempPathFactory, *, place: int, change: int, cut: int
) -> None:
    data = bytearray(mlp(hidden=48))
    data[place % len(data)] ^= change
    data = data[: 1 + cut % len(data)] if cut % 2 else data
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "whole").write_bytes(data)
    try:
        done = split(folder / "whole", folder)
    except ModelRefused:
        return
    assert not done or joined_digest(folder) == hashlib.sha256(data).hexdigest()


def test_a_device_keeps_serves_and_checks_weights_beside_the_model(tmp_path: Path) -> None:
    graph = mlp(hidden=512)
    slot = a_slot(tmp_path, graph)
    assert slot.split and slot.settings == APART
    assert slot.graph.stat().st_size < len(graph) / 4
    assert probe(slot).ok
    loaded = serving.load(slot)
    wanted = Session(graph).run({"numeric": ROWS})["label"]
    np.testing.assert_array_equal(loaded.session.run({"numeric": ROWS})["label"], wanted)


def test_another_board_runs_the_same_release_in_its_own_way(tmp_path: Path) -> None:
    slot = a_slot(tmp_path, mlp(hidden=512), board="large")
    assert not slot.split and slot.settings == Settings()
    assert serving.load(slot).session.threads == 1


@pytest.mark.parametrize("name", [WEIGHTS, GRAPH])
def test_a_disk_that_lies_about_either_file_is_noticed(tmp_path: Path, name: str) -> None:
    slot = a_slot(tmp_path, mlp(hidden=512))
    data = bytearray((slot.path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (slot.path / name).write_bytes(data)
    with pytest.raises((BadDigest, ModelRefused)):
        serving.load(slot)


def test_weights_beside_the_model_take_no_memory_of_their_own(models: SimpleNamespace) -> None:
    model = models.mlp(features=1024, hidden=4096)  # 16.8 MB of weights
    feeds = {"numeric": np.ones((1, 1024), np.float32)}
    usual, apart = (cold_start(model, feeds, starts=1, settings=one) for one in (Settings(), APART))
    assert apart.anonymous_mb < usual.anonymous_mb - 10
