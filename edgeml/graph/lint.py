"""What in a graph will be slow, large or unsupported on a board: a finding per line.

OnnxModel, versions of onnxruntime -lint-> [Finding], one rule of RULES each; what a door repaired comes first
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from edgeml.artifacts import OnnxModel
from edgeml.errors import UnsupportedModel
from edgeml.graph.bounds import estimate
from edgeml.graph.cost import cost
from edgeml.graph.opsets import OLDEST, RUNTIMES, refusals
from edgeml.graph.proto import attribute, load, opset_imports, walk

LARGE = 1 << 20  # bytes of one constant
HUGE = 64 << 20  # bytes of a model: a Zero 2 W has 512 MB in all
LOOPS = ("Loop", "Scan", "If")
RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli")
TEXT = ("StringNormalizer", "TfIdfVectorizer", "Tokenizer", "RegexFullMatch", "StringSplit", "StringConcat")
ROW_NORMS = ("Softmax", "LogSoftmax")
SAID = ("agrees", "onnx's reference", "not compared")  # notes of a door that tell of no repair
MANY_STEPS = 2_000  # operator calls a row: about a millisecond each thousand on a workstation, ten on a Zero 2 W
MANY_MACS = 300_000_000  # a row; a core of a Pi 4 does about 6 G a second at best
MUCH_ALIVE = 32 << 20  # bytes of activations at one row


@dataclass(frozen=True)
class Finding:
    """One line of a lint; `fixed` when a door has repaired it already."""

    level: Literal["info", "warning"]
    rule: str
    where: str  # a node or tensor, or ""
    message: str
    fixed: bool = False

    def line(self) -> str:
        """Return it as one line."""
        state = "fixed" if self.fixed else self.level
        return f"{state:7} {self.rule}{f' at {self.where}' if self.where else ''}: {self.message}"


Found = Iterator[tuple[str, str]]  # where, message
Rule = Callable[[ModelProto], Found]


def lint(model: OnnxModel, runtimes: Sequence[str] = ()) -> list[Finding]:
    """Return what is worth knowing before `model` goes to a board; the notes of its door first, as fixed.

    `runtimes` are the versions of onnxruntime on the boards; what one of them does not load is a warning.
    """
    proto = load(model)
    fixed = [Finding("info", "door", "", note, fixed=not note.startswith(SAID)) for note in model.notes]
    found = [
        Finding(level, name, where, message) for name, (level, rule) in RULES.items() for where, message in rule(proto)
    ]
    return [*fixed, *found, *_runtimes(proto, runtimes)]


def to_plain(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Return the findings as JSON values."""
    return [asdict(finding) for finding in findings]


def _nodes(proto: ModelProto, *names: str) -> list[NodeProto]:
    return [node for node in walk(proto.graph) if node.op_type in names]


def _where(node: NodeProto) -> str:
    return f"{node.op_type} {node.name or (node.output[0] if node.output else '')}"


def _loops(proto: ModelProto) -> Found:
    for node in _nodes(proto, *LOOPS):
        yield _where(node), "runs its body node by node at every step: export GRU, LSTM or RNN operators, or unroll it"


def _steps(proto: ModelProto) -> Found:
    try:
        found = estimate(proto)
    except UnsupportedModel:
        return
    if found.steps > MANY_STEPS:
        yield found.loop, f"{found.steps:,} operator calls a row: about a microsecond each before any of them computes"


def _work(proto: ModelProto) -> Found:
    try:
        found = cost(proto.SerializeToString())
    except UnsupportedModel:
        return
    if found.macs > MANY_MACS:
        yield "", f"{found.macs / 1e6:,.0f} M multiply-adds a row: a Pi 4 core does about 6,000 M a second at best"
    if found.activation_bytes > MUCH_ALIVE:
        yield "", f"{found.activation_bytes / 1e6:,.0f} MB of activations at one row, besides the weights"


def _halves(proto: ModelProto) -> Found:
    halves = [tensor for tensor in proto.graph.initializer if tensor.data_type == TensorProto.FLOAT16]
    computed = [n for n in _nodes(proto, "Conv", "Gemm", "MatMul") if {t.name for t in halves} & set(n.input)]
    if computed:
        yield _where(computed[0]), "computes in float16, which CPUs do in float32 between casts: smaller, but slower"


def _dynamic_integers(proto: ModelProto) -> Found:
    for node in _nodes(proto, "ConvInteger"):
        yield _where(node), "rounds its activations at every call: 2 to 20 times slower than float; quantize statically"


def _fixed_rows(proto: ModelProto) -> Found:
    for value in proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        if len(dims) > 1 and dims[0].dim_value > 1:
            yield (
                value.name,
                f"takes exactly {dims[0].dim_value} rows: one row costs as much; open that axis",
            )


def _runtimes(proto: ModelProto, runtimes: Sequence[str]) -> list[Finding]:
    """Return what each onnxruntime from the oldest supported one on, and those of the boards, would refuse."""
    asked = dict.fromkeys(runtimes, "warning")
    later = list(RUNTIMES)[list(RUNTIMES).index(OLDEST) :]
    by_reason: dict[tuple[str, str], list[str]] = {}
    for version in dict.fromkeys((*runtimes, *later)):
        for why in refusals(proto, version):
            by_reason.setdefault((asked.get(version, "info"), why), []).append(version)
    return [
        Finding("warning" if level == "warning" else "info", "runtime", f"onnxruntime {', '.join(versions)}", why)
        for (level, why), versions in by_reason.items()
    ]


def _doubles(proto: ModelProto) -> Found:
    wide = [value.name for value in proto.graph.input if value.type.tensor_type.elem_type == TensorProto.DOUBLE]
    if wide:
        yield wide[0], f"{len(wide)} float64 inputs: every row is sent and copied twice as wide; take float32"
    names = [tensor.name for tensor in proto.graph.initializer if tensor.data_type == TensorProto.DOUBLE]
    if names:
        yield names[0], f"{len(names)} float64 constants: twice the memory, half the speed; export it in float32"


def _large(proto: ModelProto) -> Found:
    for tensor in proto.graph.initializer:
        size = numpy_helper.to_array(tensor).nbytes if tensor.data_type != TensorProto.STRING else 0
        if size > LARGE:
            yield tensor.name, f"{size / 1e6:.1f} MB in one constant: int8 makes it a quarter, int4 an eighth"


def _unused(proto: ModelProto) -> Found:
    used = {name for node in walk(proto.graph) for name in node.input} | {value.name for value in proto.graph.output}
    idle = [tensor.name for tensor in proto.graph.initializer if tensor.name not in used]
    if idle:
        yield idle[0], f"{len(idle)} constants that no operator reads: they are shipped for nothing"


def _same(proto: ModelProto) -> Found:
    sizes = Counter((t.data_type, tuple(t.dims), t.raw_data) for t in proto.graph.initializer if len(t.raw_data) > 1024)
    copies = sum((count - 1) * len(key[2]) for key, count in sizes.items())
    if copies:
        yield "", f"{copies:,} bytes of constants are copies of others: share them"


def _inputs_as_weights(proto: ModelProto) -> Found:
    weights = {tensor.name for tensor in proto.graph.initializer}
    listed = [value.name for value in proto.graph.input if value.name in weights]
    if listed:
        yield listed[0], f"{len(listed)} weights are listed as inputs: onnxruntime then neither folds nor re-lays them"


def _unknown_shapes(proto: ModelProto) -> Found:
    for value in proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        if any(not dim.HasField("dim_value") for dim in dims[1:]):
            yield value.name, "an open axis besides the rows: memory cannot be planned, fix the size if you can"


def _random(proto: ModelProto) -> Found:
    for node in _nodes(proto, *RANDOM):
        yield _where(node), "answers at random: no device can replay a golden; export it for inference"


def _training(proto: ModelProto) -> Found:
    for node in _nodes(proto, "Dropout", "BatchNormalization"):
        if attribute(node, "training_mode", 0) or (len(node.input) > 2 and node.op_type == "Dropout"):
            yield _where(node), "is in training mode: export it for inference"


def _bare_norms(proto: ModelProto) -> Found:
    made = {name: node.op_type for node in proto.graph.node for name in node.output}
    for node in _nodes(proto, "BatchNormalization"):
        if made.get(node.input[0]) not in ("Conv", "Gemm", "ConvTranspose"):
            yield _where(node), "has no convolution before it to fold into: it costs a pass over the tensor"


def _transposes(proto: ModelProto) -> Found:
    found = _nodes(proto, "Transpose")
    if len(found) > 2:
        yield _where(found[0]), f"{len(found)} layout changes: each copies a tensor; export channels first"


def _softmax(proto: ModelProto) -> Found:
    for node in _nodes(proto, *ROW_NORMS):
        if attribute(node, "axis", -1) not in (-1, 1):
            yield _where(node), f"over axis {attribute(node, 'axis')}: slower than over the last one"


def _dynamic_convolutions(proto: ModelProto) -> Found:
    weights = {tensor.name for tensor in proto.graph.initializer}
    made = {name: node.op_type for node in proto.graph.node for name in node.output}
    for node in _nodes(proto, "Conv"):
        source = made.get(node.input[1], "")
        if node.input[1] not in weights and source not in ("Constant", "DequantizeLinear", "Cast"):
            yield _where(node), "its weights are computed: they cannot be packed ahead or quantized"


def _transposed_convolutions(proto: ModelProto) -> Found:
    for node in _nodes(proto, "ConvTranspose"):
        yield _where(node), "has no 8-bit kernel and a slow float one: Resize and Conv do the same faster"


def _text(proto: ModelProto) -> Found:
    names = sorted({node.op_type for node in _nodes(proto, *TEXT)})
    if names:
        yield "", f"{', '.join(names)} work on strings: slow on a small core, and they stay float under int8"


def _locale(proto: ModelProto) -> Found:
    for node in _nodes(proto, "StringNormalizer"):
        given = attribute(node, "locale", b"") or b""
        name = given.decode() if isinstance(given, bytes) else str(given)
        if name not in ("", "C"):
            yield (
                _where(node),
                f"asks for the locale {name}: where that is missing it does not load; use C",
            )


def _recurrent(proto: ModelProto) -> Found:
    for node in _nodes(proto, "GRU", "RNN"):
        yield _where(node), "has no 8-bit kernel: only its weights become smaller"


def _extensions(proto: ModelProto) -> Found:
    names = sorted({node.op_type for node in walk(proto.graph) if node.domain == "com.microsoft"})
    if names:
        yield "", f"{', '.join(names)} are onnxruntime's own operators: no other runtime loads them"


def _opset(proto: ModelProto) -> Found:
    version = opset_imports(proto).get("", 0)
    if version < 13:
        yield "", f"opset {version}: per-channel int8 needs 13, the converter raises it where it can"


def _size(proto: ModelProto) -> Found:
    size = proto.ByteSize()
    if size > HUGE:
        yield "", f"{size / 1e6:.0f} MB: loading takes about 1.6 times as much memory; a Zero 2 W has 512 MB"


def _documentation(proto: ModelProto) -> Found:
    size = sum(len(node.doc_string) for node in walk(proto.graph))
    if size > 4096:
        yield "", f"{size:,} bytes of comments on operators: strip doc_string"


def _indices(proto: ModelProto) -> Found:
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.INT64 and int(np.prod(tensor.dims, initial=1)) > 4096:
            yield tensor.name, f"{int(np.prod(tensor.dims)):,} whole numbers of 64 bits: 32 would do"


RULES: dict[str, tuple[Literal["info", "warning"], Rule]] = {
    "loop": ("warning", _loops),
    "float64": ("warning", _doubles),
    "large-constant": ("info", _large),
    "unused-constant": ("warning", _unused),
    "copied-constant": ("warning", _same),
    "weight-as-input": ("warning", _inputs_as_weights),
    "open-axis": ("info", _unknown_shapes),
    "random": ("warning", _random),
    "training-mode": ("warning", _training),
    "unfolded-norm": ("info", _bare_norms),
    "transposes": ("info", _transposes),
    "softmax-axis": ("info", _softmax),
    "computed-weights": ("warning", _dynamic_convolutions),
    "conv-transpose": ("info", _transposed_convolutions),
    "text": ("info", _text),
    "locale": ("warning", _locale),
    "recurrent": ("info", _recurrent),
    "extension": ("info", _extensions),
    "old-opset": ("info", _opset),
    "size": ("warning", _size),
    "comments": ("info", _documentation),
    "index-width": ("info", _indices),
    "steps": ("warning", _steps),
    "work": ("info", _work),
    "float16": ("info", _halves),
    "dynamic-convolution": ("warning", _dynamic_integers),
    "fixed-rows": ("warning", _fixed_rows),
}
