"""Every gradient rule against finite differences of the operator's own kernel on stock onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgeml.autodiff import RULES
from edgeml.autodiff.backward import FLAT, gradients
from edgeml.autodiff.builder import GraphBuilder
from edgeml.autodiff.rules import REFUSED, vjp
from edgeml.errors import UnsupportedModel
from edgeml_runtime.session import ModelRefused, Session
from edgeml_runtime.vetting import Allowed, vet
from tests.autodiff.case import Case, ints, normal, positive
from tests.autodiff.cases import CASES, FLAT_CASES
from tests.autodiff.cases_turns import MAPPED, reading, scans
from tests.autodiff.graphs import a_model, gradient_graph, gradient_model

EVERY_CASE = [(op_type, i) for op_type, cases in CASES.items() for i in range(len(cases))]


def test_every_rule_has_a_case() -> None:
    assert CASES.keys() == RULES.keys()


def finite_differences(session: Session, feeds: dict[str, np.ndarray], seed: np.ndarray, *, h: float) -> dict[str, Any]:
    """Return d(sum(y * seed)) / dx by central differences."""

    def value(name: str, moved: np.ndarray) -> float:
        return float(np.sum(session.run({**feeds, name: moved})["y"].astype(np.float64) * seed))

    slopes = {}
    for name, array in feeds.items():
        slope = np.zeros(array.shape)
        for index in np.ndindex(*array.shape):
            up, down = array.copy(), array.copy()
            up[index] += h
            down[index] -= h
            slope[index] = (value(name, up) - value(name, down)) / (float(up[index]) - float(down[index]))
        slopes[name] = slope
    return slopes


@pytest.mark.parametrize("symbolic", [False, True], ids=["sizes-known", "sizes-unknown"])
@pytest.mark.parametrize(("op_type", "index"), EVERY_CASE, ids=lambda value: str(value))
def test_every_vjp_rule_agrees_with_finite_differences(op_type: str, index: int, symbolic: bool) -> None:
    case = CASES[op_type][index]
    opset = case.opsets[index % len(case.opsets)]
    try:
        check(op_type, case, dtype=case.dtype, symbolic=symbolic, opset=opset)
    except ModelRefused:  # no float64 kernel
        check(op_type, case, dtype=np.float32, symbolic=symbolic, opset=opset)


def check(op_type: str, case: Case, *, dtype: type, symbolic: bool, opset: int) -> None:
    model = a_model(op_type, case, dtype=dtype, symbolic=symbolic, opset=opset)
    session = Session(model.SerializeToString())
    feeds = {name: array.astype(dtype) for name, array in case.inputs.items()}
    y = session.run(feeds)["y"]
    seed = np.random.default_rng(1).normal(size=y.shape).astype(y.dtype)
    exact = gradient_model(model, list(feeds), seed).run({**feeds, "seed": seed})
    rounded = np.float32 in (dtype, y.dtype)
    h, tolerance = (1e-2, 2e-3) if rounded else (1e-6, 1e-6)
    for name, slope in finite_differences(session, feeds, seed, h=h).items():
        assert exact[f"d.{name}"].shape == slope.shape
        assert exact[f"d.{name}"].dtype == feeds[name].dtype
        np.testing.assert_allclose(exact[f"d.{name}"], slope, rtol=tolerance, atol=tolerance * (1 + abs(slope).max()))


@pytest.mark.parametrize("op_type", CASES)
def test_devices_run_what_the_rules_write_and_what_they_are_for(op_type: str) -> None:
    for case in CASES[op_type]:
        for opset in case.opsets:
            model = a_model(op_type, case, dtype=np.float32, symbolic=True, opset=opset)
            for graph in (model, gradient_graph(model, list(case.inputs), np.ones(1, np.float32))):
                vet(graph.SerializeToString(), Allowed())


def test_a_missing_rule_names_the_operator_the_node_and_the_file_to_edit() -> None:
    case = Case({"x": normal(3, 4)})
    model = a_model("Det", case, dtype=np.float32, symbolic=False, opset=18)
    model.graph.node[0].name = "wave"
    with pytest.raises(UnsupportedModel, match=r"Det \(node 'wave'\).*@vjp\('Det'\) in edgeml/autodiff/rules\.py"):
        gradients(GraphBuilder(model), {"y": "seed"}, ["x"])


def test_a_second_rule_for_one_operator_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="Relu already has a VJP rule"):
        vjp("Relu")(RULES["Tanh"])


@pytest.mark.parametrize("op_type", FLAT_CASES)
def test_steps_are_flat_and_let_no_gradient_through(op_type: str) -> None:
    case = FLAT_CASES[op_type][0]
    assert op_type in FLAT
    model = a_model(op_type, case, dtype=np.float32, symbolic=False, opset=21)
    session, feeds = Session(model.SerializeToString()), {"x": case.inputs["x"].astype(np.float32)}
    seed = np.ones(session.run(feeds)["y"].shape, np.float32)
    assert not finite_differences(session, feeds, seed, h=1e-3)["x"].any()
    assert gradients(GraphBuilder(model), {"y": "seed"}, ["x"]) == {"x": None}


REFUSALS: list[tuple[str, Case, str]] = [
    ("Einsum", Case({"a": normal(3, 3)}, attributes={"equation": "ii->i"}), "'ii->i' has a diagonal"),
    (
        "Einsum",
        Case({"a": normal(1, 2, 3), "b": normal(4, 3, 2)}, attributes={"equation": "...ij,...jk"}),
        "broadcasts a size of 1",
    ),
    (
        "MaxPool",
        Case({"x": normal(1, 1, 4, 4)}, attributes={"kernel_shape": [2, 2], "storage_order": 1}),
        "storage_order",
    ),
    (
        "ScatterElements",
        Case({"x": normal(3), "u": normal(2)}, ("x", "i", "u"), {"i": ints(0, 2)}, {"reduction": "max"}),
        "reduction 'max'",
    ),
    (
        "Resize",
        Case(
            {"x": normal(1, 1, 4, 4)},
            ("x", "roi", "", "n"),
            {"roi": np.array([0, 0, 0, 0, 1, 1, 0.5, 1], np.float32), "n": ints(1, 1, 2, 2)},
            {"coordinate_transformation_mode": "tf_crop_and_resize"},
        ),
        "tf_crop_and_resize",
    ),
    (
        "GridSample",
        Case({"x": normal(1, 1, 4, 4), "grid": normal(1, 2, 2, 2)}, attributes={"mode": "bicubic"}),
        "bicubic",
    ),
    (
        "NegativeLogLikelihoodLoss",
        Case({"x": normal(2, 3), "w": positive(3)}, ("x", "t", "w"), {"t": ints(0, 1)}),
        "'w'",
    ),
    ("Scan", Case({"x": normal(2, 3)}, attributes=scans(MAPPED, sequences=1, scan_input_axes=[1])), "another axis"),
    ("Scan", Case({"x": normal(2, 3)}, attributes=scans(reading("outside"), sequences=1)), "'outside' from outside"),
]


@pytest.mark.parametrize(
    ("op_type", "case", "message"), REFUSALS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_a_rule_refuses_it_refuses_by_name(op_type: str, case: Case, message: str) -> None:
    assert REFUSED[op_type]
    model = a_model(op_type, case, dtype=np.float32, symbolic=False, opset=18)
    with pytest.raises(UnsupportedModel, match=rf"operator {op_type} \(node 'y'\).*{message}"):
        gradients(GraphBuilder(model), {"y": "seed"}, list(case.inputs))


def test_equal_nodes_and_equal_constants_are_made_once() -> None:
    g = GraphBuilder(a_model("Relu", Case({"x": normal(2)}), dtype=np.float32, symbolic=False, opset=18))
    assert g.op("Exp", "x") == g.op("Exp", "x") != g.op("Log", "x")
    assert g.const(1.0) == g.const(1) != g.const(1, dtype=np.int64)
    assert len(g.nodes) == 2 and len(g.constants) == 2
