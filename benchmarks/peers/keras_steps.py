"""One training step by stock onnxruntime beside Keras's train_on_batch, in turns, in one process.

keras_steps.py FOLDER SECONDS: for each network NAME.onnx and NAME.npz, as benchmarks/training_step.py writes them,
prints a line of JSON. The layers are those of benchmarks/training_nets.py with Keras's own weights: the same work.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"ORT_DISABLE_TELEMETRY": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1"}
from edgeml_runtime.session import Session

import keras  # isort: skip
import numpy as np
import tensorflow as tf
from turns import Step, quartiles  # type: ignore[import-not-found]

tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)
L, LR = keras.layers, 0.01


def mlp(x: Any) -> Any:
    return L.Dense(10)(L.Dense(64, "relu")(x))


def cnn(x: Any) -> Any:
    for filters in (16, 32):
        x = L.MaxPool2D()(L.Conv2D(filters, 3, padding="same", activation="relu")(x))
    return L.Dense(10)(L.Flatten()(x))


def depthwise(x: Any) -> Any:
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(64, (10, 4), 2, "same", use_bias=False)(x)))
    for _ in range(4):
        x = L.ReLU()(L.BatchNormalization()(L.DepthwiseConv2D(3, padding="same", use_bias=False)(x)))
        x = L.ReLU()(L.BatchNormalization()(L.Conv2D(64, 1, use_bias=False)(x)))
    return L.Dense(12)(L.GlobalAveragePooling2D()(x))


def lstm(x: Any) -> Any:
    return L.Dense(6)(L.LSTM(32)(x))


def attention(x: Any) -> Any:
    x = L.LayerNormalization()(L.Add()([x, L.MultiHeadAttention(4, 8)(x, x)]))
    x = L.LayerNormalization()(L.Add()([x, L.Dense(32)(L.Dense(64, "relu")(x))]))
    return L.Dense(10)(L.GlobalAveragePooling1D()(x))


NETS = {"mlp": mlp, "cnn": cnn, "depthwise": depthwise, "lstm": lstm, "attention": attention}


def steps_of(name: str, folder: Path) -> dict[str, Step]:
    """Return a step of ours and one of Keras's."""
    arrays = dict(np.load(folder / f"{name}.npz"))
    session = Session(folder / f"{name}.onnx")
    feeds = {key: value for key, value in arrays.items() if not key.startswith("in.")}
    feeds |= {"x": arrays["in.x"], "target": arrays["in.target"], "lr": np.array(LR, np.float32)}
    x = arrays["in.x"]
    x = np.ascontiguousarray(np.moveaxis(x, 1, -1)) if x.ndim == 4 else x
    entry = keras.Input(x.shape[1:])
    net = keras.Model(entry, NETS[name](entry))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(keras.optimizers.SGD(LR, momentum=0.9), loss)
    return {"edgeml": lambda: session.run(feeds), "Keras": lambda: net.train_on_batch(x, arrays["in.target"])}


def main() -> None:
    folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
    for name in sys.argv[3:] or NETS:
        steps = steps_of(name, folder)
        for step in steps.values():
            for _ in range(5):
                step()
        us = quartiles(steps, seconds)
        print(json.dumps({"net": name, "keras": keras.__version__, "us": us}), flush=True)


if __name__ == "__main__":
    main()
