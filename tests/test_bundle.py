"""What ships: only what passed, with goldens that a device can hold it to."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgeml import graph
from edgeml.artifacts import FP32, Choice, Parity, Rows, Variant, Verdict
from edgeml.bundle import MAX_GOLDENS, assemble, with_settings
from edgeml.errors import DataError, NotFound, VerificationError
from edgeml.quantize import quantize
from edgeml_runtime.session import Session
from edgeml_runtime.wire import blocks, tensors
from edgeml_runtime.wire.manifest import Feature, Settings, read_manifest
from tests import networks

FEATURES = tuple(Feature(name=f"f{i}", kind="numeric") for i in range(networks.FEATURES))


def a_verdict(recipe: str, *, passed: bool = True) -> Verdict:
    return Verdict(recipe, passed, "fails: 3 flips", Parity(9, 0.0, 0, 0), "accuracy", {}, 0.0, 0.0)


def variants():
    made = quantize(networks.an_mlp(), networks.some_rows(), ["int8-static-u8s8"])
    return [item for item in made if isinstance(item, Variant)]


def a_bundle(**changes):
    given = {
        "name": "digits",
        "task": "classification",
        "features": FEATURES,
        "classes": ("a", "b", "c"),
        "variants": variants(),
        "verdicts": [a_verdict(FP32), a_verdict("int8-static-u8s8")],
        "choices": [Choice("raspberry-pi-4", "int8-static-u8s8", True, "", {}), Choice("other", "", False, "", {})],
        "goldens": networks.some_rows(),
        "lineage": {"data": "d" * 64},
    }
    return assemble(**(given | changes))


def replayed(bundle, model: bytes, variant: str) -> tuple[float, int]:
    """Return how far `model` is from the goldens of `variant`, and how many labels differ."""
    arrays = tensors.unpack(bundle.blobs[bundle.manifest.goldens.digest])
    inputs = {name.removeprefix("input."): array for name, array in arrays.items() if name.startswith("input.")}
    answers = Session(model).run(inputs)
    flips = int((answers["label"] != arrays[f"{variant}.label"]).sum())
    return float(np.abs(answers["probabilities"] - arrays[f"{variant}.probabilities"]).max()), flips


def test_a_bundle_holds_every_blob_its_manifest_names_and_no_other():
    bundle = a_bundle()
    named = {variant.graph.digest for variant in bundle.manifest.variants} | {bundle.manifest.goldens.digest}
    assert bundle.blobs.keys() == named
    assert all(blocks.digest_of(data) == digest for digest, data in bundle.blobs.items())


def test_the_manifest_survives_its_own_wire_form():
    manifest = a_bundle().manifest
    assert read_manifest(manifest.to_document()) == manifest
    assert manifest.boards == {"raspberry-pi-4": "int8-static-u8s8"}
    assert manifest.variant_for("a board nobody chose for").name == FP32
    assert [spec.name for spec in manifest.inputs] == ["numeric"]


def test_the_release_id_is_the_content_and_not_the_time():
    early, late = (a_bundle(created=time) for time in ("2026-01-01T00:00:00+00:00", "2026-02-02T00:00:00+00:00"))
    assert early.manifest.created != late.manifest.created
    assert early.manifest.release == late.manifest.release
    assert early.blobs == late.blobs
    assert len(early.manifest.release) == 12
    assert a_bundle(lineage={"data": "e" * 64}).manifest.release != early.manifest.release


@pytest.mark.parametrize("recipe", [FP32, "int8-static-u8s8"])
def test_every_variant_reproduces_its_own_goldens(recipe):
    bundle = a_bundle()
    chosen = next(variant for variant in bundle.manifest.variants if variant.name == recipe)
    off, flips = replayed(bundle, bundle.blobs[chosen.graph.digest], recipe)
    assert (off, flips) == (0.0, 0)


@pytest.mark.parametrize("recipe", [FP32, "int8-static-u8s8"])
def test_another_model_is_outside_the_bounds_of_every_variant(recipe):
    bundle = a_bundle()
    bounds = next(variant.bounds for variant in bundle.manifest.variants if variant.name == recipe)
    off, flips = replayed(bundle, networks.an_mlp(seed=3).data, recipe)
    assert off > bounds.max_abs
    assert flips > bounds.label_flips


def test_the_rounding_of_another_core_is_inside_the_bounds_of_fp32():
    bundle = a_bundle()
    bounds = next(variant.bounds for variant in bundle.manifest.variants if variant.name == FP32)
    nearly = networks.an_mlp(scale=1 + 1e-6)  # ten times a float's rounding in every weight of the first layer
    off, flips = replayed(bundle, nearly.data, FP32)
    assert 0 < off <= bounds.max_abs
    assert flips <= bounds.label_flips


def test_goldens_are_few_and_none_of_them_is_a_tie():
    bundle = a_bundle(goldens=networks.some_rows(5000))
    arrays = tensors.unpack(bundle.blobs[bundle.manifest.goldens.digest])
    best = np.sort(arrays["fp32.probabilities"], axis=1)
    assert len(arrays["input.numeric"]) == MAX_GOLDENS
    assert (best[:, -1] - best[:, -2]).min() > 1e-3


def test_a_model_that_is_torn_everywhere_may_flip_everywhere():
    undecided = graph.set_initializers(networks.an_mlp(), {"w2": np.zeros((networks.HIDDEN, 3), np.float32)})
    bundle = a_bundle(variants=[Variant(undecided, FP32, "")], verdicts=[a_verdict(FP32)])
    assert bundle.manifest.variants[0].bounds.label_flips == MAX_GOLDENS
    assert a_bundle().manifest.variants[0].bounds.label_flips == 0


def test_a_tensor_model_records_its_outputs_as_they_are():
    images = Rows({"image": np.random.default_rng(0).random((40, 3, 16, 16), dtype=np.float32)})
    only = [Variant(networks.a_conv_net(), FP32, "")]
    bundle = a_bundle(task="tensor", variants=only, verdicts=[a_verdict(FP32)], goldens=images, features=(), classes=())
    arrays = tensors.unpack(bundle.blobs[bundle.manifest.goldens.digest])
    assert arrays["fp32.scores"].shape == (MAX_GOLDENS, 5)


@pytest.mark.parametrize(("batch", "count"), [(1, MAX_GOLDENS), (5, 5)])
def test_a_fixed_batch_gets_goldens_it_can_replay(batch, count):
    only = [Variant(networks.an_mlp(batch=batch), FP32, "")]
    bundle = a_bundle(variants=only, verdicts=[a_verdict(FP32)])
    arrays = tensors.unpack(bundle.blobs[bundle.manifest.goldens.digest])
    assert len(arrays["input.numeric"]) == len(arrays["fp32.label"]) == count


def test_text_features_are_recorded_as_text():
    node = helper.make_node("LabelEncoder", ["categorical"], ["prediction"], domain="ai.onnx.ml")
    node.attribute.extend([helper.make_attribute("keys_strings", ["a"]), helper.make_attribute("values_floats", [2.0])])
    inputs, outputs = {"categorical": (TensorProto.STRING, ["n", 1])}, {"prediction": (TensorProto.FLOAT, ["n", 1])}
    model = graph.serialize(networks.a_graph([node], inputs=inputs, outputs=outputs, ml=3), source="t")
    rows = Rows({"categorical": np.array([["a"], ["\u00e9"]], dtype=object)})
    bundle = a_bundle(task="regression", variants=[Variant(model, FP32, "")], verdicts=[a_verdict(FP32)], goldens=rows)
    arrays = tensors.unpack(bundle.blobs[bundle.manifest.goldens.digest])
    assert arrays["input.categorical"].tolist() == [["a"], ["\u00e9"]]
    assert arrays["fp32.prediction"][0, 0] == 2


@pytest.mark.parametrize(
    ("verdicts", "message"),
    [([], "fp32 cannot be released: it was not verified"), ([a_verdict(FP32, passed=False)], "fails: 3 flips")],
)
def test_a_variant_without_a_passed_verdict_is_never_released(verdicts, message):
    with pytest.raises(VerificationError, match=message):
        a_bundle(variants=variants()[:1], verdicts=verdicts)


def test_no_variant_and_no_goldens_are_refused():
    with pytest.raises(VerificationError, match="no variant"):
        a_bundle(variants=[])
    with pytest.raises(DataError, match="no held-out rows"):
        a_bundle(goldens=networks.some_rows(0))


def test_other_settings_are_another_release_of_the_same_graphs():
    before, slow = a_bundle(), Settings(external_data=True, prepacking=False)
    after = with_settings(before, {"int8-static-u8s8": slow})
    assert after.manifest.release != before.manifest.release and after.blobs == before.blobs
    assert [variant.session for variant in after.manifest.variants] == [Settings(), slow]
    assert read_manifest(after.manifest.to_document()) == after.manifest
    assert with_settings(before, {}).manifest.release == before.manifest.release


def test_one_board_may_run_its_variant_in_its_own_way():
    four = Settings(threads=4)
    manifest = with_settings(a_bundle(), {"int8-static-u8s8": four}, board="raspberry-pi-4").manifest
    assert manifest.session_for("raspberry-pi-4") == four
    assert manifest.session_for("raspberry-pi-5") == Settings()
    with pytest.raises(DataError, match="runs int8-static-u8s8, of which no settings were found"):
        with_settings(a_bundle(), {FP32: four}, board="raspberry-pi-4")
    with pytest.raises(NotFound, match="no variant 'int4' in digits"):
        with_settings(a_bundle(), {"int4": four})
