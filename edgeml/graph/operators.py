"""Counting rules: one operator, one rule that tells its class, its multiply-accumulates and its weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from onnx import NodeProto, TensorProto

from edgeml.graph.proto import attribute
from edgeml.graph.shapes import SAME_SHAPE, Tensor, item_bytes


@dataclass(frozen=True)
class Scene:
    """A graph with everything a counting rule looks up."""

    shapes: Mapping[str, Tensor]
    weights: Mapping[str, TensorProto]
    producer: Mapping[str, NodeProto]
    readers: Mapping[str, Sequence[NodeProto]]

    def tensor(self, name: str) -> Tensor:
        return self.shapes.get(name, Tensor((), 4))

    def stored(self, name: str) -> str:
        """Return the initializer behind `name`, through a DequantizeLinear, or ""."""
        node = self.producer.get(name)
        if node is not None and node.op_type == "DequantizeLinear":
            name = node.input[0]
        return name if name in self.weights else ""

    def precision(self, node: NodeProto) -> str:
        """Return "" for float, or the types of activations and weights, such as "u8s8"."""
        if node.op_type in ROUNDED:
            return ROUNDED[node.op_type]
        if node.op_type in QUANTIZED:
            activation, weight = (node.input[i] for i in QUANTIZED[node.op_type])
            return _short(self._type(activation, node)) + _short(self._type(weight))
        pair = [self.producer.get(name) for name in node.input[:2]]
        if len(pair) == 2 and all(p is not None and p.op_type == "DequantizeLinear" for p in pair):
            return "".join(_short(self._type(p.input[0], p)) for p in pair if p is not None)
        return ""

    def weight_bytes(self, name: str) -> int:
        """Return the stored bytes of the weight behind `name`, 0 when it is computed."""
        stored = self.stored(name)
        return tensor_bytes(self.weights[stored]) if stored else 0

    def folds(self, node: NodeProto) -> bool:
        """Whether the runtime removes this node or folds it into the operator beside it."""
        if node.op_type in REMOVED or (node.output and node.output[0] in self.weights):
            return True
        source = self.producer.get(node.input[0]) if node.input else None
        made_by = "" if source is None else source.op_type
        if node.op_type == "Cast":  # to the type it already has
            return made_by in SAME_SHAPE and attribute(node, "to") == TensorProto.FLOAT
        if node.op_type == "DequantizeLinear":
            readers = self.readers.get(node.output[0], ())
            if node.input[0] in self.weights:  # unfolded at every call where the product is in floats
                return all(r.op_type in MACS and bool(self.precision(r)) for r in readers)
            return all(r.op_type in MACS or r.op_type in FUSED for r in readers)
        if node.op_type == "QuantizeLinear":
            return made_by in FUSED or (source is not None and made_by in MACS and bool(self.precision(source)))
        if node.op_type == "Add":
            return made_by == "MatMul" and any(name in self.weights for name in node.input)
        while source is not None and source.op_type in ("QuantizeLinear", "DequantizeLinear"):
            source = self.producer.get(source.input[0])
        return node.op_type in FUSED and source is not None and source.op_type in (*MACS, "Add")

    def touched(self, node: NodeProto) -> int:
        """Return the bytes of activations that `node` reads and writes."""
        names = [name for name in (*node.input, *node.output) if name and name not in self.weights]
        return sum(self.tensor(name).nbytes for name in names)

    def _type(self, name: str, reader: NodeProto | None = None) -> int:
        """The ONNX type of a quantized tensor; its zero point tells where shape inference does not."""
        if name in self.weights:
            return self.weights[name].data_type
        for node in (reader, self.producer.get(name)):
            point = node.input[2] if node is not None and len(node.input) > 2 else ""
            if point in self.weights:
                return self.weights[point].data_type
        return TensorProto.UINT8  # what QuantizeLinear and DynamicQuantizeLinear write unless told otherwise


Rule = Callable[[NodeProto, Scene], "tuple[str, int, str] | None"]  # class, MACs, weight tensor
MACS: dict[str, Rule] = {}
QUANTIZED = {  # operator -> inputs that hold the activations and the weights
    "QLinearConv": (0, 3),
    "ConvInteger": (0, 1),
    "QLinearMatMul": (0, 3),
    "MatMulInteger": (0, 1),
    "QGemm": (0, 3),
    "MatMulIntegerToFloat": (0, 1),
}
ROUNDED = {  # operators that round float activations themselves, and what they then multiply
    "DynamicQuantizeMatMul": "u8s8",
    "DynamicQuantizeLSTM": "u8s8",
    "MatMulNBits": "s8u4",
}
ELEMENTWISE = frozenset(  # operators that read and write every element once
    """
    Abs Add And ArgMax ArgMin ArrayFeatureExtractor AveragePool BatchNormalization Binarizer Cast Ceil Clip Concat
    ConstantOfShape Cos CumSum DepthToSpace DequantizeLinear Div Dropout DynamicQuantizeLinear Elu Equal Erf Exp Expand
    FeatureVectorizer Floor Gather GatherElements Gelu GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual
    HardSigmoid HardSwish Imputer InstanceNormalization IsNaN LabelEncoder LayerNormalization LeakyRelu Less LessOrEqual
    Log LogSoftmax Max MaxPool Mean Min Mod Mul Neg Normalizer Not OneHot OneHotEncoder Or PRelu Pad Pow
    QLinearAdd QLinearAveragePool QLinearConcat QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul QLinearSigmoid
    QuantizeLinear
    Range Reciprocal ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare Relu Resize Round Scaler Selu Sigmoid Sign Sin Slice Softmax Softplus Softsign SpaceToDepth Split
    Sqrt Sub Sum Tanh Tile TopK Transpose Where ZipMap
    """.split()  # noqa: SIM905 (a list of words reads better than eighty strings)
)
FUSED = frozenset({"Relu", "Clip", "LeakyRelu", "BatchNormalization"})  # into the Conv or Gemm before them
REMOVED = frozenset({"Constant", "Identity", "Dropout"})  # before the first run
FREE = frozenset({"Constant", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Shape"})  # no bytes move


def counts(*operators: str) -> Callable[[Rule], Rule]:
    """Register the counting rule of `operators`."""

    def register(rule: Rule) -> Rule:
        for operator in operators:
            if MACS.setdefault(operator, rule) is not rule:
                raise ValueError(f"{operator} is already counted by {MACS[operator].__name__}")
        return rule

    return register


@counts("Conv", "QLinearConv", "ConvInteger")
def _conv(node: NodeProto, scene: Scene) -> tuple[str, int, str] | None:
    name = node.input[QUANTIZED.get(node.op_type, (0, 1))[1]]
    kernel, out = scene.tensor(name), scene.tensor(node.output[0])
    if len(kernel.shape) < 3 or not out.known or not out.shape:
        return None
    group = attribute(node, "group", 1)
    depthwise = kernel.shape[1] == 1 and group == kernel.shape[0] and group != 1
    return "depthwise" if depthwise else "conv", out.size * kernel.size // kernel.shape[0], name


@counts("Gemm", "MatMul", "QLinearMatMul", "MatMulInteger", "QGemm", "MatMulIntegerToFloat", "DynamicQuantizeMatMul")
def _matmul(node: NodeProto, scene: Scene) -> tuple[str, int, str] | None:
    left, right = (scene.tensor(node.input[i]) for i in QUANTIZED.get(node.op_type, (0, 1)))
    name = node.input[QUANTIZED.get(node.op_type, (0, 1))[1]]
    if not right.shape or not right.known:
        return None
    transposed = node.op_type in ("Gemm", "QGemm") and attribute(node, "transA", 0)
    flipped = node.op_type in ("Gemm", "QGemm") and attribute(node, "transB", 0)
    inner = right.shape[-1] if flipped else right.shape[-min(2, len(right.shape))]
    rows = left.shape[-1] if transposed and left.shape else left.size // max(inner, 1)
    return "gemm" if rows > 1 else "gemv", max(rows, 1) * math.prod(right.shape[-2:]), name


@counts("MatMulNBits")
def _blocks(node: NodeProto, scene: Scene) -> tuple[str, int, str] | None:
    inner, outer = (int(str(attribute(node, name))) for name in ("K", "N"))
    rows = max(scene.tensor(node.input[0]).size // inner, 1)
    return "gemm" if rows > 1 else "gemv", rows * inner * outer, node.input[1]


@counts("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM")
def _recurrent(node: NodeProto, scene: Scene) -> tuple[str, int, str] | None:
    sequence = scene.tensor(node.input[0])
    steps = sequence.shape[0] if sequence.shape and sequence.known else 0
    weights = sum(scene.tensor(name).size for name in node.input[1:3])
    return ("gemv", steps * weights, node.input[2]) if steps and weights else None


@counts("LinearClassifier", "LinearRegressor", "SVMClassifier", "SVMRegressor")
def _linear(node: NodeProto, scene: Scene) -> tuple[str, int, str] | None:
    size = 0
    for name in ("coefficients", "support_vectors"):
        values = attribute(node, name, [])
        size += len(values) if isinstance(values, list | tuple) else 0
    return "gemv", size, ""


def tensor_bytes(tensor: TensorProto) -> int:
    """Return the bytes of the elements of `tensor`."""
    elements: int = math.prod(tensor.dims)
    return elements * item_bytes(tensor.data_type)


def _short(kind: int) -> str:
    if kind == TensorProto.INT8:
        return "s8"
    return "u8" if kind == TensorProto.UINT8 else "x"
