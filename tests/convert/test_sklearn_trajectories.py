"""scikit-learn's networks go on learning in our graphs as numpy says they must, by our converter and by skl2onnx."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import skl2onnx
from sklearn import datasets, neural_network, pipeline, preprocessing

from edgeml import convert
from edgeml.artifacts import TrainingGraph
from edgeml.autodiff import SGD, training_step
from edgeml_runtime.session import Session

STEPS, LR, MOMENTUM, CLOSE = 30, 0.05, 0.9, 1e-5
SLOPES = {
    "relu": (lambda h: np.maximum(h, 0), lambda a: (a > 0) * 1.0),
    "tanh": (np.tanh, lambda a: 1 - a * a),
    "logistic": (lambda h: 1 / (1 + np.exp(-h)), lambda a: a * (1 - a)),
    "identity": (lambda h: h, np.ones_like),
}
FLOWERS = datasets.load_iris(return_X_y=True)
SUGAR = datasets.load_diabetes(return_X_y=True)
CASES: dict[str, tuple[Any, tuple[np.ndarray, np.ndarray]]] = {
    "relu": (neural_network.MLPClassifier((12, 7), max_iter=3, random_state=0), FLOWERS),
    "tanh": (neural_network.MLPClassifier((9,), activation="tanh", max_iter=3, random_state=1), FLOWERS),
    "logistic": (neural_network.MLPClassifier((9,), activation="logistic", max_iter=3, random_state=2), FLOWERS),
    "two classes": (
        neural_network.MLPClassifier((6,), activation="tanh", max_iter=3, random_state=3),
        (FLOWERS[0][FLOWERS[1] < 2], FLOWERS[1][FLOWERS[1] < 2]),
    ),
    "regressor": (
        neural_network.MLPRegressor(hidden_layer_sizes=(8,), activation="tanh", max_iter=3, random_state=4),
        (SUGAR[0], (SUGAR[1] - 152) / 77),
    ),
}


def reference(fitted: Any, batches: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """Return weight, bias, weight, ... after steps of SGD with momentum in float64, by hand."""
    w = [np.array(x) for pair in zip(fitted.coefs_, fitted.intercepts_, strict=True) for x in pair]
    v = [np.zeros_like(x) for x in w]
    act, slope = SLOPES[fitted.activation]
    for x, y in batches:
        seen = [x]
        for i in range(0, len(w), 2):
            h = seen[-1] @ w[i] + w[i + 1]
            seen.append(act(h) if i + 2 < len(w) else h)
        z, found = seen[-1], [np.empty(0)] * len(w)
        if fitted.out_activation_ == "softmax":
            p = np.exp(z - z.max(1, keepdims=True))
            d = (p / p.sum(1, keepdims=True) - np.eye(z.shape[1])[y]) / len(x)
        elif fitted.out_activation_ == "logistic":
            d = (1 / (1 + np.exp(-z)) - y[:, None]) / len(x)
        else:
            d = 2 * (z - y.reshape(z.shape)) / z.size
        for i in range(len(w) - 2, -1, -2):
            found[i], found[i + 1] = seen[i // 2].T @ d, d.sum(0)
            d = d @ w[i].T * slope(seen[i // 2])
        v = [MOMENTUM * old + new for old, new in zip(v, found, strict=True)]
        w = [old - LR * new for old, new in zip(w, v, strict=True)]
    return w


def trained(graph: TrainingGraph, batches: list[tuple[np.ndarray, np.ndarray]]) -> Mapping[str, np.ndarray]:
    session, state = Session(graph.data), {**graph.parameters, **graph.state}
    specs = {spec.name: spec for spec in session.inputs}
    (own,) = specs.keys() - {*state, "target", "lr"}
    for x, y in batches:
        target = y if specs["target"].dtype == "int64" else y.reshape(-1, 1).astype(np.float32)
        given = {own: x.astype(np.float32), "target": target, "lr": np.array(LR, np.float32)}
        found = session.run({**state, **given})
        state = {name: found[f"new.{name}"] for name in state}
    return {name: state[name] for name in graph.parameters}


def some(name: str) -> tuple[Any, Any, list[tuple[np.ndarray, np.ndarray]]]:
    """Return the case's fitted pipeline, its last step, and batches as that step sees them beside the raw ones."""
    network, (x, y) = CASES[name]
    whole = pipeline.make_pipeline(preprocessing.StandardScaler(), network)
    with pytest.warns(UserWarning, match="Maximum iterations"):
        whole.fit(x, y)
    draw = np.random.default_rng(0)
    rows = [draw.integers(0, len(x), 32) for _ in range(STEPS)]
    return whole, network, [(x[chosen].astype(np.float32), y[chosen]) for chosen in rows]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("way", ["ours", "skl2onnx"])
def test_thirty_steps_end_where_numpy_ends(name: str, way: str, tmp_path: Path) -> None:
    whole, network, batches = some(name)
    seen = [(whole[:-1].transform(x.astype(np.float64)), y) for x, y in batches]
    expected = reference(network, seen)
    if way == "ours":
        joblib.dump(whole, tmp_path / "m.joblib")
        model: Any = convert.read_model(tmp_path / "m.joblib", trust=True)
    else:
        given = [("x", skl2onnx.common.data_types.FloatTensorType([None, batches[0][0].shape[1]]))]
        options = {"zipmap": False} if hasattr(network, "classes_") else {}
        made = skl2onnx.to_onnx(whole, initial_types=given, options={id(network): options}, target_opset=18)
        model = made.SerializeToString()
    loss = "softmax_cross_entropy" if hasattr(network, "classes_") else "mse"
    ends = list(trained(training_step(model, loss=loss, optimizer=SGD(MOMENTUM)), batches).values())
    assert len(ends) == len(expected)
    for wanted in expected:  # whatever the converter calls it, and however it lays it
        apart = [
            float(np.abs(form.reshape(wanted.shape) - wanted).max())
            for end in ends
            for form in (end, end.T)
            if form.shape == wanted.shape or form.size == wanted.size == max(wanted.shape)
        ]
        assert min(apart) < CLOSE, (name, wanted.shape, apart)
