"""Rounds in sequence: real task graphs on label-skewed digits against FedAvg written in numpy."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from edgeml.autodiff import SGD, training_step
from edgeml.errors import UserError
from edgeml.federated import Assembly, Federation, Plan, Update, check_update
from edgeml.tasks import permutation, training
from edgeml_runtime.session import Session
from edgeml_runtime.wire import blocks, compress, messages, tensors

node = helper.make_node
PLAN = Plan(rounds=3, min_devices=3, learning_rate=0.02, min_rows=20, seed=40)
EPOCHS, BATCH, MOMENTUM = 4, 16, 0.9


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype(np.float32), y.astype(np.int64)


@functools.cache
def first_weights() -> dict[str, np.ndarray]:
    """What scikit-learn's MLP learned from the first hundred digits."""
    x, y = digits()
    network = MLPClassifier((64,), max_iter=10, random_state=0)
    for _ in range(30):
        network.partial_fit(x[:100], y[:100], classes=np.arange(10))
    (w1, w2), (b1, b2) = network.coefs_, network.intercepts_
    return {name: a.astype(np.float32) for name, a in (("w1", w1), ("b1", b1), ("w2", w2), ("b2", b2))}


def a_network() -> bytes:
    nodes = [
        node("Gemm", ["x", "w1", "b1"], ["h"]),
        node("Relu", ["h"], ["a"]),
        node("Gemm", ["a", "w2", "b2"], ["z"]),
        node("Softmax", ["z"], ["probabilities"]),
        node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 64])]
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.INT64, ["rows"]),
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", 10]),
    ]
    constants = [numpy_helper.from_array(value, name) for name, value in first_weights().items()]
    graph = helper.make_graph(nodes, "digits", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


@functools.cache
def shares() -> dict[str, np.ndarray]:
    """Rows of three devices: uneven, and four of five rows come from the device's own three or four digits."""
    rng, rows = np.random.default_rng(0), np.arange(100, 1300)
    home = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])[digits()[1][rows]]
    device = np.where(rng.random(len(rows)) < 0.8, home, rng.integers(0, 3, len(rows)))
    return {"pi-0": rows[device == 0], "pi-1": rows[device == 1][:203], "pi-2": rows[device == 2][:147]}


def accuracy(w: dict[str, np.ndarray]) -> float:
    x, y = digits()
    scores = np.maximum(x[1300:] @ w["w1"] + w["b1"], 0) @ w["w2"] + w["b2"]
    return float((scores.argmax(1) == y[1300:]).mean())


def fedavg_in_numpy() -> list[dict[str, np.ndarray]]:
    """The parameters after each round, in float64, without any code of ours but the order of rows."""
    x, y = digits()
    w = {name: value.astype(np.float64) for name, value in first_weights().items()}
    history = []
    for number in range(PLAN.rounds):
        total = {name: np.zeros_like(value) for name, value in w.items()}
        for rows in shares().values():
            local = local_epochs(x[rows].astype(np.float64), y[rows], w, seed=PLAN.seed + number)
            total = {name: total[name] + len(rows) * (local[name] - w[name]) for name in w}
        n = sum(map(len, shares().values()))
        w = {name: w[name] + total[name] / n for name in w}
        history.append(w)
    return history


def local_epochs(x: np.ndarray, y: np.ndarray, w: dict[str, np.ndarray], *, seed: int) -> dict[str, np.ndarray]:
    v = {name: np.zeros_like(value) for name, value in w.items()}
    for epoch in range(EPOCHS):
        order = permutation(len(x), seed, epoch)
        for start in range(0, len(x), BATCH):
            rows = order[start : start + BATCH]
            h = x[rows] @ w["w1"] + w["b1"]
            a = np.maximum(h, 0)
            z = a @ w["w2"] + w["b2"]
            p = np.exp(z - z.max(1, keepdims=True))
            dz = (p / p.sum(1, keepdims=True) - np.eye(10)[y[rows]]) / len(rows)
            dh = dz @ w["w2"].T * (h > 0)
            slopes = {"w1": x[rows].T @ dh, "b1": dh.sum(0), "w2": a.T @ dz, "b2": dz.sum(0)}
            v = {name: MOMENTUM * v[name] + slopes[name] for name in w}
            w = {name: w[name] - PLAN.learning_rate * v[name] for name in w}
    return w


def answer(
    session: Session, offer: messages.TaskOffer, blob: bytes, *, device: str
) -> tuple[messages.UpdateHeader, bytes]:
    """What an honest device does with an offer: run the graph over its rows, pack the changes."""
    x, y = digits()
    rows = shares()[device]
    scalars = {"lr": np.array(offer.scalars["lr"], np.float32), "seed": np.array(int(offer.scalars["seed"]))}
    got = session.run({**tensors.unpack(blob), **scalars, "x": x[rows], "target": y[rows]})
    upload = tensors.pack({name: value for name, value in got.items() if name.startswith("delta.")})
    metrics = {name: float(got[name]) for name in ("loss.before", "loss.after")}
    header = messages.UpdateHeader(
        round=offer.round,
        device=device,
        boot_id="boot",
        rows=int(got["rows"]),
        digest=blocks.digest_of(upload),
        size=len(upload),
        metrics=metrics,
    )
    return header, upload


def test_three_rounds_of_three_devices_equal_fedavg_in_numpy() -> None:
    graph = training_step(a_network(), optimizer=SGD(momentum=MOMENTUM))
    task = training(graph, epochs=EPOCHS, batch_size=BATCH)
    session = Session(task.data)
    federation = Federation("digits", PLAN, model="digits", parameters=task.parameters)
    samples = {device: len(rows) for device, rows in shares().items()}
    for number, expected in enumerate(fedavg_in_numpy(), start=1):
        a_round = federation.begin({**samples, "pi-9": 3}, now=0.0)
        assert a_round is not None and a_round.cohort == set(samples), "pi-9 has too few rows"
        offer, blob = federation.offer(task)
        assert offer.round == a_round.id == f"digits-{number}" and offer.graph == task.digest
        for device in sorted(samples, reverse=True):
            header, upload = answer(session, offer, blob, device=device)
            assembly = Assembly(round=offer.round, device=device, max_update_bytes=offer.max_update_bytes)
            assembly.open(header)
            for i, part in enumerate(blocks.split(upload)):
                assembly.add(blocks.Block(bytes.fromhex(header.digest[:16]), i, part))
            delta = check_update(assembly.arrays(), federation.parameters)
            update = Update(device, header.rows, delta, header.metrics, size=len(upload))
            assert a_round.receive(device, update, now=1.0) == ""
        result = federation.conclude(now=1.0)
        assert result is not None and result.participants == ("pi-0", "pi-1", "pi-2")
        assert result.loss is not None and result.loss_before is not None and result.loss < result.loss_before
        assert result.bytes_up > 3 * sum(value.nbytes for value in task.parameters.values())
        for name, value in expected.items():
            np.testing.assert_allclose(federation.parameters[name], value, atol=1e-5, err_msg=f"round {number}, {name}")
        federation.note(metric=accuracy(federation.parameters))
    assert federation.finished and federation.begin(samples, now=2.0) is None
    curve = [result.metric or 0.0 for result in federation.history]
    assert curve[-1] > accuracy(first_weights()) + 0.1, curve


PARAMETERS = {"w": np.zeros(2, np.float32)}


def a_federation(**changes: Any) -> Federation:
    return Federation("run", Plan(**{"rounds": 2, "min_devices": 2, **changes}), model="m", parameters=PARAMETERS)


def an_update(device: str, **metrics: float) -> Update:
    return Update(device, 30, {"w": np.ones(2, np.float32)}, {"loss.after": 0.5, **metrics}, size=100)


def test_an_abandoned_round_changes_nothing_and_is_tried_again() -> None:
    f = a_federation()
    first = f.begin({"a": 50, "b": 50}, now=0.0)
    assert first is not None and f.begin({"a": 50, "b": 50}, now=0.0) is None, "one round at a time"
    first.receive("a", an_update("a"), 1.0)
    assert f.conclude(now=59.0) is None
    result = f.conclude(now=60.0)
    assert result is not None and (result.state, result.participants) == ("abandoned", ("a",))
    assert not f.finished and f.closed == 0 and f.parameters["w"].tolist() == [0, 0]
    second = f.begin({"a": 50, "b": 50}, now=61.0)
    assert second is not None and second.id == "run-2"
    for device in "ab":
        second.receive(device, an_update(device), 62.0)
    assert f.conclude(now=62.0) is not None and f.parameters["w"].tolist() == [1, 1]


def test_it_gives_up_after_too_many_rounds_without_a_quorum() -> None:
    f = a_federation(max_abandoned=2)
    for now in (0.0, 100.0):
        assert f.begin({"a": 50, "b": 50}, now=now) is not None
        f.conclude(now=now + 60)
    assert f.given_up and f.finished and f.begin({"a": 50, "b": 50}, now=300.0) is None


def test_it_waits_while_too_few_devices_have_rows_enough() -> None:
    f = a_federation(min_rows=20)
    assert f.begin({"a": 50, "b": 19}, now=0.0) is None and not f.finished
    assert f.begin({"a": 50, "b": 20}, now=0.0) is not None


def test_the_caller_fills_in_what_only_it_knows() -> None:
    f = a_federation()
    with pytest.raises(UserError, match="no round has ended"):
        f.note(metric=0.9)
    r = f.begin({"a": 50, "b": 50}, now=0.0)
    assert r is not None
    r.receive("a", an_update("a"), 1.0)
    r.receive("b", an_update("b", **{"loss.after": float("nan")}), 1.0)
    result = f.conclude(now=1.0)
    assert result is not None and result.loss is None, "one device reported no number"
    assert f.note(metric=0.9, bytes_down=7) == f.history[-1]
    assert (f.history[-1].metric, f.history[-1].bytes_down, f.history[-1].bytes_up) == (0.9, 7, 200)


def test_each_round_has_its_own_seed_and_its_bounds() -> None:
    x = training(training_step(a_network()), epochs=1, batch_size=8)
    f = Federation("run", PLAN, model="m", parameters=x.parameters)
    with pytest.raises(UserError, match="no round is open"):
        f.offer(x)
    seeds = []
    for now in (0.0, 100.0):
        f.begin({"a": 50, "b": 50, "c": 50}, now=now)
        offer, blob = f.offer(x)
        assert len(blob) == offer.parameters_bytes < offer.max_update_bytes < 2 * len(blob)
        assert messages.decode(messages.TaskOffer, messages.encode(offer)) == offer
        seeds.append(offer.scalars["seed"])
        f.conclude(now=now + 60)
    assert seeds == [40, 41]


def test_fednova_counts_the_steps_that_rows_batches_and_epochs_make() -> None:
    """30 rows are 2 x 4 steps of 8, 80 rows 2 x 10: the mean change per step, times the mean number of steps."""
    f = a_federation(strategy="fednova", local_epochs=2, batch_size=8)
    r = f.begin({"a": 30, "b": 80}, now=0.0)
    assert r is not None
    for device, rows, change in (("a", 30, 8.0), ("b", 80, -20.0)):  # one up, one down by 1 a step
        r.receive(device, Update(device, rows, {"w": np.full(2, change, np.float32)}), 1.0)
    f.conclude(now=1.0)
    shares = np.array([30, 80]) / 110
    expected = (shares * [8, 20]).sum() * (shares * [1, -1]).sum()
    np.testing.assert_allclose(f.parameters["w"], expected, rtol=1e-6)


@pytest.mark.parametrize("spec", ["fp16", "int8", "topk:1"])
def test_a_compressed_update_is_what_it_was_before_the_wire(spec: str) -> None:
    f = a_federation(compress=spec, rounds=1)
    r = f.begin({"a": 50, "b": 50}, now=0.0)
    assert r is not None
    for device, change in (("a", [1.0, -2.0]), ("b", [3.0, 0.5])):
        encoded = compress.encode({"w": np.array(change, np.float32)}, spec)
        assert r.receive(device, Update(device, 30, encoded.arrays), 1.0) == ""
    f.conclude(now=1.0)
    np.testing.assert_allclose(f.parameters["w"], [2.0, -0.75], atol=0.02)


def test_an_upload_that_is_not_compressed_as_asked_is_refused() -> None:
    r = a_federation(compress="int8").begin({"a": 50, "b": 50}, now=0.0)
    assert r is not None and r.receive("a", an_update("a"), 1.0) == "unreadable"


def test_a_name_that_cannot_be_a_topic_is_refused() -> None:
    with pytest.raises(UserError, match="A-Z a-z 0-9"):
        Federation("a/b", PLAN, model="m", parameters=PARAMETERS)


def test_the_rows_that_devices_hold_out_count_neither_as_learned_from_nor_as_missing() -> None:
    """SCAFFOLD's c moves by the participants' part of all rows to learn from: by all of it where all take part."""
    plan, zero = Plan(strategy="scaffold", min_rows=50, held_out=0.2), {"w": np.zeros(1, np.float32)}
    federation = Federation("run", plan, model="m", parameters=zero, controls={"variate.w": zero["w"]})
    opened = federation.begin({"a": 100, "b": 50}, now=0.0)
    assert opened is not None and federation.known == {"a": 80, "b": 40}
    for device, rows in (("a", 77), ("b", 42)):  # a hash is no exact fifth
        one = np.ones(1, np.float32)
        update = Update(device, rows, {"w": one, "variate.w": one}, metrics={"held_out": 20.0, "steps": 1.0})
        assert opened.receive(device, update, 1.0) == "" and update.held_out == 20
    assert federation.conclude(1.0) is not None
    np.testing.assert_array_equal(federation.controls["variate.w"], [1.0])


@pytest.mark.parametrize(("told", "counted"), [(12.0, 12), (-1.0, 0), (np.nan, 0), (np.inf, 0), (1e300, 0)])
def test_a_count_of_rows_held_out_that_is_none_is_nought(told: float, counted: int) -> None:
    assert Update("a", 10, {}, metrics={"held_out": told}).held_out == counted
