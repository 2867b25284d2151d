"""A model that knows the trained rows by heart and is worse elsewhere: the rows that devices held out find it out."""

from __future__ import annotations

import dataclasses

import numpy as np
from onnx import TensorProto, helper

from edgeml.artifacts import OnnxModel, Rows
from edgeml.federated import Plan, Survey, Update
from edgeml.federated.gate import Gain, rule
from edgeml.graph import serialize
from edgeml.pipeline import fleet_gate
from edgeml.server import Finding, Findings
from edgeml_runtime.session import Session
from edgeml_runtime.wire.holdout import part_of, places
from tests import networks

DEVICES, ROWS, SHARE = 4, 150, 0.2
HERE = Gain(metric="accuracy", before=0.7, after=0.7, value=0.0, low=-0.05, high=0.05, rows=60, where="validation rows")


def a_fleet() -> dict[str, Rows]:
    rng, found = np.random.default_rng(0), {}
    for device in range(DEVICES):
        x = rng.normal(size=(ROWS, 2)).astype(np.float32)
        found[f"d{device}"] = Rows({"x": x}, ((x[:, 0] > 0) ^ (rng.random(ROWS) < 0.25)).astype(np.int64))
    return found


def a_classifier(bias: float, rows: Rows | None = None) -> OnnxModel:
    """Return a classifier by x0 > -bias that answers, on each of `rows`, what it has seen there."""
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["own"])]
    weights = {"w": np.array([[0, 1], [0, 0]], np.float32), "b": np.array([0, bias], np.float32)}
    if rows is None:
        nodes.append(helper.make_node("Identity", ["own"], ["scores"]))
    else:  # one where a row is one of those, by its distance from each
        assert rows.target is not None
        weights |= {"known": rows.inputs["x"], "said": 100 * np.eye(2, dtype=np.float32)[rows.target]}
        weights |= {"near": np.array(1e-9, np.float32), "last": np.array([-1]), "row": np.array([1])}
        nodes += [
            helper.make_node("Unsqueeze", ["x", "row"], ["each"]),
            helper.make_node("Sub", ["each", "known"], ["apart"]),
            helper.make_node("ReduceSumSquare", ["apart", "last"], ["distance"], keepdims=0),
            helper.make_node("Less", ["distance", "near"], ["same"]),
            helper.make_node("Cast", ["same"], ["hit"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["hit", "said"], ["recalled"]),
            helper.make_node("Add", ["own", "recalled"], ["scores"]),
        ]
    inputs, outputs = {"x": (TensorProto.FLOAT, ["rows", 2])}, {"scores": (TensorProto.FLOAT, ["rows", 2])}
    return serialize(networks.a_graph(nodes, inputs=inputs, outputs=outputs, weights=weights, opset=18), source="test")


def on(fleet: dict[str, Rows], kind: str, candidate: OnnxModel, before: OnnxModel) -> Findings:
    """Return what the fleet answers about `candidate` on the rows that a task of `kind` sees."""
    part = part_of(kind, SHARE)  # type: ignore[arg-type]
    study = fleet_gate.surveys(candidate, before, "classification")[fleet_gate.EVALUATION]
    survey = Survey("run", Plan(min_devices=DEVICES, held_out=SHARE), model="m", study=study)
    opened = survey.begin({name: len(rows) for name, rows in fleet.items()}, now=0.0)
    assert opened is not None
    session = Session(survey.study.task().data)
    for name, rows in fleet.items():
        at = places(rows.inputs)
        seen = rows.take(np.flatnonzero((part.low <= at) & (at < part.high)))
        sums = session.run({**seen.inputs, "target": seen.target})
        assert opened.receive(name, Update(name, len(seen), sums), 1.0) == ""
    survey.conclude(1.0)
    return {"evaluation": Finding(result=survey.study.result(), devices=tuple(fleet), rows=survey.rows)}


def test_rows_that_devices_held_out_refuse_a_model_that_shines_on_those_it_was_trained_on() -> None:
    fleet, before = a_fleet(), a_classifier(0.0)
    learned = [rows.take(np.flatnonzero(places(rows.inputs) >= SHARE)) for rows in fleet.values()]
    targets = [rows.target for rows in learned if rows.target is not None]
    every = Rows({"x": np.concatenate([rows.inputs["x"] for rows in learned])}, np.concatenate(targets))
    candidate = a_classifier(1.0, every)

    trained = fleet_gate.opinion(on(fleet, "training", candidate, before), "accuracy", "classification", unseen=False)
    assert trained.gain is not None and trained.gain.after == 1.0 and trained.gain.is_better
    assert rule("better", HERE, trained.gain).ships, "the rows it learned would have let it pass"

    judged = fleet_gate.opinion(on(fleet, "evaluation", candidate, before), "accuracy", "classification", unseen=True)
    assert judged.gain is not None and judged.gain.rows + trained.gain.rows == DEVICES * ROWS
    for gate in ("better", "not-worse"):
        ruling = rule(gate, HERE, judged.gain)  # type: ignore[arg-type]
        assert not ruling.ships and ruling.why.startswith("worse in the fleet: "), ruling.why
    assert "held-out rows of 4 devices" in ruling.why and f"[{judged.gain.low:+.4f}" in ruling.why
    assert dataclasses.asdict(judged.gain)["rows"] < 0.3 * DEVICES * ROWS
