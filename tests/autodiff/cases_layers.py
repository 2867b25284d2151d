"""Uses of whole layers: windows, normalizations, recurrent cells."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.autodiff.case import Case, away_from, distinct, normal, off_pixels, positive, unary

LAYERS: dict[str, list[Case]] = {
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
    "GridSample": [
        Case({"x": normal(2, 3, 4, 5), "grid": off_pixels(4, 5, corners=corners)}, attributes=options, opsets=opsets)
        for corners in (0, 1)
        for padding in ("zeros", "border", "reflection")
        for mode, opsets in (("bilinear", (18,)), ("linear", (21,)), ("nearest", (18, 21)))
        for options in [{"align_corners": corners, "padding_mode": padding, "mode": mode}]
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
    "LpPool": [
        Case({"x": away_from(0, shape=(1, 2, 7, 8))}, attributes=options, known=("x",), dtype=np.float32)
        for options in (
            {"kernel_shape": [2, 2], "strides": [2, 2]},
            {"kernel_shape": [3, 3], "strides": [2, 1], "pads": [1, 1, 1, 1], "p": 3},
        )
    ],
    "GlobalLpPool": [Case({"x": away_from(0, shape=(2, 3, 4))}, attributes={"p": p}) for p in (1, 2, 3)],
    "MaxUnpool": [
        Case(
            {"x": normal(1, 1, 2, 2)},
            ("x", "i", "n"),
            {"i": np.array([[[[0, 6], [9, 15]]]]), "n": np.array([1, 1, 4, 4])},
            {"kernel_shape": [2, 2], "strides": [2, 2]},
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
    "MeanVarianceNormalization": [*unary(normal(2, 3, 4, 5)), *unary(normal(3, 6), axes=[1])],
    "LRN": [
        Case({"x": normal(2, 7, 3, 2)}, attributes={"size": size, "alpha": 0.3, "beta": 0.6, "bias": 1.5}, known=("x",))
        for size in (3, 5)
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
    ]
    + [Case({"x": normal(4, 3, 5), "s": positive(3), "b": normal(3), "m": normal(3), "v": positive(3)})],
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
        if "HardSigmoid" in given.get("activations", ()):  # its kinks stay out of reach
            weights, more = ({name: array / 4 for name, array in part.items()} for part in (weights, more))
        cases.append(Case({**weights, **more}, named, attributes={"hidden_size": 4, **given}, known=known))
        cases.append(Case(weights, attributes={"hidden_size": 4, **given}, known=known))
    return cases


def layer(
    gates: int, *parts: str, lengths: tuple[int, ...] = (), kinks: bool = False, wide: int = 3, **given: Any
) -> Case:
    """One recurrent layer with the `parts` it has: b, h, c, p. With `kinks` every sum is near 1, -1 or 3."""
    many, size = 2 if given.get("direction") == "bidirectional" else 1, 20 if kinks else 2
    inputs = {"x": normal(5, 2, wide), "w": normal(many, 4 * gates, wide) / size}
    inputs["r"] = normal(many, 4 * gates, 4) / size
    biases = np.tile([1.0, -1.0, 3.0, -1.0], gates)
    more = {
        "b": np.stack([np.concatenate([biases, np.zeros(4 * gates)])] * many) if kinks else normal(many, 8 * gates),
        "h": normal(many, 2, 4) / size,
        "c": normal(many, 2, 4) / size,
        "p": normal(many, 12) * 2 / size,
    }
    inputs |= {name: more[name] for name in more if name in parts}
    constants = {"n": np.array(lengths, np.int32)} if lengths else {}
    order = [name if name in inputs or name in constants else "" for name in ("x", "w", "r", "b", "n", "h", "c", "p")]
    while not order[-1]:
        order.pop()
    return Case(inputs, tuple(order), constants, {"hidden_size": 4, **given}, known=("w", "r"))


def curves(*names: str, alpha: tuple[float, ...] = (), beta: tuple[float, ...] = ()) -> dict[str, Any]:
    """Return the attributes of activations."""
    numbers = {"activation_alpha": list(alpha), "activation_beta": list(beta)}
    return {"activations": list(names), **{key: value for key, value in numbers.items() if value}}


SHORT, BOTH = (3, 5), {"direction": "bidirectional"}
ODD: dict[str, list[Case]] = {
    "LSTM": [
        *(layer(4, "b", "h", "c", lengths=SHORT, **way) for way in ({}, {"direction": "reverse"}, BOTH)),
        layer(4, "b", "h", "c", "p", wide=6),
        layer(4, wide=6, lengths=SHORT, **BOTH),
        layer(4, "p", lengths=SHORT, **BOTH),
        layer(4, "b", "c", input_forget=1),
        layer(4, "b", "h", "c", "p", input_forget=1, lengths=SHORT),
        layer(4, "b", "h", "c", kinks=True, clip=2.0),
        layer(4, "b", "p", kinks=True, clip=2.0, input_forget=1),
        layer(4, "b", "c", kinks=True, **curves("Softsign", "Softplus", "ScaledTanh", alpha=(0.8,), beta=(0.9,))),
        layer(4, "b", "c", kinks=True, **curves("Sigmoid", "Elu", "Affine", alpha=(1.0, 0.3), beta=(0.1,))),
        layer(4, "b", "c", "p", **curves("Tanh", "Tanh", "Affine", alpha=(0.7,), beta=(0.1,))),
    ],
    "GRU": [
        *(
            layer(3, "b", "h", lengths=SHORT, linear_before_reset=last, **way)
            for last in (0, 1)
            for way in ({}, {"direction": "reverse"}, BOTH)
        ),
        *(layer(3, "b", "h", kinks=True, clip=2.0, linear_before_reset=last) for last in (0, 1)),
        *(
            layer(
                3,
                "b",
                "h",
                kinks=True,
                linear_before_reset=last,
                **curves("Softsign", "ScaledTanh", alpha=(0.8,), beta=(0.9,)),
            )
            for last in (0, 1)
        ),
    ],
    "RNN": [
        *(layer(1, "b", "h", lengths=SHORT, **way) for way in ({}, {"direction": "reverse"}, BOTH)),
        layer(1, "b", "h", kinks=True, clip=2.0),
        layer(1, "b", "h", wide=6),
        *(layer(1, "b", "h", **curves(name)) for name in ("Sigmoid", "Softplus")),
        layer(1, "b", "h", **curves("Affine", alpha=(0.7,), beta=(0.1,))),
        layer(1, "b", "h", **curves("ScaledTanh", alpha=(0.8,), beta=(0.9,))),
        *(
            layer(1, "b", "h", kinks=True, **curves(name))
            for name in ("Elu", "Softsign", "LeakyRelu", "ThresholdedRelu")
        ),
        layer(1, "b", "h", kinks=True, **curves("LeakyRelu", "ThresholdedRelu", alpha=(0.2, 2.0)), **BOTH),
    ],
}
KERAS = {"activations": ["HardSigmoid", "Tanh", "Tanh"], "activation_alpha": [1 / 6], "activation_beta": [0.5]}
WAYS = {"direction": "reverse"}, {"direction": "bidirectional"}
LAYERS |= {
    "LSTM": layers(4, *WAYS, {"activations": ["HardSigmoid", "Tanh", "Tanh"]}, KERAS, cell=True),
    "GRU": layers(
        3,
        *WAYS,
        {"linear_before_reset": 1},
        {"linear_before_reset": 1, "direction": "bidirectional"},
        {"activations": ["Sigmoid", "Tanh", "HardSigmoid", "Tanh"], "direction": "bidirectional"},
        {
            "activations": ["HardSigmoid", "Tanh", "HardSigmoid", "Tanh"],
            "activation_alpha": [0.12, 0.1],
            "activation_beta": [0.4, 0.6],
            "direction": "bidirectional",
        },
    ),
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
for operator, cases in ODD.items():
    LAYERS[operator] += cases


def criteria() -> list[Case]:
    """Three classes of five rows, or of two rows of two places; with class weights, and a row that is ignored."""
    cases = []
    for reduction in ("none", "mean", "sum"):
        for x, target in ((normal(5, 3), [0, 2, 1, 1, 0]), (normal(2, 3, 2), [[0, 2], [1, 1]])):
            given = {"t": np.array(target), "w": np.array([0.5, 2.0, 1.0])}
            cases.append(Case({"x": x}, ("x", "t"), {"t": given["t"]}, {"reduction": reduction}))
            cases.append(Case({"x": x}, ("x", "t", "w"), given, {"reduction": reduction, "ignore_index": 2}))
    return cases


LAYERS |= {"NegativeLogLikelihoodLoss": criteria(), "SoftmaxCrossEntropyLoss": criteria()}
