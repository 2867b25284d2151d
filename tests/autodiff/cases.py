"""Uses of every operator that has a gradient rule; a rule without a use fails the contract test."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from tests.autodiff.case import Case, away_from, binary, distinct, ints, normal, positive, unary
from tests.autodiff.cases_layers import LAYERS
from tests.autodiff.cases_turns import TURNS


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


DOWN = {"mode": "linear", "antialias": 1, "axes": [2, 3]}
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
        Case({"a": normal(4, 5), "b": normal(5)}),
        Case({"a": normal(5), "b": normal(5, 3)}),
        Case({"a": normal(2, 4, 5), "b": normal(5)}),
        Case({"a": normal(5), "b": normal(2, 5, 3)}),
        Case({"a": normal(5), "b": normal(5)}),
    ],
    "Add": binary(),
    "Sub": binary(),
    "Mul": [*binary(), Case({"a": normal(5, 1), "b": normal(2)})],
    "Div": binary(),
    "Pow": [
        *(Case({"x": positive(3, 4)}, ("x", "p"), {"p": np.float64(p)}) for p in (-1.5, 0, 0.5, 1, 2, 3)),
        Case({"x": positive(3, 1)}, ("x", "p"), {"p": np.array([0.0, 1.0, 2.5])}),
        Case({"x": normal(3, 4)}, ("x", "p"), {"p": np.float64(2)}),
        Case({"x": positive(3, 4), "p": normal(4)}),
        Case({"x": positive(3, 1), "p": normal(2, 1, 4)}),
    ],
    "Mod": [Case({"a": away_from(0, shape=(3, 4)), "b": np.array([0.7, 1.1, 5.0, 1.9])}, attributes={"fmod": 1})],
    "Where": [
        Case({"a": normal(3, 4), "b": normal(4)}, ("c", "a", "b"), {"c": normal(3, 4) > 0}),
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
    "CastLike": [Case({"x": normal(3, 4)}, ("x", "like"), {"like": np.zeros(1)})],
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
CASES |= (
    LAYERS
    | TURNS
    | {
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
        "Tan": unary(away_from(-1.57, 1.57) * 0.7),
        "Atan": unary(normal(3, 4)),
        "Sinh": unary(normal(3, 4)),
        "Cosh": unary(normal(3, 4)),
        "Asin": unary(away_from(0) * 0.45),
        "Acos": unary(away_from(0) * 0.45),
        "Asinh": unary(normal(3, 4)),
        "Acosh": unary(positive(3, 4) + 0.8),
        "Atanh": unary(away_from(0) * 0.45),
        "Shrink": [
            Case({"x": away_from(-0.5, 0.5)}, dtype=np.float32),
            Case({"x": away_from(-1, 1)}, attributes={"lambd": 1.0, "bias": 0.3}, dtype=np.float32),
        ],
        "Softsign": unary(away_from(0)),
        "Selu": unary(away_from(0)) + unary(away_from(0), alpha=1.2, gamma=1.1),
        "Celu": unary(away_from(0)) + unary(away_from(0), alpha=0.7),
        "ThresholdedRelu": unary(away_from(1.0)) + unary(away_from(0.3), alpha=0.3),
        "HardSigmoid": unary(away_from(-2.5, 2.5)) + unary(away_from(-1, 1), alpha=0.5, beta=0.5),
        "HardSwish": unary(2 * away_from(-1.5, 1.5)),
        "Mish": unary(normal(3, 4)),
        "Gelu": [
            *(
                Case({"x": normal(3, 4)}, attributes={"approximate": kind}, opsets=(20, 21))
                for kind in ("none", "tanh")
            ),
        ],
        "PRelu": [
            Case({"x": away_from(0, shape=(3, 4, 5)), "slope": normal(4, 1)}),
            Case({"x": away_from(0), "slope": normal(1)}),
        ],
        "ReduceMax": [
            Case({"x": distinct(3, 4, 5)}, ("x", "axes"), {"axes": ints(a)}, {"keepdims": k})
            for a, k in ((1, 0), (-1, 1))
        ]
        + [Case({"x": distinct(3, 4)})],
        "ReduceMin": [Case({"x": distinct(3, 4, 5)}, ("x", "axes"), {"axes": ints(0, 2)}, {"keepdims": 0})],
        "ReduceL1": [Case({"x": away_from(0)}, ("x", "axes"), {"axes": ints(1)})],
        "ReduceL2": reductions(),
        "ReduceSumSquare": reductions(),
        "ReduceLogSumExp": reductions(),
        "ReduceLogSum": [Case({"x": positive(3, 4)}, ("x", "axes"), {"axes": ints(1)}, {"keepdims": 0})],
        "ReduceProd": [
            Case({"x": positive(3, 4)}, ("x", "axes"), {"axes": ints(0)}, {"keepdims": 0}),
            Case({"x": np.array([[1.5, 0, 2], [0, 0, 3], [0.5, -1, 2]])}, ("x", "axes"), {"axes": ints(1)}),
            Case({"x": positive(2, 3)}),
        ],
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
        "GatherND": [
            Case({"x": normal(3, 4, 2)}, ("x", "i"), {"i": np.array([[0, 1], [0, 1], [2, 3]])}),
            Case({"x": normal(2, 4, 3)}, ("x", "i"), {"i": np.array([[0, 3], [1, 1]])[..., None]}, {"batch_dims": 1}),
        ],
        "Compress": [
            Case({"x": normal(4, 3)}, ("x", "c"), {"c": np.array([True, False, True])}, {"axis": 0}),
            Case({"x": normal(2, 3)}, ("x", "c"), {"c": np.array([True, False, True, True])}),
        ],
        "ReverseSequence": [
            Case({"x": normal(4, 3, 2)}, ("x", "n"), {"n": ints(2, 4, 1)}),
            Case({"x": normal(2, 5)}, ("x", "n"), {"n": ints(5, 3)}, {"batch_axis": 0, "time_axis": 1}),
        ],
        "ScatterND": [
            Case(
                {"x": normal(5, 3), "u": normal(2, 3)},
                ("x", "i", "u"),
                {"i": np.array([[1], [4]])},
                {"reduction": kind},
            )
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
        "Col2Im": [
            Case(
                {"x": normal(2, 3 * 2 * 3, count)},
                ("x", "image", "block"),
                {"image": ints(4, 5), "block": ints(2, 3)},
                options,
                dtype=np.float32,
            )
            for count, options in ((9, {}), (10, {"pads": [1, 0, 1, 2], "strides": [2, 1], "dilations": [2, 1]}))
        ],
        "Tile": [Case({"x": normal(2, 3)}, ("x", "n"), {"n": ints(2, 3)})],
        "SpaceToDepth": unary(normal(1, 2, 4, 4), blocksize=2),
        "DepthToSpace": [*unary(normal(1, 8, 2, 2), blocksize=2), *unary(normal(1, 8, 2, 3), blocksize=2, mode="CRD")],
        "Pad": [
            *(
                Case({"x": normal(2, 4, 5)}, ("x", "n"), {"n": ints(0, 1, 2, 0, 2, 1)}, {"mode": mode})
                for mode in ("constant", "reflect", "edge")
            ),
            Case({"x": normal(2, 4, 5)}, ("x", "n"), {"n": ints(0, 2, 2, 0, 3, 1)}, {"mode": "wrap"}, opsets=(19, 21)),
            Case({"x": normal(2, 5)}, ("x", "n", "", "axes"), {"n": ints(2, 1), "axes": ints(1)}, {"mode": "reflect"}),
            Case(
                {"x": normal(2, 5)}, ("x", "n", "v"), {"n": ints(1, 1, 0, 1), "v": np.float64(2)}, {"mode": "reflect"}
            ),
            Case({"x": normal(2, 5), "v": normal()}, ("x", "n", "v"), {"n": ints(1, -1, 0, 2)}),
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
            *(
                Case(
                    {"x": normal(1, 2, 5, 3)},
                    ("x", "", "s"),
                    {"s": np.array([1, 1, 1.3, 2.5], np.float32)},
                    options,
                    ("x",),
                )
                for options in ({"mode": "linear"}, {"mode": "cubic"}, {"mode": "nearest"})
            ),
            Case({"x": normal(1, 2, 7, 8)}, ("x", "", "", "n"), {"n": ints(3, 3)}, DOWN, ("x",), dtype=np.float32),
        ],
        "Einsum": [
            Case({"a": normal(2, 3, 4), "b": normal(2, 4, 5)}, attributes={"equation": "bij,bjk->bik"}),
            Case({"a": normal(2, 3), "b": normal(3, 4)}, attributes={"equation": "ij,jk->k"}),
            Case({"a": normal(2, 3)}, attributes={"equation": "ij->j"}),
            Case({"a": normal(2, 3), "b": normal(3, 4)}, attributes={"equation": "ij,jk"}),
            Case({"a": normal(5, 2, 3), "b": normal(3, 4)}, attributes={"equation": "...ij, jk -> ...ik"}),
            Case({"a": normal(5, 2, 2, 3), "b": normal(5, 2, 3, 4)}, attributes={"equation": "...ij,...jk"}),
            Case({"a": normal(2, 3), "b": normal(3), "c": normal(2)}, attributes={"equation": "ij,j,i->"}),
        ],
    }
)

FLAT_CASES: dict[str, list[Case]] = {
    **dict.fromkeys(("Floor", "Ceil", "Round", "Sign"), unary(away_from(-2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2))),
    "Hardmax": unary(distinct(3, 4)),
    "EyeLike": unary(normal(3, 4)),
}
