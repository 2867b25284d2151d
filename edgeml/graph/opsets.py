"""Which opset each onnxruntime loads, and which operators it lacks there.

    versions of the boards -> newest_for -> Runtime        graph, version -> refusals

Every number was found by loading one-node graphs in that version of the wheel (CPU, Linux). A runtime may load a stamp
and still lack a kernel at it: 1.23 loads opset 23 and cannot quantize there, so `opset` is the newest at which every
operator that edgeml writes has one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from onnx import ModelProto

from edgeml.errors import UserError
from edgeml.graph.proto import attribute, opset_imports, walk


@dataclass(frozen=True)
class Runtime:
    """What one minor version of onnxruntime loads."""

    version: str
    opset: int  # the newest that is written for it
    newest: int  # the newest stamp that it loads
    ml_opset: int
    ir: int


@dataclass(frozen=True)
class Gap:
    """An operator that has no kernel from an opset on, until the runtime `mended` ("" when none has one yet)."""

    operator: str
    opset: int
    mended: str
    instead: str


RUNTIMES = {
    row.version: row
    for row in (
        Runtime("1.16", 19, 19, 3, 9),
        Runtime("1.17", 20, 20, 4, 9),
        Runtime("1.18", 21, 21, 5, 10),
        Runtime("1.19", 21, 21, 5, 10),
        Runtime("1.20", 21, 21, 5, 10),
        Runtime("1.21", 22, 22, 5, 10),
        Runtime("1.22", 22, 22, 5, 10),
        Runtime("1.23", 22, 23, 5, 11),
        Runtime("1.24", 25, 25, 5, 13),
        Runtime("1.26", 26, 26, 5, 13),
        Runtime("1.28", 26, 26, 5, 13),
        Runtime("1.30", 26, 26, 5, 13),
        Runtime("1.32", 27, 28, 5, 14),
    )
}
OLDEST = "1.19"  # the last wheel for Python 3.9, and the oldest that is tried in CI
GAPS = (
    Gap("QLinearMatMul", 21, "1.20", "opset 20, or QDQ"),
    Gap("DeformConv", 19, "1.26", "a plain convolution"),
    Gap("ImageDecoder", 20, "", "decoding before the model"),
    Gap("LpNormalization", 22, "1.26", "opset 21"),
    Gap("RoiAlign", 22, "", "opset 21"),
    Gap("Bernoulli", 22, "", "opset 21"),
    Gap("QuantizeLinear", 23, "1.24", "opset 22"),
    Gap("TensorScatter", 24, "1.26", "ScatterND"),
    Gap("Swish", 25, "", "opset 24, or Sigmoid and Mul"),
    Gap("QuantizeLinear", 28, "", "opset 27"),
    Gap("DequantizeLinear", 28, "", "opset 27"),
    Gap("OptionalGetElement", 28, "", "opset 27"),
    Gap("OptionalHasElement", 28, "", "opset 27"),
    Gap("SwiGLU", 28, "", "Sigmoid and Mul"),
)
TREES_OF_FIVE = ("TreeEnsemble", "1.21")  # ai.onnx.ml 5 loads from 1.18 on, its one new operator later
FUSED_PRODUCT = ("QLinearMatMul", 21, "1.20")  # what a MatMul between DequantizeLinear and QuantizeLinear is fused to
EIGHT_BIT_BLOCKS = ("MatMulNBits", "1.22")  # of com.microsoft, with bits=8


def runtime_of(version: str) -> Runtime:
    """Return what onnxruntime `version` ("1.19", "1.23.2") loads; one not listed counts as the next older.

    Raises UserError for what is no version, or one older than the table.

    >>> runtime_of("1.25.1").version
    '1.24'
    """
    if not re.fullmatch(r"\d+\.\d+(\.\d+)*", version):
        raise UserError(f"{version!r} is no version of onnxruntime: write it like {OLDEST} or {OLDEST}.2")
    older = [row for row in RUNTIMES.values() if _key(row.version) <= _key(version)]
    if not older:
        raise UserError(
            f"onnxruntime {version} is older than {next(iter(RUNTIMES))}, which edgeml writes no graphs for"
        )
    return older[-1]


def newest_for(versions: Iterable[str]) -> Runtime:
    """Return the newest stamps that every one of `versions` loads; those of `OLDEST` when there is none.

    >>> newest_for(["1.32.0", "1.23.2"]).opset
    22
    """
    rows = [runtime_of(version) for version in versions] or [RUNTIMES[OLDEST]]
    first = min(rows, key=lambda row: _key(row.version))
    return Runtime(
        first.version,
        min(row.opset for row in rows),
        min(row.newest for row in rows),
        min(row.ml_opset for row in rows),
        min(row.ir for row in rows),
    )


def refusals(proto: ModelProto, version: str) -> list[str]:
    """Return why onnxruntime `version` would not load `proto`, a line each; nothing when none is known."""
    row, opsets = runtime_of(version), opset_imports(proto)
    found = [
        f"{what} {stamp}, it loads at most {most}"
        for what, stamp, most in (
            ("opset", opsets.get("", 0), row.newest),
            ("ai.onnx.ml opset", opsets.get("ai.onnx.ml", 0), row.ml_opset),
            ("IR version", proto.ir_version, row.ir),
        )
        if stamp > most
    ]
    return found + (lacking(proto, version) if opsets.get("", 0) <= row.newest else [])


def lacking(proto: ModelProto, version: str) -> list[str]:
    """Return the operators of `proto` without a kernel in onnxruntime `version` at the graph's opset, a line each."""
    row, opset = runtime_of(version), opset_imports(proto).get("", 0)
    nodes = walk(proto.graph)
    plain = {node.op_type for node in nodes if node.domain in ("", "ai.onnx")}
    found = [
        f"no {gap.operator} at opset {opset}: use {gap.instead}"
        for gap in GAPS
        if gap.operator in plain and opset >= gap.opset and (not gap.mended or _key(row.version) < _key(gap.mended))
    ]
    _, opset_lost, since = FUSED_PRODUCT
    if opset >= opset_lost and _key(row.version) < _key(since) and _fused_products(proto):
        found.append(f"no 8-bit MatMul at opset {opset}, which it makes of QDQ: use opset {opset_lost - 1}")
    operator, since = TREES_OF_FIVE
    if _key(row.version) < _key(since) and any(n.op_type == operator and n.domain == "ai.onnx.ml" for n in nodes):
        found.append(f"no {operator} before {since}: use TreeEnsembleRegressor or TreeEnsembleClassifier")
    operator, since = EIGHT_BIT_BLOCKS
    if _key(row.version) < _key(since) and any(n.op_type == operator and attribute(n, "bits", 4) == 8 for n in nodes):
        found.append(f"no {operator} of 8 bits before {since}: use 4")
    return found


def _fused_products(proto: ModelProto) -> bool:
    """Say whether a MatMul of `proto` reads two dequantized tensors and is quantized at once."""
    nodes = walk(proto.graph)
    made = {name: node.op_type for node in nodes for name in node.output}
    quantized = {node.input[0] for node in nodes if node.op_type == "QuantizeLinear"}
    return any(
        node.op_type == "MatMul"
        and node.output[0] in quantized
        and all(made.get(name) == "DequantizeLinear" for name in node.input)
        for node in nodes
    )


def _key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])
