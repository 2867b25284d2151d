"""Training graphs of every kind of layer, with what they give here: to be run again elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from edgeml.artifacts import OnnxModel, TrainingGraph
from edgeml.autodiff import SGD, Adam, training_step
from edgeml.graph import serialize
from edgeml.tasks import training
from edgeml_runtime.session import Session
from tests import networks
from tests.quantize import graphs

ROWS, CLASSES = 24, {"mlp": 3, "conv": 5, "normalized": 4, "residual": 5, "lstm": 4, "gru": 4, "attention": 64}
node = helper.make_node


def a_normalized_net() -> OnnxModel:
    """Return conv, batch normalization, depthwise conv, layer normalization, mean, Gemm, on 12x12 pictures."""
    draw = np.random.default_rng(0)
    shapes = {"c": (6, 2, 3, 3), "cb": (6,), "d": (6, 1, 3, 3), "w": (4, 6), "b": (4,)}
    weights = {name: (draw.normal(size=shape) / 3).astype(np.float32) for name, shape in shapes.items()}
    for part, value in {"s": 1.0, "o": 0.0, "m": 0.0, "v": 1.0}.items():
        weights[part] = np.full(6, value, np.float32)
    weights |= {"ls": np.ones(6, np.float32), "lo": np.zeros(6, np.float32)}
    nodes = [
        node("Conv", ["image", "c", "cb"], ["c1"], strides=[2, 2], pads=[1] * 4),
        node("BatchNormalization", ["c1", "s", "o", "m", "v"], ["n1"]),
        node("HardSwish", ["n1"], ["r1"]),
        node("Conv", ["r1", "d"], ["c2"], group=6, pads=[1] * 4),
        node("MaxPool", ["c2"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", ["p"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        node("LayerNormalization", ["f", "ls", "lo"], ["n2"]),
        node("Gemm", ["n2", "w", "b"], ["scores"], transB=1),
    ]
    inputs = {"image": (TensorProto.FLOAT, ["rows", 2, 12, 12])}
    outputs = {"scores": (TensorProto.FLOAT, ["rows", 4])}
    return serialize(networks.a_graph(nodes, inputs=inputs, outputs=outputs, weights=weights, opset=18), source="test")


NETS: dict[str, Callable[[], OnnxModel]] = {
    "mlp": networks.an_mlp,
    "conv": networks.a_conv_net,
    "normalized": a_normalized_net,
    "residual": graphs.a_residual_net,
    "lstm": graphs.an_lstm,
    "gru": lambda: graphs.an_lstm("GRU"),
    "attention": graphs.an_attention,
}


def a_step(name: str) -> TrainingGraph:
    """Return the training step of the network called `name`."""
    optimizer = Adam() if name in ("mlp", "lstm") else SGD(0.9)
    return training_step(NETS[name](), optimizer=optimizer, batch_statistics=True)


def keep(folder: Path, name: str) -> None:
    """Write NAME-step.onnx and NAME-task.onnx, and beside each an .npz of its inputs and what it answers here."""
    graph, draw = a_step(name), np.random.default_rng(1)
    task = training(graph, epochs=2, batch_size=10)
    for kind, data, given in (
        ("step", graph.data, {**graph.parameters, **graph.state}),
        ("task", task.data, {**task.parameters, "seed": np.array(3, np.int64)}),
    ):
        session = Session(data)
        (own,) = [spec for spec in session.inputs if spec.name not in {*given, "target", "lr"}]
        feeds = given | {
            own.name: draw.normal(size=(ROWS, *own.shape[1:])).astype(np.float32),
            "target": draw.integers(0, CLASSES[name], ROWS),
            "lr": np.array(0.01, np.float32),
        }
        answers = session.run(feeds)
        (folder / f"{name}-{kind}.onnx").write_bytes(data)
        kept = {f"in.{key}": array for key, array in feeds.items()} | {f"out.{k}": a for k, a in answers.items()}
        np.savez(folder / f"{name}-{kind}.npz", **kept)
