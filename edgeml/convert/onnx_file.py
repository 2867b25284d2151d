"""A finished .onnx file, checked and made fit for devices.

    model.onnx -> read -> OnnxModel;    OnnxModel, versions of the boards -> fit -> OnnxModel

Nothing runs before it is known what it asks for: names, sizes and loops are bounded first. What can be put right is
put right with a note (`onnx_repair`), what is rewritten is compared with the file's own answers (`onnx_parity`), and
the rest is refused by name, in one line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from onnx import ModelProto, TensorProto

from edgeml import graph
from edgeml.artifacts import OnnxModel
from edgeml.convert.onnx_parity import ALLOWED, FLOAT16, Original, original, rerun, second_opinion
from edgeml.convert.onnx_repair import complete, complete_from, name_axes, refuse_hollow, repair
from edgeml.convert.onnx_source import read_source
from edgeml.convert.onnx_versions import OLDEST_OPSET, restamp
from edgeml.convert.trial import refuse_unbounded
from edgeml.errors import UnsupportedModel
from edgeml.graph import passes
from edgeml.graph import proto as protos
from edgeml.graph.bounds import refuse_bombs
from edgeml.graph.opsets import Runtime, newest_for, refusals
from edgeml.graph.stored import tensors

DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}  # what the stock onnxruntime wheel carries
ELSEWHERE = {  # domains of onnxruntime's own that no file should hold, and what they mean
    "com.microsoft.nchwc": "it was optimised for another processor: give the model as it was exported",
    "com.ms.internal.nhwc": "it was optimised for another processor: give the model as it was exported",
    "ai.onnx.preview.training": "it is a training graph: export it for inference",
    "ai.onnx.training": "it is a training graph: export it for inference",
}
QUANTIZED = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})


def read(path: Path, *, trust: bool = False) -> OnnxModel:
    """Return the model in the file at `path`; `trust` is not needed, an ONNX file runs no code.

    Raises NotFound, or UnsupportedModel when the file is no ONNX model or one that devices cannot load.
    """
    source = read_source(path)
    try:
        return _checked(source.proto, path.name, source.digest)
    except UnsupportedModel as error:
        if (line := str(error)).isprintable():
            raise
        shown = "".join(letter if letter.isprintable() else "?" for letter in line)  # a name may hold a line break
        raise UnsupportedModel(shown) from error


def fit(model: OnnxModel, versions: Sequence[str], *, opset: int | None = None, keep: bool = False) -> OnnxModel:
    """Return `model` in the newest opset, or in `opset`, that every onnxruntime of `versions` loads, with a note.

    With `keep` a model that they all load already stays as it is.

    Raises UnsupportedModel when there is none that it can be written in, or one of `versions` does not load `opset`.
    """
    row = newest_for(versions)
    if opset is not None and not OLDEST_OPSET <= opset <= row.newest:
        raise UnsupportedModel(
            f"opset {opset} was asked for, onnxruntime {row.version} loads {OLDEST_OPSET} to {row.newest}: ask for that"
        )
    proto = graph.load(model)
    before = protos.opset_imports(proto).get("", graph.MAX_OPSET)
    if (keep or before == (opset or row.opset)) and not _refusals(proto, versions, row):
        return model
    source = original(model.data, model)
    if not source.rows and not _refusals(proto, versions, row):
        return model  # nothing to compare with: it stays as it is
    for candidate in _stamped(proto, opset or row.opset):
        candidate.ir_version = min(candidate.ir_version, row.ir)
        data = candidate.SerializeToString(deterministic=True)
        if _refusals(candidate, versions, row) or not rerun(data, source, optimize=False).within(_allowed(proto)):
            continue
        after = protos.opset_imports(candidate).get("", before)
        note = () if after == before else (f"opset {before} rewritten as {after} for onnxruntime {row.version}",)
        return OnnxModel(data, model.source, (*note, *model.notes), model.features, model.classes)
    why = "; ".join(_refusals(proto, versions, row)) or f"it cannot be rewritten in opset {opset or row.opset}"
    raise UnsupportedModel(
        f"the model does not run on onnxruntime {row.version}: {why}; update the board's onnxruntime"
    )


def _refusals(proto: ModelProto, versions: Sequence[str], row: Runtime) -> list[str]:
    return [why for version in versions or [row.version] for why in refusals(proto, version)]


def _stamped(proto: ModelProto, opset: int) -> Iterator[ModelProto]:
    """Return `proto` in `opset`, as it is, in ever older ones: some operators lost their kernel on the way."""
    now = protos.opset_imports(proto).get("", opset)
    for wanted in dict.fromkeys((opset, *((now,) if now <= opset else ()), *range(opset - 1, 12, -1))):
        yield from restamp(proto, wanted)


def _checked(proto: ModelProto, name: str, digest: str) -> OnnxModel:
    _refuse_foreign(proto, name)
    raw = proto.SerializeToString()
    try:
        refuse_hollow(list(tensors(proto)))
        proto, notes = repair(proto)
        _refuse_values(proto)
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{name}: {error}") from error
    found = refuse_bombs(proto, name)
    try:
        notes += complete(proto)
        model = OnnxModel(proto.SerializeToString(), digest)
        if not found.sure:
            refuse_unbounded(model.data, graph.random_rows(model, 1), name)
        source = _own_answers(raw, model)
        complete_from(proto, source.answers)
        model = graph.serialize(proto, source=digest)
        return _rewritten(graph.load(model), source, OnnxModel(model.data, digest, tuple(notes)))
    except UnsupportedModel as error:
        if str(error).startswith(name):
            raise
        raise UnsupportedModel(f"{name} {error}") from error


def _own_answers(raw: bytes, model: OnnxModel) -> Original:
    """Return the answers of the file as it is; of the repaired graph where the file gives none that can be compared."""
    try:
        source = original(raw, model)
        if source.answers.keys() == {value.name for value in graph.load(model).graph.output}:
            return source
    except UnsupportedModel:
        pass  # maps for outputs, a weight that is sparse: what was repaired was in the way
    return original(model.data, model)


def _rewritten(proto: ModelProto, source: Original, model: OnnxModel) -> OnnxModel:
    """Return the best form of `proto` whose answers are those of `source`: optimised, else as it was repaired."""
    if not source.rows:
        note = f"not compared with the file, which does not run on made-up rows ({source.why}): give --labels"
        return OnnxModel(model.data, model.source, (*model.notes, note))
    for optimized in (True, False):
        candidate = ModelProto()
        candidate.CopyFrom(proto)
        notes = name_axes(candidate)
        try:
            notes += passes.optimize(candidate) if optimized else ()
            made = graph.serialize(candidate, source=model.source, notes=(*model.notes, *notes))
        except Exception:
            continue
        far = rerun(made.data, source, optimize=False)
        if far.within(_allowed(proto)):
            return _with_notes(made, proto, source)
    raise UnsupportedModel(f"answers otherwise once it is repaired, on {source.count} made-up rows; export it again")


def _with_notes(model: OnnxModel, proto: ModelProto, source: Original) -> OnnxModel:
    plain, fast = (rerun(model.data, source, optimize=optimize) for optimize in (False, True))
    agreed = f"agrees with the file run without optimisations on {source.count} made-up rows: {plain}"
    agreed += "" if fast == plain else f", {fast} once onnxruntime optimises it"
    opinion = second_opinion(proto, source)
    return OnnxModel(model.data, model.source, (*model.notes, agreed, *([opinion] if opinion else [])))


def _allowed(proto: ModelProto) -> float:
    half = any(value.type.tensor_type.elem_type == TensorProto.FLOAT16 for value in proto.graph.output)
    half = half or any(tensor.data_type == TensorProto.FLOAT16 for tensor in proto.graph.initializer)
    return FLOAT16 if half else ALLOWED


def _refuse_foreign(proto: ModelProto, name: str) -> None:
    own = {(function.domain, function.name) for function in proto.functions}
    nodes = [*protos.walk(proto.graph), *(node for function in proto.functions for node in function.node)]
    foreign = {node.domain for node in nodes if (node.domain, node.op_type) not in own} - DOMAINS
    called = sorted({f"{node.domain}:{node.op_type}" for node in nodes if node.domain in foreign})
    if not foreign:
        return
    why = next((ELSEWHERE[domain] for domain in sorted(foreign) if domain in ELSEWHERE), "")
    raise UnsupportedModel(
        f"{name} needs {', '.join(called[:5])}{f' and {len(called) - 5} more' if len(called) > 5 else ''}, "
        f"which stock onnxruntime does not carry: {why or 'export it without custom operators'}"
    )


def _refuse_values(proto: ModelProto) -> None:
    """Refuse inputs and outputs that no device can feed or read, by name."""
    if not proto.graph.output:
        raise UnsupportedModel("it has no outputs: nothing would come of running it; export it again")
    for what, values in (("input", proto.graph.input), ("output", proto.graph.output)):
        for value in values:
            kind = value.type.WhichOneof("value")
            if kind not in ("tensor_type", None):
                kept = (kind or "").removesuffix("_type").replace("_", " ")
                raise UnsupportedModel(f"its {what} {value.name!r} is a {kept}, devices take tensors: export it so")
            if what == "input" and kind and not value.type.tensor_type.HasField("shape"):
                raise UnsupportedModel(f"its input {value.name!r} has no shape: export it with one")
            element = value.type.tensor_type.elem_type
            if element not in graph.DTYPES and not (what == "output" and not element):
                known = ", ".join(graph.DTYPES.values())
                raise UnsupportedModel(
                    f"its {what} {value.name!r} is of type {_type_name(element)}, devices take {known}: convert it"
                )


def _type_name(element: int) -> str:
    return str(TensorProto.DataType.Name(element)).lower() if element in TensorProto.DataType.values() else str(element)
