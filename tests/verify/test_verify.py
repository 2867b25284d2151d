"""The gate: what passes, what fails, and the numbers it says it with."""

import dataclasses

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgeml import graph
from edgeml.artifacts import FP32, Answers, OnnxModel, Rows, Variant
from edgeml.errors import DataError, UserError, VerificationError
from edgeml.metrics import METRICS, drop, rarer_class
from edgeml.quantize import quantize
from edgeml.verify import Evidence, Limits, compare, edge_cases, resampled_drops, run_answers, verify
from edgeml.verify.bootstrap import OF_LABELS
from tests import networks


def a_verdict(model: OnnxModel, *, reference: Answers, rows: Rows, recipe: str = FP32, **changes):
    limits = Limits(**{name: changes.pop(name) for name in ("max_drop", "tensor_rms") if name in changes})
    options = {"metric": "accuracy", "task": "classification", "limits": limits} | changes
    return verify(Variant(model, recipe, "source"), rows, reference, **options)


def labelled(count: int = 300) -> Rows:
    """Return rows whose target is what the network itself says: it is right on all of them."""
    rows = networks.some_rows(count)
    return Rows(rows.inputs, run_answers(networks.an_mlp(), rows, "classification").labels)


def test_fp32_that_answers_like_its_source_passes_with_the_numbers():
    rows = labelled()
    reference = run_answers(networks.an_mlp(), rows, "classification")
    verdict = a_verdict(networks.an_mlp(), reference=reference, rows=rows)
    assert verdict.passed
    assert (verdict.parity.rows, verdict.parity.label_flips, verdict.parity.max_abs) == (300, 0, 0.0)
    assert verdict.metrics["accuracy"] == 1.0
    assert (verdict.accuracy_drop, verdict.accuracy_drop_upper) == (0.0, 0.0)
    assert "0 label flips in 300 rows" in verdict.reason


def test_fp32_that_is_another_model_fails():
    rows = labelled()
    reference = run_answers(networks.an_mlp(), rows, "classification")
    verdict = a_verdict(networks.an_mlp(seed=5), reference=reference, rows=rows)
    assert not verdict.passed
    assert verdict.parity.label_flips > 0
    assert verdict.reason.startswith("fails")


def test_fp32_a_thousandth_off_fails_although_no_label_flips():
    rows = labelled()
    reference = run_answers(networks.an_mlp(), rows, "classification")
    reference = dataclasses.replace(reference, scores=reference.scores + 1e-3)
    verdict = a_verdict(networks.an_mlp(), reference=reference, rows=rows)
    assert (verdict.passed, verdict.parity.label_flips) == (False, 0)


def test_flips_at_ties_of_the_source_are_counted_apart_and_forgiven():
    scores = np.array([[0.5, 0.5, 0.0], [0.2, 0.8, 0.0], [0.4, 0.4 + 5e-7, 0.2]])
    found = compare(Answers(np.array([1, 0, 0]), scores), Answers(np.array([0, 1, 1]), scores))
    assert (found.label_flips, found.ties, found.max_abs) == (1, 2, 0.0)


def test_int8_passes_when_the_bound_on_its_drop_is_within_the_limit():
    rows = labelled(1000)
    reference = run_answers(networks.an_mlp(), rows, "classification")
    variant = quantize(networks.an_mlp(), rows, ["int8-static-u8s8"])[1]
    loose = a_verdict(variant.model, reference=reference, rows=rows, recipe=variant.recipe, max_drop=0.2)
    tight = a_verdict(variant.model, reference=reference, rows=rows, recipe=variant.recipe, max_drop=0.0)
    assert loose.passed
    assert loose.parity.label_flips > 0
    assert loose.accuracy_drop == pytest.approx(loose.parity.label_flips / 1000)
    assert loose.accuracy_drop < loose.accuracy_drop_upper < 0.2
    assert not tight.passed
    assert "0 is allowed" in tight.reason
    assert (loose.missed, tight.missed) == (0.0, tight.accuracy_drop_upper)


def test_a_drop_within_the_limit_with_a_bound_beyond_it_fails_and_asks_for_more_rows():
    rows = labelled(100)
    reference = run_answers(networks.an_mlp(), rows, "classification")
    rows.target[0] = reference.labels[0] = (reference.labels[0] + 1) % 3  # where the source is right, the variant not
    verdict = a_verdict(networks.an_mlp(), reference=reference, rows=rows, recipe="int8", max_drop=0.011)
    assert verdict.accuracy_drop == pytest.approx(0.01)
    assert verdict.accuracy_drop_upper > 0.011
    assert not verdict.passed
    assert "more held-out rows" in verdict.reason


def test_the_vectorised_bootstrap_agrees_with_resampling_by_hand():
    draw = np.random.default_rng(0)
    target = draw.integers(0, 3, 200)
    mine, theirs = (Answers(draw.integers(0, 3, 200), draw.random((200, 3))) for _ in range(2))
    found = resampled_drops("accuracy", target, mine, reference=theirs, resamples=50, seed=7)
    index = np.random.default_rng(7).integers(0, 200, (50, 200))
    by_hand = [(theirs.labels[i] == target[i]).mean() - (mine.labels[i] == target[i]).mean() for i in index]
    assert np.allclose(found, by_hand)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("metric", sorted(OF_LABELS))
def test_every_metric_of_labels_is_resampled_to_what_its_table_says(metric, classes):
    draw = np.random.default_rng(0)
    target = np.sort(draw.integers(0, classes, 60) * draw.integers(0, 2, 60))  # unbalanced
    mine, theirs = (Answers(draw.integers(0, classes, 60), draw.random((60, classes))) for _ in range(2))
    found = resampled_drops(metric, target, mine, reference=theirs, resamples=30, seed=7)
    positive = {"positive": rarer_class(target)} if classes == 2 else {}
    by_hand = [
        drop(metric, *(METRICS[metric].score(target[i], a.labels[i], a.scores[i], **positive) for a in (theirs, mine)))
        for i in np.random.default_rng(7).integers(0, 60, (30, 60))
    ]
    assert np.allclose(found, by_hand)


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_every_metric_has_a_seeded_bootstrap_oriented_so_that_worse_is_positive(metric):
    draw = np.random.default_rng(0)
    if METRICS[metric].task == "regression":
        target = draw.standard_normal(120)
        good, bad = (Answers(None, (target + noise * draw.standard_normal(120))[:, None]) for noise in (0.1, 2.0))
    else:
        target = draw.integers(0, 2, 120)
        sure = np.eye(2)[target] * 0.8 + 0.1
        off = np.where(draw.random(120)[:, None] < 0.4, sure[:, ::-1], sure)
        good, bad = (Answers(scores.argmax(axis=1), scores) for scores in (sure, off))
    drops = resampled_drops(metric, target, bad, reference=good, resamples=40, seed=3)
    assert np.nanmin(drops) > 0
    assert np.array_equal(
        drops, resampled_drops(metric, target, bad, reference=good, resamples=40, seed=3), equal_nan=True
    )
    assert np.allclose(resampled_drops(metric, target, good, reference=good, resamples=10), 0)


def test_an_error_in_target_units_is_limited_by_a_share_of_the_target_spread():
    rows = networks.some_rows(200, target=False)
    rows = Rows(rows.inputs, 3000 * rows.inputs["numeric"].sum(axis=1))
    exact, near = networks.a_regressor(slope=3000), networks.a_regressor(slope=3000, noise=10)
    reference = run_answers(exact, rows, "regression")
    options = {"rows": rows, "reference": reference, "recipe": "int8", "task": "regression", "metric": "rmse"}
    assert a_verdict(near, **options, max_drop=0.01).passed  # 10 off, with a spread near 2400
    assert not a_verdict(near, **options, max_drop=0.001).passed


def test_nan_in_the_answers_fails_whatever_the_limit():
    rows = labelled()
    reference = run_answers(networks.an_mlp(), rows, "classification")
    broken = graph.set_initializers(networks.an_mlp(), {"b2": np.full(3, np.nan, np.float32)})
    verdict = a_verdict(broken, reference=reference, rows=rows, recipe="int8", max_drop=1.0)
    assert not verdict.passed
    assert "NaN" in verdict.reason


def test_a_tensor_model_without_labels_is_judged_by_its_distance_alone():
    images = Rows({"image": np.random.default_rng(0).random((64, 3, 16, 16), dtype=np.float32)})
    model = networks.a_conv_net()
    reference = run_answers(model, images, "tensor")
    variant = quantize(model, images, ["int8-static-u8s8"])[1]
    options = {"rows": images, "reference": reference, "task": "tensor"}
    same = a_verdict(model, **options)
    assert same.passed
    assert (same.metric, dict(same.metrics)) == ("", {})
    int8 = a_verdict(variant.model, **options, recipe=variant.recipe)
    assert "no labels" in int8.reason
    assert int8.accuracy_drop == 0.0


def test_a_tensor_model_with_labels_is_scored_by_its_best_output():
    images = Rows({"image": np.random.default_rng(0).random((64, 3, 16, 16), dtype=np.float32)})
    reference = run_answers(networks.a_conv_net(), images, "tensor")
    rows = Rows(images.inputs, reference.scores.argmax(axis=1))
    verdict = a_verdict(networks.a_conv_net(), rows=rows, reference=reference, task="tensor")
    assert (verdict.metric, verdict.metrics["accuracy"]) == ("accuracy", 1.0)


def test_a_fixed_batch_answers_for_every_row():
    rows = networks.some_rows(37)
    fixed = run_answers(networks.an_mlp(batch=5), rows, "classification")
    free = run_answers(networks.an_mlp(), rows, "classification")
    assert np.array_equal(fixed.labels, free.labels)
    assert np.allclose(fixed.scores, free.scores, atol=1e-6)


def test_more_rows_than_one_batch_are_all_answered_in_order():
    rows = networks.some_rows(700)
    answers = run_answers(networks.an_mlp(), rows, "classification")
    last = run_answers(networks.an_mlp(), rows.take(slice(690, 700)), "classification")
    assert np.allclose(answers.scores[690:], last.scores, atol=1e-6)


def test_outputs_of_another_task_are_named():
    with pytest.raises(VerificationError, match=r"regression model answers with 'prediction'.*label, probabilities"):
        run_answers(networks.an_mlp(), networks.some_rows(3), "regression")


def test_an_output_without_the_rows_first_is_refused():
    node = helper.make_node("ReduceMean", ["x"], ["y"], keepdims=1)
    types = {"inputs": {"x": (TensorProto.FLOAT, ["n", 2])}, "outputs": {"y": (TensorProto.FLOAT, [1, 1])}}
    model = graph.serialize(networks.a_graph([node], **types), source="t")
    with pytest.raises(VerificationError, match="1 entries for 4 rows"):
        run_answers(model, Rows({"x": np.ones((4, 2), np.float32)}), "tensor")


def test_answers_for_other_rows_are_refused_with_both_counts():
    reference = run_answers(networks.an_mlp(), networks.some_rows(10), "classification")
    with pytest.raises(DataError, match="10 answers of the source for 20 rows"):
        a_verdict(networks.an_mlp(), reference=reference, rows=networks.some_rows(20))


def test_no_rows_are_refused():
    with pytest.raises(DataError, match="no rows"):
        run_answers(networks.an_mlp(), networks.some_rows(0), "classification")


def test_an_unknown_metric_is_refused():
    rows = labelled(20)
    reference = run_answers(networks.an_mlp(), rows, "classification")
    with pytest.raises(UserError, match="acuracy"):
        a_verdict(networks.an_mlp(), reference=reference, rows=rows, metric="acuracy")


def test_a_variant_with_fewer_scores_fails_with_both_widths():
    rows = networks.some_rows(20)
    reference = run_answers(networks.an_mlp(), rows, "classification")
    narrow = dataclasses.replace(reference, scores=reference.scores[:, :2])
    verdict = a_verdict(networks.an_mlp(), reference=narrow, rows=rows)
    assert not verdict.passed
    assert "3 scores a row, its source with 2" in verdict.reason


def test_every_column_gets_its_edge_cases_and_strings_get_theirs():
    rows = Rows(
        {"numeric": np.array([[0, 5], [2, np.nan]], np.float32), "categorical": np.array([["a"], ["a"]], object)}
    )
    cases = edge_cases(rows)
    told = dict(zip(cases.kinds, zip(*(list(cases.rows.inputs[n]) for n in rows.inputs), strict=True), strict=True))
    assert len(cases.rows) == 2 * 9 + 6
    assert told["numeric[0]: low end"][0].tolist() == [0, 5]
    assert told["numeric[0]: above"][0][0] == pytest.approx(2.2)
    assert np.isnan(told["numeric[1]: missing"][0][1])
    assert told["categorical[0]: text ''"][1].tolist() == [""]
    assert not any("missing" in kind for kind in edge_cases(rows, missing=False).kinds)
    assert cases.rows.inputs["numeric"].dtype == np.float32


def test_an_edge_case_on_which_fp32_differs_fails_it_and_is_shown():
    rows, model = labelled(), networks.an_mlp()
    reference = run_answers(model, rows, "classification")
    cases = edge_cases(rows)
    theirs = run_answers(model, cases.rows, "classification")
    off = theirs.scores.copy()
    off[cases.kinds.index("numeric[2]: missing")] = 1 / 3
    evidence = Evidence("edge cases", cases.rows, Answers(theirs.labels, off), cases.kinds)
    verdict = a_verdict(model, reference=reference, rows=rows, more=[evidence])
    assert not verdict.passed
    assert verdict.reason.endswith("worst at edge case numeric[2]: missing")
    assert verdict.worst[0].source == pytest.approx((1 / 3,) * 3)
    assert verdict.parity.rows == len(rows) + len(cases.rows)


def test_huge_numbers_must_be_answered_but_need_not_agree_to_the_last_digit():
    rows, model = labelled(), networks.an_mlp()
    reference = run_answers(model, rows, "classification")
    cases = edge_cases(rows)
    theirs = run_answers(model, cases.rows, "classification")
    off = theirs.scores.copy()
    off[cases.kinds.index("numeric[2]: huge")] = 1 / 3
    evidence = Evidence("edge cases", cases.rows, Answers(theirs.labels, off), cases.kinds)
    assert a_verdict(model, reference=reference, rows=rows, more=[evidence]).passed
