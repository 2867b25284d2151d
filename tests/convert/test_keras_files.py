"""Keras models and SavedModels come in under the names their makers gave."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from edgeml import convert
from edgeml.errors import UnsupportedModel, UserError
from edgeml_runtime.session import Session

pytestmark = pytest.mark.extras


def shapes(model) -> list[tuple[str, tuple[int, ...]]]:
    session = Session(model.data)
    return [(spec.name, spec.shape) for spec in (*session.inputs, *session.outputs)]


def layers_of(keras, name: str):
    """Return the layers of a small network of each kind that comes in."""
    make = keras.layers
    normalization = make.Normalization()
    normalization.adapt(np.random.default_rng(0).normal(3, 2, size=(50, 4)))
    return {
        "normalized": [keras.Input((4,)), normalization, make.Dense(3, activation="softmax")],
        "gelu": [keras.Input((4,)), make.Dense(3, activation="gelu"), make.Dense(2, activation="celu")],
        "images": [keras.Input((8, 8, 1)), make.Conv2D(4, 3), make.BatchNormalization(), make.Flatten(), make.Dense(2)],
        "sequences": [keras.Input((None, 3)), make.LSTM(5), make.Dense(1)],
        "words": [keras.Input((6,), dtype="int32"), make.Embedding(11, 4), make.GRU(5), make.Dense(1)],
    }[name]


@pytest.mark.parametrize("name", ["normalized", "gelu", "images", "sequences", "words"])
def test_networks_of_every_kind_agree_with_keras(name, keras, tmp_path):
    keras.Sequential(layers_of(keras, name)).save(tmp_path / "m.keras")
    assert "agrees with Keras on 8 rows" in convert.read_model(tmp_path / "m.keras").notes[-1]


@pytest.mark.parametrize("file", ["m.keras", "m.h5", "saved"])
def test_inputs_and_outputs_keep_their_names_and_order(file, keras, tmp_path):
    left, right = keras.Input((4,), name="left"), keras.Input((3,), name="right")
    both = keras.layers.Concatenate()([left, right])
    heads = [keras.layers.Dense(1, name="level")(both), keras.layers.Dense(2, name="kind")(left)]
    model = keras.Model([right, left], heads)
    model.export(str(tmp_path / file), verbose=False) if file == "saved" else model.save(tmp_path / file)
    found = shapes(convert.read_model(tmp_path / file))
    assert sorted(found[:2]) == [("left", (-1, 4)), ("right", (-1, 3))]
    outputs = ("output_0", "output_1") if file == "saved" else ("level", "kind")
    assert found[2:] == [(outputs[0], (-1, 1)), (outputs[1], (-1, 2))]


def test_what_onnx_cannot_say_is_refused_by_name(keras, tmp_path):
    lookup = keras.layers.IntegerLookup(vocabulary=[3, 5])
    keras.Sequential([keras.Input((1,), dtype="int64"), lookup]).save(tmp_path / "m.keras")
    with pytest.raises(
        UnsupportedModel, match="LookupTableFindV2, which ONNX cannot say: look words up before the model"
    ):
        convert.read_model(tmp_path / "m.keras")


def test_a_layer_of_the_makers_own_is_named_with_the_way_out_and_converts_live(keras, tmp_path):
    class Doubled(keras.layers.Layer):
        def call(self, rows):
            return rows * 2.0

    network = keras.Sequential([keras.Input((4,)), Doubled(), keras.layers.Dense(2)])
    network.save(tmp_path / "m.keras")
    with pytest.raises(UnsupportedModel, match=r"m\.keras holds Doubled, code of its maker.*from_keras"):
        convert.read_model(tmp_path / "m.keras")
    assert shapes(convert.from_keras(network))[0][1] == (-1, 4)


def test_code_inside_a_model_needs_the_users_word(keras, tmp_path):
    keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: x * 2)]).save(tmp_path / "m.keras")
    with pytest.raises(UserError, match="--trust"):
        convert.read_model(tmp_path / "m.keras")
    assert shapes(convert.read_model(tmp_path / "m.keras", trust=True))[0][1] == (-1, 4)


def test_damaged_files_and_models_without_inputs_are_refused_in_one_line(keras, tmp_path):
    keras.Sequential(layers_of(keras, "images")).save(tmp_path / "whole.keras")
    (tmp_path / "cut.keras").write_bytes((tmp_path / "whole.keras").read_bytes()[:2000])
    (tmp_path / "no.h5").write_bytes(b"hello")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"hello")
    keras.Sequential([keras.layers.Dense(3)]).save(tmp_path / "unbuilt.keras")
    for name in ("cut.keras", "no.h5", "saved", "unbuilt.keras"):
        with pytest.raises(UnsupportedModel, match=name) as caught:
            convert.read_model(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_missing_extra_says_what_to_install(tmp_path):
    (tmp_path / "m.keras").touch()
    code = (
        "import sys; sys.modules['keras'] = None\n"
        "from pathlib import Path; from edgeml import convert, errors\n"
        f"try: convert.read_model(Path({str(tmp_path / 'm.keras')!r}))\n"
        "except errors.MissingExtra as error: print(error)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told == "keras models need keras: pip install 'edgeml[tensorflow]'\n"
