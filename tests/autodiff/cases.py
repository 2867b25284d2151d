"""Uses of every operator that has a gradient rule; a rule without a use fails the contract test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import TensorProto


@dataclass(frozen=True)
class Case:
    """One use of one operator: float inputs to differentiate for, constants beside them, attributes."""

    inputs: Mapping[str, np.ndarray]
    order: tuple[str, ...] = ()  # of the node's inputs; by default those of `inputs`
    constants: Mapping[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    known: tuple[str, ...] = ()  # inputs whose sizes are never symbols: kernels, sizes that a window needs
    outputs: int = 1  # of the node; a gradient comes in for the first
    opsets: tuple[int, ...] = (18, 21)
    dtype: type = np.float64  # float32 where the kernel computes in it whatever comes in


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


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def distinct(*shape: int) -> np.ndarray:
    """Values that differ by more than a finite difference moves them: no two are ever the same maximum."""
    count = int(np.prod(shape))
    return RNG.permutation(count).reshape(shape) / count * 4 - 2


CASES |= {
    "Sum": [Case({"a": normal(3, 4), "b": normal(4), "c": normal(1, 1)}), Case({"a": normal(3)})],
    "Mean": [Case({"a": normal(3, 4), "b": normal(4)})],
    "Max": [
        Case({"a": distinct(3, 4), "b": distinct(4, 3).T + 0.01}),
        Case({"a": distinct(3, 4), "b": np.array([0.3])}),
    ],
    "Min": [Case({"a": distinct(3, 4), "b": distinct(4, 3).T + 0.01})],
    "Reciprocal": unary(positive(3, 4)),
    "Erf": unary(normal(3, 4)),
    "Sin": unary(normal(3, 4)),
    "Cos": unary(normal(3, 4)),
    "Atan": unary(normal(3, 4)),
    "Softsign": unary(away_from(0)),
    "Selu": unary(away_from(0)) + unary(away_from(0), alpha=1.2, gamma=1.1),
    "Celu": unary(away_from(0)) + unary(away_from(0), alpha=0.7),
    "ThresholdedRelu": unary(away_from(1.0)) + unary(away_from(0.3), alpha=0.3),
    "HardSigmoid": unary(away_from(-2.5, 2.5)) + unary(away_from(-1, 1), alpha=0.5, beta=0.5),
    "HardSwish": unary(2 * away_from(-1.5, 1.5)),
    "Mish": unary(normal(3, 4)),
    "Gelu": [
        *(Case({"x": normal(3, 4)}, attributes={"approximate": kind}, opsets=(20, 21)) for kind in ("none", "tanh")),
    ],
    "PRelu": [
        Case({"x": away_from(0, shape=(3, 4, 5)), "slope": normal(4, 1)}),
        Case({"x": away_from(0), "slope": normal(1)}),
    ],
    "ReduceMax": [
        Case({"x": distinct(3, 4, 5)}, ("x", "axes"), {"axes": ints(a)}, {"keepdims": k}) for a, k in ((1, 0), (-1, 1))
    ]
    + [Case({"x": distinct(3, 4)})],
    "ReduceMin": [Case({"x": distinct(3, 4, 5)}, ("x", "axes"), {"axes": ints(0, 2)}, {"keepdims": 0})],
    "ReduceL1": [Case({"x": away_from(0)}, ("x", "axes"), {"axes": ints(1)})],
    "ReduceL2": reductions(),
    "ReduceSumSquare": reductions(),
    "ReduceLogSumExp": reductions(),
    "ReduceLogSum": [Case({"x": positive(3, 4)}, ("x", "axes"), {"axes": ints(1)}, {"keepdims": 0})],
    "ReduceProd": [Case({"x": positive(3, 4)}, ("x", "axes"), {"axes": ints(0)}, {"keepdims": 0})],
    "CumSum": [
        Case({"x": normal(3, 5)}, ("x", "axis"), {"axis": ints(1)[0]}, {"exclusive": e, "reverse": r})
        for e in (0, 1)
        for r in (0, 1)
    ],
    "Expand": [Case({"x": normal(3, 1)}, ("x", "shape"), {"shape": ints(2, 3, 4)}, known=("x",))],
    "Split": [
        Case({"x": normal(3, 6)}, ("x", "sizes"), {"sizes": ints(2, 4)}, {"axis": 1}, outputs=2),
        Case({"x": normal(6, 3)}, attributes={"num_outputs": 3}, outputs=3),
    ],
    "Slice": [
        Case(
            {"x": normal(3, 9)},
            ("x", "a", "b", "axes", "s"),
            {"a": ints(1), "b": ints(8), "axes": ints(1), "s": ints(2)},
        ),
        Case(
            {"x": normal(5, 4)},
            ("x", "a", "b", "axes", "s"),
            {"a": ints(-1), "b": ints(-9), "axes": ints(0), "s": ints(-1)},
        ),
    ],
    "Gather": [
        Case({"x": normal(6, 3)}, ("x", "i"), {"i": np.array([[0, 2], [2, 5]])}),
        Case({"x": normal(6)}, ("x", "i"), {"i": ints(0, 2, 2, -1)}),
        Case({"x": normal(2, 5, 3)}, ("x", "i"), {"i": ints(0, 0, 3)}, {"axis": 1}),
    ],
    "GatherElements": [
        Case({"x": normal(3, 4)}, ("x", "i"), {"i": np.array([[0, 0, 3], [1, 2, 2], [3, 0, 1]])}, {"axis": 1})
    ],
    "GatherND": [Case({"x": normal(3, 4, 2)}, ("x", "i"), {"i": np.array([[0, 1], [0, 1], [2, 3]])})],
    "ScatterND": [
        Case({"x": normal(5, 3), "u": normal(2, 3)}, ("x", "i", "u"), {"i": np.array([[1], [4]])}, {"reduction": kind})
        for kind in ("none", "add")
    ],
    "ScatterElements": [
        Case(
            {"x": normal(3, 4), "u": normal(3, 2)},
            ("x", "i", "u"),
            {"i": np.array([[0, 2], [1, 3], [3, 0]])},
            {"axis": 1, "reduction": kind},
        )
        for kind in ("none", "add")
    ],
    "Tile": [Case({"x": normal(2, 3)}, ("x", "n"), {"n": ints(2, 3)})],
    "SpaceToDepth": unary(normal(1, 2, 4, 4), blocksize=2),
    "DepthToSpace": [*unary(normal(1, 8, 2, 2), blocksize=2), *unary(normal(1, 8, 2, 3), blocksize=2, mode="CRD")],
    "Pad": [
        *(
            Case({"x": normal(2, 4, 5)}, ("x", "n"), {"n": ints(0, 1, 2, 0, 2, 1)}, {"mode": mode})
            for mode in ("constant", "reflect", "edge")
        ),
        Case({"x": normal(2, 5)}, ("x", "n"), {"n": ints(0, -1, 1, 2)}),
        Case({"x": normal(2, 5)}, ("x", "n", "", "axes"), {"n": ints(2, 1), "axes": ints(1)}),
    ],
    "Trilu": [
        Case({"x": normal(4, 4)}, attributes={"upper": 0}),
        Case({"x": normal(3, 5)}, ("x", "k"), {"k": ints(1)[0]}),
    ],
    "TopK": [Case({"x": distinct(3, 6)}, ("x", "k"), {"k": ints(2)}, {"axis": 1}, outputs=2)],
    "Resize": [
        Case({"x": normal(1, 2, 3, 4)}, ("x", "", "", "n"), {"n": ints(1, 2, 6, 7)}, options, known=("x",))
        for options in (
            {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
            {"mode": "linear"},
            {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
            {"mode": "cubic"},
        )
    ]
    + [
        Case(
            {"x": normal(1, 2, 4, 3)},
            ("x", "", "s"),
            {"s": np.array([1, 1, 2, 2], np.float32)},
            {"mode": "linear"},
            known=("x",),
        ),
    ],
    "Einsum": [
        Case({"a": normal(2, 3, 4), "b": normal(2, 4, 5)}, attributes={"equation": "bij,bjk->bik"}),
        Case({"a": normal(2, 3), "b": normal(3, 4)}, attributes={"equation": "ij,jk->k"}),
        Case({"a": normal(2, 3)}, attributes={"equation": "ij->j"}),
    ],
    "Conv": [
        *(
            Case(
                {"x": normal(2, c, *size), "w": normal(m, c // group, *k), "b": normal(m)},
                attributes={"group": group, **options},
                known=("w",),
            )
            for c, m, size, k, group, options in (
                (3, 4, (6, 6), (3, 3), 1, {}),
                (3, 4, (7, 6), (3, 3), 1, {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
                (3, 4, (8, 8), (3, 3), 1, {"strides": [2, 2], "pads": [0, 0, 1, 1]}),
                (3, 4, (10, 9), (3, 3), 1, {"strides": [3, 2], "pads": [1, 2, 0, 1], "dilations": [1, 2]}),
                (4, 6, (7, 7), (1, 1), 1, {}),
                (4, 2, (7, 7), (1, 1), 1, {"strides": [3, 3]}),
                (4, 6, (6, 6), (3, 3), 2, {"pads": [1, 1, 1, 1]}),
                (4, 4, (6, 7), (3, 3), 4, {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
                (4, 8, (6, 6), (2, 3), 4, {}),
                (3, 4, (11,), (3,), 1, {"strides": [2], "pads": [1, 1]}),
                (2, 3, (4, 4, 4), (2, 2, 2), 1, {}),
            )
        ),
        Case(
            {"x": normal(1, 3, 8, 8), "w": normal(4, 3, 3, 3)},
            attributes={"auto_pad": "SAME_UPPER", "strides": [2, 2]},
            known=("x", "w"),
        ),
        Case(
            {"x": normal(1, 3, 7, 7), "w": normal(4, 3, 2, 2)}, attributes={"auto_pad": "SAME_LOWER"}, known=("x", "w")
        ),
    ],
    "ConvTranspose": [
        Case(
            {"x": normal(2, c, 4, 5), "w": normal(c, m, 3, 3), "b": normal(m * options.get("group", 1))},
            attributes=options,
            known=("w",),
        )
        for c, m, options in (
            (3, 2, {}),
            (3, 2, {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
            (4, 2, {"group": 2, "strides": [2, 1]}),
            (3, 2, {"dilations": [2, 1], "pads": [1, 0, 0, 1]}),
        )
    ],
    "MaxPool": [
        Case({"x": distinct(2, 3, 7, 8)}, attributes=options)
        for options in (
            {"kernel_shape": [2, 2], "strides": [2, 2]},
            {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
            {"kernel_shape": [3, 2], "ceil_mode": 1, "strides": [2, 3]},
        )
    ],
    "AveragePool": [
        Case({"x": normal(1, 2, 7, 8)}, attributes=options, known=("x",))
        for options in (
            {"kernel_shape": [2, 2], "strides": [2, 2]},
            {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
            {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1},
            {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
            {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "pads": [1, 1, 1, 1], "count_include_pad": 1},
            {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER"},
        )
    ],
    "GlobalAveragePool": unary(normal(2, 3, 4, 5)),
    "GlobalMaxPool": unary(distinct(2, 3, 4, 5)),
    "LayerNormalization": [
        Case({"x": normal(3, 4, 6), "s": positive(6), "b": normal(6)}, outputs=1),
        Case({"x": normal(3, 4, 6), "s": positive(4, 6)}, attributes={"axis": 1, "epsilon": 1e-3}),
    ],
    "InstanceNormalization": [Case({"x": normal(2, 3, 5), "s": positive(3), "b": normal(3)})],
    "GroupNormalization": [
        Case({"x": normal(2, 6, 5), "s": positive(2), "b": normal(2)}, attributes={"num_groups": 2}, opsets=(18,)),
        Case(
            {"x": normal(2, 6, 5), "s": positive(6), "b": normal(6)},
            attributes={"num_groups": 3},
            opsets=(21,),
            dtype=np.float32,
        ),
    ],
    "LpNormalization": [*unary(normal(3, 4)), *unary(away_from(0), p=1), *unary(normal(3, 4), axis=0)],
    "BatchNormalization": [
        Case(
            {"x": normal(4, 3, 5), "s": positive(3), "b": normal(3)},
            ("x", "s", "b", "m", "v"),
            {"m": normal(3), "v": positive(3)},
            options,
            outputs=3 if options else 1,
        )
        for options in ({}, {"training_mode": 1})
    ],
    "Dropout": [
        Case({"x": normal(3, 4)}),
        Case({"x": normal(3, 4)}, ("x", "r", "t"), {"r": np.float64(0.5), "t": np.array(False)}),
    ],
}


def layers(gates: int, *options: dict[str, Any], cell: bool = False) -> list[Case]:
    """Recurrent layers of 3 inputs and 4 units over 5 steps of 2 rows, with bias and start, and without."""
    cases = []
    for given in ({}, *options):
        many = 2 if given.get("direction") == "bidirectional" else 1
        weights = {"x": normal(5, 2, 3), "w": normal(many, 4 * gates, 3) / 2, "r": normal(many, 4 * gates, 4) / 2}
        more = {"b": normal(many, 8 * gates), "h": normal(many, 2, 4)} | ({"c": normal(many, 2, 4)} if cell else {})
        named = ("x", "w", "r", "b", "", "h", *(("c",) if cell else ()))
        known = ("w", "r")
        cases.append(Case({**weights, **more}, named, attributes={"hidden_size": 4, **given}, known=known))
        cases.append(Case(weights, attributes={"hidden_size": 4, **given}, known=known))
    return cases


WAYS = {"direction": "reverse"}, {"direction": "bidirectional"}
CASES |= {
    "LSTM": layers(4, *WAYS, cell=True),
    "GRU": layers(3, *WAYS, {"linear_before_reset": 1}, {"linear_before_reset": 1, "direction": "bidirectional"}),
    "RNN": [
        *layers(1, *WAYS),
        Case(  # units far on one side of the kink each
            {"x": positive(5, 2, 3) / 4, "w": positive(1, 4, 3) / 4, "r": positive(1, 4, 4) / 8},
            ("x", "w", "r", "b"),
            {"b": np.array([[3, -9, 3, -9, 0, 0, 0, 0]], np.float64)},
            {"hidden_size": 4, "activations": ["Relu"]},
            known=("w", "r"),
        ),
    ],
}
