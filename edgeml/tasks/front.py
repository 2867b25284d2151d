"""A model's own first part in front of a study, and a newly learned head behind it.

    OnnxModel -front-> Front -study-> fitted estimator -convert-> head -with_head-> OnnxModel with the same inputs

Rows enter as the model takes them, words and missing values included; what its last layer saw is what the study
sums over. So the head of a deployed network, or the estimator behind agreed preprocessing, is fitted exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from onnx import ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper, version_converter

from edgeml import graph
from edgeml.artifacts import OnnxModel
from edgeml.autodiff.backward import live
from edgeml.errors import UnsupportedModel, UserError
from edgeml.graph.proto import opset_imports, subgraphs
from edgeml.tasks.emitter import Emitter

HEADS = ("Gemm", "MatMul", "LinearClassifier", "LinearRegressor")  # the last one of these is what is learned anew
LEAST_OPSET = 18  # what the operators of a study need
LEAST_IR = 8
PREFIX = "front/"


@dataclass(frozen=True)
class Front:
    """The part of `model` that makes `tensor`, float32 (rows, features)."""

    model: OnnxModel
    tensor: str
    features: int

    @property
    def inputs(self) -> list[ValueInfoProto]:
        """Return the model's own inputs that the tensor depends on."""
        proto = graph.load(self.model)
        used = {name for node in self.nodes for name in node.input}
        weights = {tensor.name for tensor in proto.graph.initializer}
        return [value for value in proto.graph.input if value.name in used - weights or value.name == self.tensor]

    @property
    def nodes(self) -> list[NodeProto]:
        """Return the nodes that the tensor needs, in order."""
        return live(graph.load(self.model).graph.node, [self.tensor])

    @property
    def opsets(self) -> dict[str, int]:
        """Return the opset of every domain the model uses."""
        return opset_imports(graph.load(self.model))

    def emit(self, e: Emitter) -> str:
        """Add the front to a graph whose inputs are `inputs`; return the tensor's name there."""
        part = Emitter(PREFIX, e.constants)
        given = {value.name: value.name for value in self.inputs}
        used = {name for node in self.nodes for name in node.input}
        for tensor in graph.load(self.model).graph.initializer:
            if tensor.name in used:
                given[tensor.name] = PREFIX + tensor.name
                e.constants[PREFIX + tensor.name] = numpy_helper.to_array(tensor)
        part.instance(self.nodes, given)
        e.nodes.extend(part.nodes)
        return self.tensor if self.tensor in given else PREFIX + self.tensor


def front(model: OnnxModel, tensor: str = "") -> Front:
    """Return the part of `model` up to `tensor`, or to what its last linear layer takes.

    Raises UnsupportedModel when there is no such layer or its width is not fixed.
    """
    model = _at_least(model, LEAST_OPSET)
    proto = graph.load(model)
    tensor = tensor or _before_head(proto)
    known = graph.infer(proto).get(tensor)
    if known is None or not known.known:
        raise UnsupportedModel(f"the size of {tensor!r} is not fixed in this model: name another tensor")
    found = Front(model, tensor, known.size)
    if any(subgraphs(node) for node in found.nodes):
        raise UnsupportedModel(f"what makes {tensor!r} has loops or branches: name a tensor before them")
    return found


def _at_least(model: OnnxModel, version: int) -> OnnxModel:
    """Return `model` in opset `version`, or in its own newer one."""
    proto = graph.load(model)
    own = opset_imports(proto).get("", 0)
    if own >= version:
        return model
    try:
        newer = version_converter.convert_version(proto, version)
    except (RuntimeError, ValueError) as error:
        raise UnsupportedModel(f"a model of opset {own} does not become one of {version}: {error}") from error
    return replace(model, data=newer.SerializeToString())


def _before_head(proto: ModelProto) -> str:
    heads = [node for node in proto.graph.node if node.op_type in HEADS]
    if not heads:
        raise UnsupportedModel(f"the model has no {', '.join(HEADS)} to learn anew: name the tensor to learn from")
    return str(heads[-1].input[0])


def with_head(before: Front, head: OnnxModel) -> OnnxModel:
    """Return `before` and then `head`, a model of one float input of its width, as one model.

    Its inputs are those of the first, its outputs those of the second. Raises UserError when they do not fit.
    """
    (entry, *others) = graph.inputs(head)
    if others or entry.shape[-1] != before.features:
        wants = ", ".join(f"{spec.name} {spec.shape}" for spec in (entry, *others))
        raise UserError(f"a head over {wants}, and the front gives {before.features} features in one input")
    version = max(opset_imports(graph.load(model))[""] for model in (before.model, head))
    first, last = replace(before, model=_at_least(before.model, version)), graph.load(_at_least(head, version))
    e = Emitter("joint/", {})
    features = e.op("Reshape", first.emit(e), e.vector(-1, before.features))
    behind = Emitter("head/", e.constants)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in last.graph.initializer}
    e.constants.update({f"head/{name}": value for name, value in weights.items()})
    behind.instance(last.graph.node, {entry.name: features, **{name: f"head/{name}" for name in weights}})
    for value in last.graph.output:
        behind.named(value.name, f"head/{value.name}")
    constants = [numpy_helper.from_array(value, name) for name, value in e.constants.items()]
    inside = helper.make_graph(
        [*e.nodes, *behind.nodes], "front-and-head", free_rows(first.inputs), last.graph.output, constants
    )
    opsets = [*graph.load(first.model).opset_import, *last.opset_import]
    whole = helper.make_model(inside, opset_imports=opsets, ir_version=max(last.ir_version, LEAST_IR))
    made = graph.serialize(whole, source=before.model.digest, notes=(*before.model.notes, *head.notes))
    return replace(made, features=before.model.features, classes=head.classes)


def free_rows(inputs: Sequence[ValueInfoProto]) -> list[ValueInfoProto]:
    """Return copies of `inputs` whose first axis is any number of rows."""
    found = []
    for value in inputs:
        copy = ValueInfoProto()
        copy.CopyFrom(value)
        copy.type.tensor_type.shape.dim[0].dim_param = "rows"
        found.append(copy)
    return found
