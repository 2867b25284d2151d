"""Whether a task's graph may run here at all: decided from its file, before it is loaded or a row is read.

An operator allow-list, no values from other files, no code of its own, loops that count, constants that are small.
What this cannot see is what the numbers mean: `task.check_graph` looks at shapes, `rehearsal` at behaviour on
made-up rows, and the owner's policy (`templates`, `task_keys`, clipping and noise) is what holds against malice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass

from edgeml_runtime.errors import TaskRefused
from edgeml_runtime.graph_walk import Constant, Node, Outline, outline
from edgeml_runtime.session import VERSION

MAX_TRIPS = 10_000_000  # of a loop whose count is written in the file; one that is computed is bounded by time
MAX_ELEMENTS = 1 << 26  # of a tensor whose size is written in the file: 256 MB of float32
_ARITHMETIC = (
    "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast "
    "CastLike Ceil Celu Clip Cos Cosh CumSum Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid "
    "HardSwish Hardmax Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log LogSoftmax Max Mean Min Mish Mod Mul "
    "Neg Not Or PRelu Pow Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt "
    "Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor"
)
_REDUCTION = (
    "ArgMax ArgMin ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
    "ReduceSum ReduceSumSquare"
)
_LAYER = (
    "Attention AveragePool BatchNormalization Conv ConvInteger ConvTranspose DeformConv Det Dropout Einsum GRU "
    "Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool GridSample GroupNormalization InstanceNormalization LRN LSTM "
    "LayerNormalization LpNormalization LpPool MatMul MatMulInteger MaxPool MaxUnpool MeanVarianceNormalization "
    "NegativeLogLikelihoodLoss RMSNormalization RNN RotaryEmbedding SoftmaxCrossEntropyLoss"
)
_MOVEMENT = (
    "CenterCropPad Col2Im Compress Concat Constant ConstantOfShape DepthToSpace Expand EyeLike Flatten Gather "
    "GatherElements GatherND NonZero OneHot Pad Range Reshape Resize ReverseSequence ScatterElements ScatterND "
    "Shape Size Slice SpaceToDepth Split Squeeze Tile TopK Transpose Trilu Unique Unsqueeze Upsample"
)
_INTEGER = "DequantizeLinear DynamicQuantizeLinear QLinearConv QLinearMatMul QuantizeLinear"
_SIGNAL = "BlackmanWindow DFT HammingWindow HannWindow MelWeightMatrix STFT"
_TEXT = "StringNormalizer TfIdfVectorizer"
_CONTROL = "If Loop Scan"
_ML = (
    "ArrayFeatureExtractor Binarizer FeatureVectorizer Imputer LabelEncoder LinearClassifier LinearRegressor "
    "Normalizer OneHotEncoder SVMClassifier SVMRegressor Scaler TreeEnsemble TreeEnsembleClassifier "
    "TreeEnsembleRegressor"
)
# No random numbers (a round must give the same twice), no sequences, no images or other files.
OPERATORS: frozenset[str] = frozenset(
    " ".join((_ARITHMETIC, _REDUCTION, _LAYER, _MOVEMENT, _INTEGER, _SIGNAL, _TEXT, _CONTROL)).split()
) | {f"ai.onnx.ml:{name}" for name in _ML.split()}

SINCE = {"GridSample": (1, 26)}  # onnxruntime that keeps it within its image; older ones reflect far places anywhere


@dataclass(frozen=True)
class Allowed:
    """What a graph may be made of; bytes."""

    operators: Collection[str] = OPERATORS  # those of other domains than ai.onnx as "domain:name"
    constants: int = 32 << 20  # all together
    engine: str = VERSION  # of the onnxruntime that will run it


def vet(data: bytes, allowed: Allowed) -> Outline:
    """Return what is in the graph `data`; raise TaskRefused for the first thing in it that may not be."""
    found = outline(data)
    if found.odd:
        raise TaskRefused(f"the task's graph has {found.odd[0]}, which no task needs")
    for node in found.nodes:
        if (name := full_name(node)) not in allowed.operators:
            raise TaskRefused(f"the task uses the operator {name}, which is not on this device's list")
        if (since := SINCE.get(name, ())) > tuple(map(int, re.findall(r"\d+", allowed.engine)[:2])):
            raise TaskRefused(
                f"the task uses the operator {name}, which reads outside its inputs before onnxruntime "
                f"{'.'.join(map(str, since))}; {allowed.engine or 'none'} is here: upgrade it"
            )
    _check_constants(found.constants, allowed.constants)
    _check_loops(found)
    return found


def full_name(node: Node) -> str:
    """Return the operator as the list names it.

    >>> full_name(Node("ai.onnx", "Add", (), (), 0)), full_name(Node("ai.onnx.ml", "Scaler", (), (), 0))
    ('Add', 'ai.onnx.ml:Scaler')
    """
    return node.operator if node.domain == "ai.onnx" else f"{node.domain}:{node.operator}"


def _check_constants(constants: list[Constant], most: int) -> None:
    for constant in constants:
        if constant.external:
            raise TaskRefused(f"constant {constant.name!r} would be read from another file of this device")
    if (total := sum(constant.size for constant in constants)) > most:
        largest = max(constants, key=lambda constant: constant.size)
        raise TaskRefused(
            f"the task's constants have {total:,} bytes, {largest.name!r} alone {largest.size:,}; {most:,} are allowed"
        )


def _check_loops(found: Outline) -> None:
    """Refuse loops without a count, and counts and sizes that are written in the file and too large."""
    numbers: dict[str, tuple[int, ...]] = {}
    for constant in found.constants:  # two scopes may use one name: the larger counts
        numbers[constant.name] = max(numbers.get(constant.name, ()), constant.numbers or (), key=_largest)
    for node in found.nodes:
        if node.operator == "Loop":
            trips = node.inputs[0] if node.inputs else ""
            if not trips:
                raise TaskRefused("the task has a Loop without a trip count: it could run for ever")
            if (count := _largest(numbers.get(trips, ()))) > MAX_TRIPS:
                raise TaskRefused(f"the task has a Loop of {count:,} turns; {MAX_TRIPS:,} are allowed")
        at = {"ConstantOfShape": 0, "Expand": 1, "MaxUnpool": 2, "Tile": 1}.get(node.operator, -1)
        shape = numbers.get(node.inputs[at], ()) if 0 <= at < len(node.inputs) else ()
        if (size := _largest(shape)) > MAX_ELEMENTS:
            raise TaskRefused(f"the task makes a tensor of {size:,} elements; {MAX_ELEMENTS:,} are allowed")


def _largest(numbers: tuple[int, ...]) -> int:
    return math.prod(max(1, number) for number in numbers)
