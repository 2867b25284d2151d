"""What a graph computes from whole numbers and known shapes becomes constant: rules need axes and sizes as numbers.

Constants of floats stay as they are: they may be parameters.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgeml.autodiff.shapes import Shape, infer

MOST = 4096  # elements: what is larger is no shape
WHOLE = {TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL}
NEVER = {"RandomNormal", "RandomUniform", "Multinomial", "Loop", "Scan", "If"}


def fold(model: ModelProto) -> None:
    """Replace nodes of known answer by constants, in `model`, until there are none."""
    while _once(model):
        continue


def _once(model: ModelProto) -> bool:
    known = infer(model)
    constants = {
        t.name: numpy_helper.to_array(t)
        for t in model.graph.initializer
        if t.data_type in WHOLE and np.prod(t.dims) <= MOST
    }
    results = {value.name for value in model.graph.output}
    kept, found = [], False
    for node in model.graph.node:
        value = None
        if len(node.output) == 1 and node.output[0] not in results and node.domain in ("", "ai.onnx"):
            value = _value(node, constants | _shaped(node, known.shapes), model)
        if value is None or value.dtype.kind not in "iub" or value.size > MOST:
            kept.append(node)
            continue
        found = True
        constants[node.output[0]] = value
        model.graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return found


def _shaped(node: NodeProto, shapes: Mapping[str, Shape]) -> dict[str, np.ndarray]:
    """Return something of the shape that `node` asks for, where that is known."""
    shape = shapes.get(node.input[0]) if node.op_type in ("Shape", "Size") else None
    if shape is None or not all(isinstance(size, int) for size in shape):
        return {}
    return {node.input[0]: np.zeros([int(size or 0) for size in shape], bool)}


def _value(node: NodeProto, constants: Mapping[str, np.ndarray], model: ModelProto) -> np.ndarray | None:
    """Return what `node` answers, or None where that depends on the run."""
    if node.op_type in NEVER or not node.input or not all(name in constants for name in node.input if name):
        return None
    inputs = [helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(node.input) if name]
    graph = helper.make_graph([node], "one", inputs, [helper.make_empty_tensor_value_info(node.output[0])])
    one = helper.make_model(graph, opset_imports=model.opset_import)
    answers = list(ReferenceEvaluator(one).run(None, {value.name: constants[value.name] for value in inputs}))
    return np.asarray(answers[0])
