"""Every gradient rule against finite differences of the operator's own kernel on stock onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper

from edgeml.autodiff import RULES
from edgeml.autodiff.backward import gradients, live
from edgeml.autodiff.builder import GraphBuilder
from edgeml.autodiff.rules import vjp
from edgeml.errors import UnsupportedModel
from edgeml_runtime.session import ModelRefused, Session
from tests.autodiff.case import Case, normal, positive
from tests.autodiff.cases import CASES

EVERY_CASE = [(op_type, i) for op_type, cases in CASES.items() for i in range(len(cases))]


def test_every_rule_has_a_case() -> None:
    assert CASES.keys() == RULES.keys()


def a_model(op_type: str, case: Case, *, dtype: type, symbolic: bool, opset: int) -> ModelProto:
    """One node from graph inputs to `y`; with `symbolic`, nothing is known of any size."""
    of = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    inputs = []
    for name, array in case.inputs.items():
        dims = [f"{name}{i}" for i in range(array.ndim)] if symbolic and name not in case.known else array.shape
        inputs.append(helper.make_tensor_value_info(name, of, dims))
    constants = [np.asarray(v, dtype) if np.asarray(v).dtype.kind == "f" else v for v in case.constants.values()]
    named = [numpy_helper.from_array(np.asarray(v), n) for n, v in zip(case.constants, constants, strict=True)]
    node = helper.make_node(
        op_type, case.order or tuple(case.inputs), ["y", *(f"y{i}" for i in range(1, case.outputs))], **case.attributes
    )
    output = helper.make_empty_tensor_value_info("y")
    graph = helper.make_graph([node], "one", inputs, [output], named)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def gradient_model(model: ModelProto, wrt: list[str], seed: np.ndarray) -> Session:
    g = GraphBuilder(model)
    found = gradients(g, {"y": "seed"}, wrt)
    assert all(found.values()), f"no gradient for {[name for name, tensor in found.items() if tensor is None]}"
    nodes = live([*g.forward, *g.nodes], [tensor for tensor in found.values() if tensor])
    nodes += [helper.make_node("Identity", [str(found[name])], [f"d.{name}"]) for name in wrt]
    constants = [numpy_helper.from_array(array, name) for name, array in g.constants.items()]
    seed_info = helper.make_tensor_value_info("seed", helper.np_dtype_to_tensor_dtype(seed.dtype), seed.shape)
    outputs = [helper.make_empty_tensor_value_info(f"d.{name}") for name in wrt]
    graph = helper.make_graph(nodes, "gradients", [*model.graph.input, seed_info], outputs, constants)
    whole = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    return Session(whole.SerializeToString())


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


@pytest.mark.parametrize(("op_type", "output"), [("LSTM", 1), ("LSTM", 2), ("GRU", 1), ("RNN", 1)])
def test_the_last_state_of_a_recurrent_layer_has_a_gradient_of_its_own(op_type: str, output: int) -> None:
    case = CASES[op_type][0]
    model = a_model(op_type, case, dtype=np.float32, symbolic=False, opset=18)
    names = ["", "", ""]
    names[output] = "y"
    model.graph.node[0].output[:] = names[: output + 1]
    session, feeds = Session(model.SerializeToString()), {k: v.astype(np.float32) for k, v in case.inputs.items()}
    y = session.run(feeds)["y"]
    seed = np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
    exact = gradient_model(model, list(feeds), seed).run({**feeds, "seed": seed})
    for name, slope in finite_differences(session, feeds, seed, h=1e-2).items():
        np.testing.assert_allclose(exact[f"d.{name}"], slope, rtol=5e-3, atol=5e-3 * (1 + abs(slope).max()))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"clip": 3.0}, "clip"), ({"activations": ["Relu", "Tanh", "Tanh"]}, "activations"), ({"layout": 1}, "layout")],
)
def test_recurrent_layers_of_odd_kinds_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    case = CASES["LSTM"][1]
    odd = Case(case.inputs, attributes={**case.attributes, **options}, known=case.known)
    g = GraphBuilder(a_model("LSTM", odd, dtype=np.float32, symbolic=False, opset=18))
    with pytest.raises(UnsupportedModel, match=rf"LSTM.*{message}.*has no gradient rule"):
        gradients(g, {"y": "seed"}, ["x"])


def test_a_missing_rule_names_the_operator_the_node_and_the_file_to_edit() -> None:
    case = Case({"x": normal(3, 4)})
    model = a_model("Det", case, dtype=np.float32, symbolic=False, opset=18)
    model.graph.node[0].name = "wave"
    with pytest.raises(UnsupportedModel, match=r"Det \(node 'wave'\).*@vjp\('Det'\) in edgeml/autodiff/rules\.py"):
        gradients(GraphBuilder(model), {"y": "seed"}, ["x"])


def test_a_second_rule_for_one_operator_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="Relu already has a VJP rule"):
        vjp("Relu")(RULES["Tanh"])


def test_a_product_with_a_vector_is_refused_by_name() -> None:
    case = Case({"a": normal(3, 4), "b": normal(4)})
    model = a_model("MatMul", case, dtype=np.float32, symbolic=False, opset=18)
    with pytest.raises(UnsupportedModel, match=r"MatMul.*1-D.*unsqueeze"):
        gradients(GraphBuilder(model), {"y": "seed"}, ["a", "b"])


def test_an_exponent_that_is_learned_is_refused_by_name() -> None:
    case = Case({"x": positive(3), "p": positive(3)})
    model = a_model("Pow", case, dtype=np.float32, symbolic=False, opset=18)
    with pytest.raises(UnsupportedModel, match=r"Pow.*constant exponent.*'p'"):
        gradients(GraphBuilder(model), {"y": "seed"}, ["x"])


def test_equal_nodes_and_equal_constants_are_made_once() -> None:
    g = GraphBuilder(a_model("Relu", Case({"x": normal(2)}), dtype=np.float32, symbolic=False, opset=18))
    assert g.op("Exp", "x") == g.op("Exp", "x") != g.op("Log", "x")
    assert g.const(1.0) == g.const(1) != g.const(1, dtype=np.int64)
    assert len(g.nodes) == 2 and len(g.constants) == 2
