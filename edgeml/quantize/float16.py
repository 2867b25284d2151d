"""Half precision inside, the caller's types outside: half the file, and the same speed only where the core has fp16.

Which operators may take halves is read from onnx's own schemas; the rest, and `BLOCKED`, keep floats between casts.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from edgeml.artifacts import OnnxModel, Rows, Variant
from edgeml.errors import UnsupportedModel
from edgeml.graph.proto import opset_imports, subgraphs, walk
from edgeml.quantize.prepare import finished, prepared
from edgeml.quantize.recipe import Options
from edgeml_runtime.session import Session

NAME = "fp16"
BLOCKED = frozenset(  # their type is an attribute, or their sums and powers overflow early
    {"Cast", "Constant", "ConstantOfShape", "CumSum", "EyeLike", "Exp", "Log", "Pow", "Range", "ReduceSumSquare"}
)
HALF = "tensor(float16)"
LARGEST = float(np.finfo(np.float16).max)
SAMPLE = 64


def float16(model: OnnxModel, rows: Rows, options: Options) -> Variant:
    """Return `model` with halves for weights and activations; inputs and outputs keep their types."""
    proto = prepared(model)
    large = [t for t in proto.graph.initializer if t.data_type == TensorProto.FLOAT and _largest(t) > LARGEST]
    if large:
        raise UnsupportedModel(
            f"weight {large[0].name!r} reaches {_largest(large[0]):.3g}: float16 ends at {LARGEST:g}"
        )
    halves = _Halves(proto)
    for node in proto.graph.node:
        halves.node(node)
    if not halves.changed:
        raise UnsupportedModel("no operator of this graph takes float16: the result would be a twin of fp32")
    variant = finished(halves.proto(), model, NAME)
    _still_finite(variant, model, rows.take(slice(0, SAMPLE)))
    return variant


def _largest(tensor: TensorProto) -> float:
    array = numpy_helper.to_array(tensor)
    finite = array[np.isfinite(array)]
    return float(np.abs(finite).max()) if finite.size else 0.0


def _still_finite(variant: Variant, model: OnnxModel, rows: Rows) -> None:
    """Raise UnsupportedModel when halves overflow on rows where floats do not."""
    session = Session(variant.model.data)
    fixed = {spec.shape[0] for spec in session.inputs if spec.shape and spec.shape[0] > 0}
    rows = rows.take(slice(0, min(fixed, default=SAMPLE)))
    if not len(rows) or (fixed and len(rows) < min(fixed)):
        return
    small, full = session.run(rows.inputs), Session(model.data).run(rows.inputs)
    for name, answer in full.items():
        if answer.dtype.kind == "f" and np.isfinite(answer).all() and not np.isfinite(small[name]).all():
            raise UnsupportedModel(f"{name!r} is NaN or infinite in float16 on the calibration rows: it ends at 65504")


class _Halves:
    def __init__(self, proto: ModelProto) -> None:
        self._proto = ModelProto()
        self._proto.CopyFrom(proto)
        self._opsets = opset_imports(proto)
        self._weights = {t.name: t for t in proto.graph.initializer}
        values: list[ValueInfoProto] = [*proto.graph.value_info, *proto.graph.input, *proto.graph.output]
        floats = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}
        self._floats = floats | {t.name for t in proto.graph.initializer if t.data_type == TensorProto.FLOAT}
        inner = [node for outer in proto.graph.node for graph in subgraphs(outer) for node in walk(graph)]
        self._captured = {name for node in inner for name in node.input}
        self._outputs = {value.name for value in proto.graph.output}
        self._nodes: list[NodeProto] = []
        self._cast: dict[str, str] = {}  # tensor in one type -> the same in the other
        self._half: set[str] = set()
        self.changed = 0

    def proto(self) -> ModelProto:
        del self._proto.graph.node[:]
        self._proto.graph.node.extend(self._nodes)
        return self._proto

    def node(self, node: NodeProto) -> None:
        """Add `node` in halves where its schema allows that, with the casts it needs."""
        made, takes = NodeProto(), self._takes(node)
        made.CopyFrom(node)
        for index, name in enumerate(node.input):
            if index in takes and name not in self._half:
                made.input[index] = self._to_half(name)
            elif index not in takes and name in self._half:
                made.input[index] = self._to_float(name)
        self._nodes.append(made)
        self.changed += bool(takes)
        for index, name in enumerate(node.output if takes else ()):
            if name in self._floats:
                if name in self._outputs:
                    made.output[index] = f"{name}_half"
                    self._nodes.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
                    self._cast[name] = f"{name}_half"
                else:
                    self._half.add(name)

    def _takes(self, node: NodeProto) -> set[int]:
        """Return the inputs of `node` that become halves; none where the node has to stay float."""
        stays = node.op_type in BLOCKED or node.domain not in ("", "ai.onnx") or subgraphs(node)
        if stays or self._captured & set(node.output) or not onnx.defs.has(node.op_type):
            return set()
        schema = onnx.defs.get_schema(node.op_type, self._opsets[""])
        takes = {
            index
            for index, name in enumerate(node.input)
            if name in self._floats and HALF in schema.inputs[min(index, len(schema.inputs) - 1)].types
        }
        outputs = [min(i, len(schema.outputs) - 1) for i, name in enumerate(node.output) if name in self._floats]
        variables = {schema.inputs[min(index, len(schema.inputs) - 1)].type_str for index in takes}
        return takes if all(schema.outputs[i].type_str in variables for i in outputs) else set()

    def _to_half(self, name: str) -> str:
        if name not in self._cast:
            self._cast[name] = half = f"{name}_half"
            if name in self._weights:
                array = numpy_helper.to_array(self._weights[name])
                self._proto.graph.initializer.append(numpy_helper.from_array(array.astype(np.float16), half))
            else:
                self._nodes.append(helper.make_node("Cast", [name], [half], to=TensorProto.FLOAT16))
        return self._cast[name]

    def _to_float(self, name: str) -> str:
        if name not in self._cast:
            self._cast[name] = f"{name}_float"
            self._nodes.append(helper.make_node("Cast", [name], [f"{name}_float"], to=TensorProto.FLOAT))
        return self._cast[name]
