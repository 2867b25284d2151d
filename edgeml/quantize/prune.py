"""Narrower networks: whole channels go, the next layer is repaired, and where there are gradients the rest learns on.

`pruned` removes channels and repairs by least squares. `distilled` goes further down and trains what is left to answer
as the whole network does (Hinton et al., Distilling the Knowledge in a Neural Network, 2015), by edgeml's own training
step, so it is for networks whose operators have gradient rules.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from onnx import ModelProto, TensorProto, helper

from edgeml import autodiff, graph
from edgeml.artifacts import OnnxModel, Rows, Skipped, Variant
from edgeml.errors import UnsupportedModel
from edgeml.quantize.calibration import batches
from edgeml.quantize.channels import narrowed, pairs
from edgeml.quantize.judge import Judge
from edgeml.quantize.prepare import prepared
from edgeml.quantize.recipe import Made, Options
from edgeml_runtime.session import Session

PRUNED, DISTILLED = "pruned", "distilled"
SHARES = (0.75, 0.625, 0.5, 0.375, 0.25, 0.125)  # of the channels that go, the boldest first
STUDENTS = (0.75, 0.5)
SAFE = 0.5  # of the bound: other rows lose more than the few that are asked here
NEAR = 0.1  # of the spread of the scores, where no truth can judge
MAX_ROWS = 512  # whose activations are looked at
EPOCHS, EVERY, BATCH, RATE, NOISE = 60, 5, 32, 0.05, 0.1  # NOISE in units of each input's spread


def pruned(model: OnnxModel, rows: Rows, options: Options) -> Made:
    """Return the narrowest network that stays within half of the bound on the calibration rows."""
    seen, judge, until = _Seen(model, rows), Judge(model, rows, options), time.monotonic() + options.budget_s
    for share in SHARES:
        if time.monotonic() > until:
            break
        data = seen.narrow(share)
        options.progress(f"{PRUNED}: without {share:.0%} of the channels {judge.unit} {judge.drop(data):+.4f}")
        if _holds(judge, data, options):
            return _variant(model, data, PRUNED)
    return Skipped(PRUNED, f"without {SHARES[-1]:.0%} of its channels it misses half of the bound of {judge.limit:.3g}")


def distilled(model: OnnxModel, rows: Rows, options: Options) -> Made:
    """Return the narrowest student, trained on the network's own answers, that stays within half of the bound."""
    seen, judge, until = _Seen(model, rows), Judge(model, rows, options), time.monotonic() + options.budget_s
    for share in STUDENTS:
        for epoch, data in _learned(seen, seen.narrow(share)):
            drop = judge.drop(data)
            options.progress(f"{DISTILLED}: {share:.0%} narrower, epoch {epoch}, {judge.unit} {drop:+.4f}")
            if _holds(judge, data, options):
                return _variant(model, data, DISTILLED)
            if time.monotonic() > until:
                return Skipped(DISTILLED, f"no student within the bound after {options.budget_s:.0f} s")
    return Skipped(DISTILLED, f"no student within half of the bound of {judge.limit:.3g} after {EPOCHS} epochs")


def _holds(judge: Judge, data: bytes, options: Options) -> bool:
    unknown = judge.unit != options.metric
    return judge.drop(data) <= SAFE * judge.limit and not (unknown and judge.distance(data) > NEAR)


def _variant(model: OnnxModel, data: bytes, name: str) -> Variant:
    note = f"{name}: {len(data):,} of {len(model.data):,} bytes"
    return Variant(OnnxModel(data, model.digest, (*model.notes, note)), name, model.digest)


class _Seen:
    """A network with its pairs of layers and what stands between them on calibration rows."""

    def __init__(self, model: OnnxModel, rows: Rows) -> None:
        """Raises UnsupportedModel where no channel can go."""
        self.proto = prepared(model)
        self.pairs = pairs(self.proto)
        if not self.pairs:
            raise UnsupportedModel("no two layers, Gemm or Conv, with nothing but activations between them")
        tapped = ModelProto.FromString(self.proto.SerializeToString())
        for name in (pair.between for pair in self.pairs):
            tapped.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        keep = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MAX_ROWS)).astype(int))
        self.feeds = list(batches(self.proto, rows.take(keep)))
        session = Session(tapped.SerializeToString())
        self.answers = [session.run(feeds) for feeds in self.feeds]

    def narrow(self, share: float) -> bytes:
        """Return the network without `share` of the channels of every pair."""
        smaller = ModelProto.FromString(self.proto.SerializeToString())
        for pair in pairs(smaller):
            narrowed(smaller, pair, np.concatenate([part[pair.between] for part in self.answers]), share=share)
        del smaller.graph.value_info[:]
        graph.check(smaller)
        return bytes(smaller.SerializeToString(deterministic=True))


def _learned(seen: _Seen, data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the student after every fifth epoch of learning the teacher's answers, on rows with a little noise."""
    student = OnnxModel(data, "")
    step = autodiff.training_step(student, loss="mse")
    session, rng = Session(step.data), np.random.default_rng(0)
    values = {**step.parameters, **step.state}
    (name,) = (spec.name for spec in graph.inputs(student))  # training steps are for one input of numbers
    scores = next(out for out in graph.outputs(student) if out.dtype == "float32").name
    rows = np.concatenate([feeds[name] for feeds in seen.feeds])
    wanted = np.concatenate([answer[scores] for answer in seen.answers])
    spread = NOISE * rows.std(axis=0, keepdims=True)
    for epoch in range(1, EPOCHS + 1):
        rate = np.float32(RATE * (1 - epoch / (EPOCHS + 1)))
        for index in np.array_split(rng.permutation(len(rows)), max(1, len(rows) // BATCH)):
            noisy = (rows[index] + spread * rng.normal(size=rows[index].shape)).astype(np.float32)
            made = session.run({name: noisy, "target": wanted[index], "lr": np.asarray(rate), **values})
            values = {key: made[f"new.{key}"] for key in values}
        if epoch % EVERY == 0:
            trained = graph.set_initializers(student, {key: values[key] for key in step.parameters})
            yield epoch, trained.data
