"""Smaller text models: words that decide least leave the vocabulary, and the weights that read them go with them.

    TfIdfVectorizer -> (Mul) -> (Normalizer) -> LinearClassifier | LinearRegressor, all columns of single words

A word's worth is its largest weight times how much the calibration texts hold of it. The largest share of words whose
going keeps the metric within half of the bound on those texts is found by bisection.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgeml import graph
from edgeml.artifacts import OnnxModel, Rows, Skipped, Variant
from edgeml.errors import UnsupportedModel
from edgeml.graph.passes.wiring import Wiring
from edgeml.graph.proto import attribute
from edgeml.quantize.calibration import batches
from edgeml.quantize.judge import Judge
from edgeml.quantize.recipe import Made, Options
from edgeml_runtime.session import Session

NAME = "vocabulary-pruned"
LINEAR = ("LinearClassifier", "LinearRegressor")
STEPS = 10
SAFE = 0.5  # of the bound
NEAR = 0.1  # of the spread of the scores, where no truth can judge
SMALLER = 0.95  # of fp32's bytes: what gains less is not worth a second file


@dataclass(frozen=True)
class _Chain:
    """The nodes between words and answers; `scale` is the weight that multiplies each column, "" without one."""

    vectorizer: NodeProto
    linear: NodeProto
    scale: str


def pruned(model: OnnxModel, rows: Rows, options: Options) -> Made:
    """Return the model with the smallest vocabulary that stays within half of the bound on the calibration texts."""
    proto = graph.load(model)
    worth = _worth(proto, _chain(proto), rows)
    judge, until = Judge(model, rows, options), time.monotonic() + options.budget_s
    order, best = np.argsort(worth, kind="stable"), b""
    low, high = 0, len(order) - 1  # words that go
    for step in range(STEPS):
        gone = (low + high + 1) // 2
        if low >= high or time.monotonic() > until:
            break
        data = _without(proto, np.sort(order[gone:]))
        drop = judge.drop(data)
        options.progress(f"{NAME} {step + 1} of {STEPS}: {len(order) - gone:,} words, {judge.unit} {drop:+.4f}")
        unknown = judge.unit != options.metric
        if drop <= SAFE * judge.limit and not (unknown and judge.distance(data) > NEAR):
            low, best = gone, data
        else:
            high = gone - 1
    if not best or len(best) > SMALLER * len(model.data):
        return Skipped(
            NAME, f"{low:,} of {len(order):,} words can go within half of the bound: the file hardly shrinks"
        )
    note = f"{len(order) - low:,} of {len(order):,} words stay, {len(best):,} of {len(model.data):,} bytes"
    return Variant(OnnxModel(best, model.digest, (*model.notes, note)), NAME, model.digest)


def _chain(proto: ModelProto) -> _Chain:
    """Return the chain of the graph; raise UnsupportedModel where there is none whose columns are single words."""
    wiring = Wiring(proto.graph)
    for node in proto.graph.node:
        words, columns = attribute(node, "pool_strings", []), attribute(node, "ngram_indexes", [])
        single = isinstance(words, list) and isinstance(columns, list) and len(words) == len(columns)
        if node.op_type != "TfIdfVectorizer" or not single or attribute(node, "max_gram_length") != 1:
            continue
        scale, reader = "", wiring.only_reader(node.output[0])
        if reader is not None and reader.op_type == "Mul" and wiring.constant(reader.input[1]) is not None:
            scale, reader = reader.input[1], wiring.only_reader(reader.output[0])
        if reader is not None and reader.op_type == "Normalizer":
            reader = wiring.only_reader(reader.output[0])
        if reader is not None and reader.op_type in LINEAR:
            return _Chain(node, reader, scale)
    raise UnsupportedModel("no vocabulary of single words in front of a linear model")


def _worth(proto: ModelProto, chain: _Chain, rows: Rows) -> np.ndarray:
    """Return what each column is worth: its largest weight times its mean over the texts."""
    tapped = ModelProto.FromString(proto.SerializeToString())
    name = chain.linear.input[0]
    tapped.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = Session(tapped.SerializeToString())
    held = np.concatenate([session.run(feeds)[name] for feeds in batches(proto, rows)])
    return np.asarray(np.abs(_weights(chain.linear)).max(axis=0) * np.abs(held).mean(axis=0))


def _weights(linear: NodeProto) -> np.ndarray:
    """Return the coefficients as (outputs, columns)."""
    outputs = len(np.atleast_1d(np.asarray(attribute(linear, "intercepts", [0.0]))))
    return np.asarray(attribute(linear, "coefficients"), dtype=np.float32).reshape(outputs, -1)


def _without(proto: ModelProto, keep: np.ndarray) -> bytes:
    """Return the graph with the columns `keep` alone."""
    smaller = ModelProto.FromString(proto.SerializeToString())
    chain = _chain(smaller)
    columns = np.asarray(attribute(chain.vectorizer, "ngram_indexes"))
    rank = np.full(int(columns.max()) + 1, -1)
    rank[keep] = np.arange(len(keep))
    stays = rank[columns] >= 0
    words = attribute(chain.vectorizer, "pool_strings")
    changed: dict[str, list[object]] = {
        "ngram_indexes": rank[columns][stays].tolist(),
        "pool_strings": [word for word, kept in zip(words, stays, strict=True) if kept],  # type: ignore[call-overload]
    }
    if (weights := attribute(chain.vectorizer, "weights")) is not None:
        changed["weights"] = np.asarray(weights)[stays].tolist()
    _set(chain.vectorizer, changed)
    _set(chain.linear, {"coefficients": _weights(chain.linear)[:, keep].ravel().tolist()})
    for tensor in smaller.graph.initializer:
        if tensor.name == chain.scale and (value := numpy_helper.to_array(tensor)).size > 1:
            tensor.CopyFrom(numpy_helper.from_array(value[..., keep], tensor.name))
    del smaller.graph.value_info[:]
    graph.check(smaller)
    return bytes(smaller.SerializeToString(deterministic=True))


def _set(node: NodeProto, values: dict[str, list[object]]) -> None:
    kept = [AttributeProto.FromString(one.SerializeToString()) for one in node.attribute if one.name not in values]
    del node.attribute[:]
    node.attribute.extend([*kept, *(helper.make_attribute(name, value) for name, value in values.items())])
