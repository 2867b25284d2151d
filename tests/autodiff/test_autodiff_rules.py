"""Every gradient rule against finite differences of the operator's own kernel on stock onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgeml.autodiff import RULES
from edgeml.autodiff.backward import gradients, live
from edgeml.autodiff.builder import GraphBuilder
from edgeml.autodiff.rules import vjp
from edgeml.errors import UnsupportedModel
from edgeml_runtime.session import ModelRefused, Session

OPSETS = (18, 21)


@dataclass(frozen=True)
class Case:
    """One use of one operator: float inputs to differentiate for, constants beside them, attributes."""

    inputs: Mapping[str, np.ndarray]
    order: tuple[str, ...] = ()  # of the node's inputs; by default those of `inputs`
    constants: Mapping[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)


RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape)


def positive(*shape: int) -> np.ndarray:
    return RNG.uniform(0.4, 2.0, size=shape)


def away_from(*edges: float, shape: tuple[int, ...] = (4, 5)) -> np.ndarray:
    """Values at least 0.05 from every edge, where finite differences would straddle a kink."""
    x = RNG.uniform(-2, 2, size=shape)
    for edge in edges:
        x = np.where(abs(x - edge) < 0.05, edge + 0.1, x)
    return x


def unary(x: np.ndarray, **attributes: Any) -> list[Case]:
    return [Case({"x": x}, attributes=attributes)]


def binary(**changes: Any) -> list[Case]:
    return [
        Case({"a": positive(3, 4), "b": positive(3, 4)}, **changes),
        Case({"a": positive(3, 4), "b": positive(4)}, **changes),
        Case({"a": positive(1), "b": positive(3, 4)}, **changes),
        Case({"a": positive(3, 1, 4), "b": positive(2, 1)}, **changes),
        Case({"a": positive(2, 3), "b": positive()}, **changes),
    ]


def gemms() -> list[Case]:
    cases = []
    for ta in (0, 1):
        for tb in (0, 1):
            a, b = normal(*((4, 5) if not ta else (5, 4))), normal(*((5, 3) if not tb else (3, 5)))
            options = {"transA": ta, "transB": tb, "alpha": 0.7, "beta": 0.3}
            for bias in (normal(3), normal(4, 3), normal(4, 1), normal(1, 3), normal()):
                cases.append(Case({"a": a, "b": b, "c": bias}, attributes=options))
            cases.append(Case({"a": a, "b": b}, attributes={"transA": ta, "transB": tb}))
    return cases


def reductions() -> list[Case]:
    x = {"x": normal(3, 4, 5)}
    cases = [Case(x, attributes={"keepdims": keep}) for keep in (0, 1)]
    for axes in ([1], [0, 2], [-1], [0, 1, 2], []):
        given = {"axes": np.array(axes, dtype=np.int64)}
        cases += [Case(x, ("x", "axes"), given, {"keepdims": keep}) for keep in (0, 1)]
    nothing = {"axes": np.array([], dtype=np.int64)}
    return [*cases, Case(x, ("x", "axes"), nothing, {"noop_with_empty_axes": 1})]


def reshaping(name: str, *values: int, shape: tuple[int, ...] = (3, 4)) -> Case:
    return Case({"x": normal(*shape)}, ("x", name), {name: np.array(values, dtype=np.int64)})


BOUNDS = {"lo": np.float64(-0.5), "hi": np.float64(0.75)}
CASES: dict[str, list[Case]] = {
    "Gemm": gemms(),
    "MatMul": [
        Case({"a": normal(4, 5), "b": normal(5, 3)}),
        Case({"a": normal(2, 4, 5), "b": normal(5, 3)}),
        Case({"a": normal(4, 5), "b": normal(2, 5, 3)}),
        Case({"a": normal(2, 4, 5), "b": normal(2, 5, 3)}),
        Case({"a": normal(2, 1, 4, 5), "b": normal(3, 5, 3)}),
        Case({"a": normal(1, 4, 5), "b": normal(6, 5, 3)}),
    ],
    "Add": binary(),
    "Sub": binary(),
    "Mul": [*binary(), Case({"a": normal(5, 1), "b": normal(2)})],
    "Div": binary(),
    "Pow": [
        *(Case({"x": positive(3, 4)}, ("x", "p"), {"p": np.float64(p)}) for p in (-1.5, 0, 0.5, 1, 2, 3)),
        Case({"x": positive(3, 1)}, ("x", "p"), {"p": np.array([0.0, 1.0, 2.5])}),
        Case({"x": normal(3, 4)}, ("x", "p"), {"p": np.float64(2)}),
    ],
    "Where": [
        Case({"a": normal(3, 4), "b": normal(4)}, ("c", "a", "b"), {"c": RNG.random((3, 4)) > 0.5}),
        Case({"a": normal(4), "b": normal(2, 3, 1)}, ("c", "a", "b"), {"c": np.array([[True], [False], [True]])}),
    ],
    "Clip": [
        Case({"x": away_from(-0.5, 0.75)}, ("x", "lo", "hi"), BOUNDS),
        Case({"x": away_from(0.75)}, ("x", "", "hi"), BOUNDS),
        Case({"x": away_from(-0.5)}, ("x", "lo"), BOUNDS),
        Case({"x": away_from(-0.5, 0.75), "low": np.array(-0.5), "high": np.array(0.75)}),
        Case({"x": normal(3, 4)}),
    ],
    "Neg": unary(normal(3, 4)),
    "Abs": unary(away_from(0)),
    "Relu": unary(away_from(0)),
    "LeakyRelu": unary(away_from(0)) + unary(away_from(0), alpha=0.2),
    "Elu": unary(away_from(0)) + unary(away_from(0), alpha=1.7),
    "Tanh": unary(normal(3, 4)),
    "Sigmoid": unary(3 * normal(3, 4)),
    "Softplus": unary(3 * normal(3, 4)),
    "Exp": unary(normal(3, 4)),
    "Log": unary(positive(3, 4)),
    "Sqrt": unary(positive(3, 4)),
    "Identity": unary(normal(3, 4)),
    "Cast": unary(normal(3, 4), to=TensorProto.DOUBLE) + unary(normal(3, 4), to=TensorProto.FLOAT),
    "Softmax": [
        *unary(normal(3, 4)),
        *unary(normal(3, 4, 2), axis=1),
        *unary(normal(3, 4), axis=0),
    ],
    "LogSoftmax": [*unary(normal(3, 4)), *unary(normal(3, 4, 2), axis=1)],
    "ReduceSum": reductions(),
    "ReduceMean": reductions(),
    "Transpose": [*unary(normal(3, 4, 5), perm=[2, 0, 1]), *unary(normal(3, 4, 5))],
    "Concat": [
        Case({"a": normal(3, 4), "b": normal(3, 2), "c": normal(3, 1)}, attributes={"axis": 1}),
        Case({"a": normal(3, 4), "b": normal(2, 4)}, attributes={"axis": -2}),
        Case({"a": normal(3, 4), "b": normal(3, 4)}, ("a", "b", "a"), attributes={"axis": -1}),
    ],
    "Reshape": [reshaping("shape", -1, 6), reshaping("shape", 0, 2, 2)],
    "Flatten": [*unary(normal(3, 4, 2)), *unary(normal(3, 4, 2), axis=0)],
    "Squeeze": [reshaping("axes", 1, shape=(3, 1, 4)), Case({"x": normal(1, 3, 1)})],
    "Unsqueeze": [reshaping("axes", 0, 2)],
}
EVERY_CASE = [(op_type, i) for op_type, cases in CASES.items() for i in range(len(cases))]


def test_every_rule_has_a_case() -> None:
    assert CASES.keys() == RULES.keys()


def a_model(op_type: str, case: Case, *, dtype: type, symbolic: bool, opset: int) -> ModelProto:
    """One node from graph inputs to `y`; with `symbolic`, nothing is known of any size."""
    of = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    inputs = []
    for name, array in case.inputs.items():
        dims = [f"{name}{i}" for i in range(array.ndim)] if symbolic else array.shape
        inputs.append(helper.make_tensor_value_info(name, of, dims))
    constants = [np.asarray(v, dtype) if np.asarray(v).dtype.kind == "f" else v for v in case.constants.values()]
    named = [numpy_helper.from_array(np.asarray(v), n) for n, v in zip(case.constants, constants, strict=True)]
    node = helper.make_node(op_type, case.order or tuple(case.inputs), ["y"], **case.attributes)
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
    opset = OPSETS[index % len(OPSETS)]
    try:
        check(op_type, CASES[op_type][index], dtype=np.float64, symbolic=symbolic, opset=opset)
    except ModelRefused:  # no float64 kernel
        check(op_type, CASES[op_type][index], dtype=np.float32, symbolic=symbolic, opset=opset)


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


def test_a_missing_rule_names_the_operator_the_node_and_the_file_to_edit() -> None:
    case = Case({"x": normal(3, 4)})
    model = a_model("Cos", case, dtype=np.float32, symbolic=False, opset=18)
    model.graph.node[0].name = "wave"
    with pytest.raises(UnsupportedModel, match=r"Cos \(node 'wave'\).*@vjp\('Cos'\) in edgeml/autodiff/rules\.py"):
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
