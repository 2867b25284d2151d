"""The last nodes of a scikit-learn graph: class indices in place of classes, matrices in place of vectors.

ModelProto of skl2onnx, its output names -> finish_outputs -> the same, changed in place
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgeml.convert.sklearn_says import WHOLE
from edgeml_runtime.wire.manifest import LABEL, SCORES

LABEL_ENCODER = 2  # ai.onnx.ml opset whose LabelEncoder maps text to whole numbers
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)


def finish_outputs(proto: ModelProto, names: Mapping[str, str], classes: Sequence[Any] | None) -> None:
    """Give the outputs of `proto` edgeml's types: int64 (n,) for whole ones, float32 (n, k) for the rest.

    `names` says which output of the graph is which of ours. The graph's own output names are kept.
    """
    for ours, given in names.items():
        value = next(value for value in proto.graph.output if value.name == given)
        kind = value.type.tensor_type.elem_type
        if ours == LABEL and classes is not None and list(classes) != list(range(len(classes))):
            _index(proto, given, list(classes), text=kind == TensorProto.STRING)
        elif ours in WHOLE and (kind != TensorProto.INT64 or len(value.type.tensor_type.shape.dim) > 1):
            _shaped(proto, given, shape=[-1], kind=TensorProto.INT64)
        elif ours in WHOLE:
            pass  # as it should be
        elif ours == SCORES and classes is not None and len(classes) == 2:
            _last_column(proto, given)
        elif kind in FLOATS and len(value.type.tensor_type.shape.dim) < 2:
            _shaped(proto, given, shape=[-1, 1], kind=TensorProto.FLOAT)
        elif kind == TensorProto.DOUBLE:
            _shaped(proto, given, shape=[0, -1], kind=TensorProto.FLOAT)
        if ours in WHOLE:
            value.CopyFrom(helper.make_tensor_value_info(given, TensorProto.INT64, [None]))
        elif kind in FLOATS:
            dims = value.type.tensor_type.shape.dim
            width = dims[1].dim_value if len(dims) == 2 and dims[1].HasField("dim_value") else None
            value.CopyFrom(helper.make_tensor_value_info(given, TensorProto.FLOAT, [None, width]))


def _index(proto: ModelProto, output: str, classes: list[Any], *, text: bool) -> None:
    """Replace each class at `output` by its index."""
    inner = _moved(proto, output)
    if text:
        keys, domain = [str(one) for one in classes], "ai.onnx.ml"
        node = helper.make_node("LabelEncoder", [inner], [output], domain=domain, keys_strings=keys)
        node.attribute.append(helper.make_attribute("values_int64s", list(range(len(keys)))))
        proto.graph.node.append(node)
        if not any(entry.domain == domain and entry.version >= LABEL_ENCODER for entry in proto.opset_import):
            proto.opset_import.append(helper.make_opsetid(domain, LABEL_ENCODER))  # the newer of two counts
        return
    _constant(proto, f"{output}.classes", np.asarray(classes, np.float32)[None])
    _constant(proto, f"{output}.rows", np.array([-1, 1], np.int64))
    proto.graph.node.extend(
        [
            helper.make_node("Cast", [inner], [f"{output}.float"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", [f"{output}.float", f"{output}.rows"], [f"{output}.column"]),
            helper.make_node("Equal", [f"{output}.column", f"{output}.classes"], [f"{output}.hits"]),
            helper.make_node("Cast", [f"{output}.hits"], [f"{output}.whole"], to=TensorProto.INT32),
            helper.make_node("ArgMax", [f"{output}.whole"], [output], axis=1, keepdims=0),
        ]
    )


def _shaped(proto: ModelProto, output: str, *, shape: list[int], kind: int) -> None:
    """Cast `output` to `kind` and reshape it; the passes take out what changes nothing."""
    inner = _moved(proto, output)
    _constant(proto, f"{output}.shape", np.array(shape, np.int64))
    proto.graph.node.extend(
        [
            helper.make_node("Cast", [inner], [f"{output}.cast"], to=kind),
            helper.make_node("Reshape", [f"{output}.cast", f"{output}.shape"], [output]),
        ]
    )


def _last_column(proto: ModelProto, output: str) -> None:
    """Keep the last column, which is the decision for the second of two classes however many there are."""
    inner = _moved(proto, output)
    _constant(proto, f"{output}.matrix", np.array([0, -1], np.int64))
    _constant(proto, f"{output}.last", np.array([-1], np.int64))
    proto.graph.node.extend(
        [
            helper.make_node("Reshape", [inner, f"{output}.matrix"], [f"{output}.table"]),
            helper.make_node("Gather", [f"{output}.table", f"{output}.last"], [output], axis=1),
        ]
    )


def _moved(proto: ModelProto, output: str) -> str:
    """Rename the tensor behind `output` and return its new name."""
    inner = f"{output}.said"
    for node in proto.graph.node:
        node.output[:] = [inner if name == output else name for name in node.output]
        node.input[:] = [inner if name == output else name for name in node.input]
    return inner


def _constant(proto: ModelProto, name: str, value: np.ndarray) -> None:
    proto.graph.initializer.append(numpy_helper.from_array(value, name))
