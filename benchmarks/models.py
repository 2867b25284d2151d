"""The models that the compilers are compared on, trained here from data that is at hand.

    PYTHONPATH=. python benchmarks/models.py NAME FOLDER     writes source.keras or source.joblib, rows and info.json

Every net learns something real: scikit-learn's digits (8x8, as an image or as a sequence of eight rows), or 28x28
digits of mnist_10k (from EDGEML_DATA) enlarged to the network's input. MobileNetV2 at 224 starts from the weights
of the one at 96 and sees one short epoch. Without EDGEML_DATA the 8x8 digits are enlarged instead.
"""

from __future__ import annotations

import gzip
import importlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import joblib
import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_digits
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    IsolationForest,
    RandomForestClassifier,
)
from sklearn.impute import SimpleImputer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

DATA = Path(os.environ.get("EDGEML_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
CALIBRATION_ROWS = 200
SEED = 0
Net = Callable[[Any], Any]  # keras -> a model with a softmax


@dataclass(frozen=True)
class Task:
    """Rows to learn from and rows to judge by; all of one float32 array, or a frame."""

    train: Any
    train_target: np.ndarray
    test: Any
    test_target: np.ndarray


def digits(shape: tuple[int, ...]) -> Task:
    """Return scikit-learn's digits in 0..1 with rows of `shape`, 30 % of them for the test."""
    x, y = load_digits(return_X_y=True)
    rows = (x / 16).astype(np.float32).reshape(-1, *shape)
    a, b, ya, yb = train_test_split(rows, y, test_size=0.3, random_state=SEED, stratify=y)
    return Task(a, ya, b, yb)


def enlarged(side: int, *, train: int, test: int) -> Task:
    """Return handwritten digits as images (side, side, 3) in 0..1."""
    folder = DATA / "mnist_10k"
    if folder.is_dir():
        images = np.frombuffer(gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, -1, 16)
        labels = np.frombuffer(gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes()), np.uint8, -1, 8)
        pictures, labels = images.reshape(-1, 28, 28) / np.float32(255), labels.astype(np.int64)
    else:
        flat, labels = load_digits(return_X_y=True)
        pictures = flat.reshape(-1, 8, 8) / np.float32(16)
    chosen = np.random.default_rng(SEED).permutation(len(pictures))[: train + test]
    at = np.arange(side) * pictures.shape[1] // side
    large = np.repeat(pictures[chosen][:, at][:, :, at, None], 3, axis=-1).astype(np.float32)
    count = len(chosen) - min(test, len(chosen) // 3)
    y = labels[chosen]
    return Task(large[:count], y[:count], large[count:], y[count:])


def mlp(keras: Any) -> Any:
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((64,)), *[layers.Dense(n, "relu") for n in (128, 64)], layers.Dense(10, "softmax")]
    )


def wide_mlp(keras: Any) -> Any:
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((64,)), *[layers.Dense(n, "relu") for n in (1024, 1024)], layers.Dense(10, "softmax")]
    )


def cnn(keras: Any) -> Any:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10, "softmax"),
        ]
    )


def _unit(keras: Any, x: Any, filters: int, *, kernel: int = 3, stride: int = 1, depthwise: bool = False) -> Any:
    layers = keras.layers
    how = {"strides": stride, "padding": "same", "use_bias": False}
    x = layers.DepthwiseConv2D(kernel, **how)(x) if depthwise else layers.Conv2D(filters, kernel, **how)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def _separable(keras: Any, x: Any, filters: int, *, stride: int = 1) -> Any:
    x = _unit(keras, x, filters, stride=stride, depthwise=True)
    return _unit(keras, x, filters, kernel=1)


def _head(keras: Any, given: Any, x: Any) -> Any:
    layers = keras.layers
    return keras.Model(given, layers.Dense(10, "softmax")(layers.GlobalAveragePooling2D()(x)))


def ds_cnn(keras: Any) -> Any:
    given = keras.Input((8, 8, 1))
    x = _unit(keras, given, 32)
    for _ in range(3):
        x = _separable(keras, x, 32)
    return _head(keras, given, x)


def resnet8(keras: Any) -> Any:
    """Return the image classifier of MLPerf Tiny: three stages of two convolutions, 16 to 64 channels."""
    layers, given = keras.layers, keras.Input((32, 32, 3))
    x = _unit(keras, given, 16)
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        y = _unit(keras, x, filters, stride=stride)
        y = layers.BatchNormalization()(layers.Conv2D(filters, 3, padding="same", use_bias=False)(y))
        if stride > 1:
            x = layers.Conv2D(filters, 1, strides=stride, padding="same")(x)
        x = layers.ReLU()(layers.Add()([x, y]))
    return _head(keras, given, x)


def mobilenet_v1(keras: Any) -> Any:
    """Return the visual wake words network of MLPerf Tiny: MobileNetV1 at a quarter of its width, 96x96."""
    given = keras.Input((96, 96, 3))
    x = _unit(keras, given, 8, stride=2)
    for filters, stride in ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *[(128, 1)] * 5, (256, 2), (256, 1)):
        x = _separable(keras, x, filters, stride=stride)
    return _head(keras, given, x)


def mobilenet_v2(side: int) -> Net:
    """Return the maker of MobileNetV2 at 0.35 of its width."""

    def make(keras: Any) -> Any:
        return keras.applications.MobileNetV2((side, side, 3), alpha=0.35, weights=None, classes=10)

    return make


def recurrent(kind: str) -> Net:
    """Return the maker of a net that reads eight rows of a digit one after the other."""

    def make(keras: Any) -> Any:
        layers = keras.layers
        return keras.Sequential([keras.Input((8, 8)), getattr(layers, kind)(64), layers.Dense(10, "softmax")])

    return make


@dataclass(frozen=True)
class Spec:
    """One model: how it is made and what it learns from."""

    make: Callable[[Any], Any]
    task: Callable[[], Task]
    epochs: int = 0  # of a net; an estimator fits itself
    start: str = ""  # a model whose weights it starts from


def _forest(_: Any) -> Any:
    return RandomForestClassifier(100, random_state=SEED, n_jobs=1)


def _mixed(_: Any) -> Any:
    numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    words = OneHotEncoder(handle_unknown="ignore")
    columns = ColumnTransformer([("numbers", numbers, TITANIC_NUMBERS), ("words", words, TITANIC_WORDS)])
    return make_pipeline(columns, GradientBoostingClassifier(n_estimators=50, random_state=SEED))


TITANIC_NUMBERS, TITANIC_WORDS = ["Age", "Fare", "SibSp", "Parch", "Pclass"], ["Sex", "Embarked"]


def titanic() -> Task:
    """Return the passengers as a frame: five columns of numbers with gaps, two of words."""
    frame = pd.read_csv(next((DATA / "titanic").glob("*.csv")))
    columns: dict[str, Any] = {name: frame[name].to_numpy(np.float32) for name in TITANIC_NUMBERS}
    columns |= {name: frame[name].fillna("").astype(object) for name in TITANIC_WORDS}
    a, b, ya, yb = train_test_split(
        pd.DataFrame(columns), frame["Survived"].to_numpy(np.int64), test_size=0.3, random_state=SEED
    )
    return Task(a, ya, b, yb)


SPECS: dict[str, Spec] = {
    "digits-mlp": Spec(mlp, lambda: digits((64,)), 40),
    "digits-mlp-1m": Spec(wide_mlp, lambda: digits((64,)), 15),
    "digits-cnn": Spec(cnn, lambda: digits((8, 8, 1)), 40),
    "digits-dscnn": Spec(ds_cnn, lambda: digits((8, 8, 1)), 40),
    "lstm": Spec(recurrent("LSTM"), lambda: digits((8, 8)), 40),
    "gru": Spec(recurrent("GRU"), lambda: digits((8, 8)), 40),
    "resnet8": Spec(resnet8, lambda: enlarged(32, train=6000, test=500), 4),
    "mobilenetv1-96": Spec(mobilenet_v1, lambda: enlarged(96, train=2500, test=400), 6),
    "mobilenetv2-96": Spec(mobilenet_v2(96), lambda: enlarged(96, train=2500, test=400), 8),
    "mobilenetv2-224": Spec(mobilenet_v2(224), lambda: enlarged(224, train=512, test=128), 6, start="mobilenetv2-96"),
    "rf100": Spec(_forest, lambda: digits((64,))),
    "gb50": Spec(lambda _: GradientBoostingClassifier(n_estimators=50, random_state=SEED), lambda: digits((64,))),
    "hgb50": Spec(lambda _: HistGradientBoostingClassifier(max_iter=50, random_state=SEED), lambda: digits((64,))),
    "iforest100": Spec(lambda _: IsolationForest(n_estimators=100, random_state=SEED), lambda: digits((64,))),
    "mixed": Spec(_mixed, titanic),
}


def prepare(name: str, folder: Path) -> None:
    """Train the model and write it with its rows into `folder`; info.json comes last."""
    spec = SPECS[name]
    task = spec.task()
    folder.mkdir(parents=True, exist_ok=True)
    if spec.epochs:
        keras = importlib.import_module("keras")
        keras.utils.set_random_seed(SEED)
        model = spec.make(keras)
        if spec.start:
            model.set_weights(keras.saving.load_model(folder.parent / spec.start / "source.keras").get_weights())
        model.compile(keras.optimizers.Adam(5e-4 if spec.start else 2e-3), "sparse_categorical_crossentropy")
        for layer in model._flatten_layers():
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = 0.9  # few steps: the default of 0.99 would still remember the start
        model.fit(task.train, task.train_target, batch_size=32, epochs=spec.epochs, verbose=0)
        model.save(folder / "source.keras")
        labels = model.predict(task.test, verbose=0).argmax(axis=1)
    else:
        model = spec.make(None).fit(task.train, task.train_target)
        joblib.dump(model, folder / "source.joblib")
        labels = model.predict(task.test)
        if name.startswith("iforest"):
            task = Task(task.train, task.train_target, task.test, (labels > 0).astype(np.int64))  # its own answers
            labels = task.test_target
    for part, rows in (("calibration", task.train[:CALIBRATION_ROWS]), ("test", task.test)):
        arrays: dict[str, Any] = _arrays(rows)
        np.savez(folder / f"{part}.npz", **arrays)
    np.save(folder / "calibration_target.npy", task.train_target[:CALIBRATION_ROWS])
    np.save(folder / "target.npy", task.test_target)
    accuracy = float(np.mean(labels == task.test_target))
    facts = {"model": name, "kind": "keras" if spec.epochs else "sklearn", "accuracy": accuracy}
    (folder / "info.json").write_text(json.dumps(facts | {"classes": int(task.train_target.max()) + 1}))


def _arrays(rows: Any) -> dict[str, np.ndarray]:
    if isinstance(rows, np.ndarray):
        return {"x": rows}
    return {n: np.asarray(c, "U") if n in TITANIC_WORDS else c.to_numpy(np.float32) for n, c in rows.items()}


if __name__ == "__main__":
    prepare(sys.argv[1], Path(sys.argv[2]))
