"""The models and rows that the simulated federations of the benchmarks are made of."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

from edgeml.artifacts import OnnxModel, Rows
from edgeml.federated.partition import partition
from edgeml.simulation import Fleet

TEST_ROWS = 450  # of the digits


def network(widths: Sequence[int], *, seed: int, scale: float = 1.0) -> OnnxModel:
    """Return a classifier of dense layers with Relu between them, untrained (Glorot uniform times `scale`, zeros)."""
    rng, nodes, constants, last = np.random.default_rng(seed), [], {}, "x"
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        reach = scale * np.sqrt(6 / (before + after))
        constants[f"w{i}"] = rng.uniform(-reach, reach, (before, after)).astype(np.float32)
        constants[f"b{i}"] = np.zeros(after, np.float32)
        nodes.append(helper.make_node("Gemm", [last, f"w{i}", f"b{i}"], [f"z{i}"]))
        last = f"z{i}"
        if i < len(widths) - 2:
            nodes.append(helper.make_node("Relu", [last], [f"a{i}"]))
            last = f"a{i}"
    nodes.append(helper.make_node("Softmax", [last], ["probabilities"]))
    nodes.append(helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", widths[0]])]
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.INT64, ["rows"]),
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", widths[-1]]),
    ]
    held = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "network", inputs, outputs, held)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return OnnxModel(made.SerializeToString(), source="")


def regressor(widths: Sequence[int], *, seed: int) -> OnnxModel:
    """Return the same with a linear last layer, for one number a row."""
    made = onnx.load_model_from_string(network(widths, seed=seed).data)
    kept = [node for node in made.graph.node if node.op_type not in ("Softmax", "ArgMax")]
    kept[-1].output[:] = ["prediction"]
    del made.graph.node[:], made.graph.output[:]
    made.graph.node.extend(kept)
    made.graph.output.append(helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["rows", widths[-1]]))
    return OnnxModel(made.SerializeToString(), source="")


def digits_fleet(spec: str, *, devices: int, seed: int) -> Fleet:
    """Return scikit-learn's digits dealt by `spec`, 450 of them to judge on, and an MLP 64-64-10."""
    x, y = load_digits(return_X_y=True)
    x, y = (x / 16).astype(np.float32), y.astype(np.int64)
    order = np.random.default_rng(seed).permutation(len(y))
    test, train = order[:TEST_ROWS], order[TEST_ROWS:]
    shares = partition(spec, y[train], devices=devices, seed=seed)
    return Fleet(
        model=network((64, 64, 10), seed=seed),
        shares=[Rows({"x": x[train[share]]}, y[train[share]]) for share in shares],
        valid=Rows({"x": x[test]}, y[test]),
    )


def synthetic(alpha: float, beta: float, *, devices: int, seed: int, most: int) -> list[Rows]:
    """Return Synthetic(alpha, beta) (arXiv 1812.06127, 5.1): rows (n, 60) and labels of ten classes for each device.

    y = argmax(softmax(W_k x + b_k)), W_k and b_k ~ N(u_k, 1), u_k ~ N(0, alpha); x ~ N(v_k, S), S_jj = j^-1.2,
    v_k ~ N(B_k, 1), B_k ~ N(0, beta). Sizes are 50 + lognormal(4, 2) as in the authors' code, `most` at the most; its
    second parameters are standard deviations, equal to the variances of the paper where they are 1.
    """
    rng = np.random.default_rng(seed)
    spread = np.sqrt(np.arange(1, 61) ** -1.2)
    found = []
    for size in np.minimum(rng.lognormal(4, 2, devices).astype(int) + 50, most).tolist():
        u, b = rng.normal(0, alpha), rng.normal(0, beta)
        w, bias = rng.normal(u, 1, (60, 10)), rng.normal(u, 1, 10)
        x = rng.normal(b, 1, 60) + spread * rng.normal(size=(size, 60))
        found.append(Rows({"x": x.astype(np.float32)}, (x @ w + bias).argmax(1).astype(np.int64)))
    return found


def pooled(shares: Sequence[Rows]) -> Rows:
    """Return all rows of all devices."""
    x = np.concatenate([rows.inputs["x"] for rows in shares])
    return Rows({"x": x}, np.concatenate([rows.target for rows in shares if rows.target is not None]))
