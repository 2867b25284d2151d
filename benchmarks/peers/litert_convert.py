"""LiteRT flatbuffers by TensorFlow's converter: float32, and full int8 with a representative data set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from benchmarks.peers.job import FOLDER, Result, rows


def converter() -> Any:
    """Return TensorFlow's converter of the model at batch 1, which recurrent nets need."""
    model = keras.saving.load_model(FOLDER / "source.keras", compile=False)
    for layer in model.layers:
        if hasattr(layer, "unroll"):
            layer.unroll = True  # as a loop LSTM and GRU do not convert to LiteRT's own operators
    spec = tf.TensorSpec([1, *model.inputs[0].shape[1:]], tf.float32)
    function = tf.function(lambda x: model(x, training=False)).get_concrete_function(spec)
    frozen = convert_variables_to_constants_v2(function)  # int8 calibration cannot run variables
    return tf.lite.TFLiteConverter.from_concrete_functions([frozen])


def fp32(path: Path) -> None:
    path.write_bytes(converter().convert())


def int8(path: Path) -> None:
    def examples() -> Iterator[list[np.ndarray]]:
        array = rows("calibration")["x"]
        for i in range(len(array)):
            yield [array[i : i + 1]]

    made = converter()
    made.optimizations = [tf.lite.Optimize.DEFAULT]
    made.representative_dataset = examples
    path.write_bytes(made.convert())


if __name__ == "__main__":
    result = Result()
    result.make("LiteRT fp32", "litert", to="litert-fp32.tflite", by=fp32)
    result.make("LiteRT int8", "litert", to="litert-int8.tflite", by=int8)
    result.tell()
