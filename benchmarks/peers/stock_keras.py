"""The graph as tf2onnx writes it: what every ORT-based peer starts from."""

from __future__ import annotations

from pathlib import Path

import keras
import tensorflow as tf
import tf2onnx

from benchmarks.peers.job import FOLDER, STOCK, Result

OPSET = 18


def convert(path: Path) -> None:
    """Write the stock graph."""
    model = keras.saving.load_model(FOLDER / "source.keras", compile=False)
    spec = [tf.TensorSpec([None, *model.inputs[0].shape[1:]], tf.float32, name="x")]
    function = tf.function(lambda x: model(x, training=False), input_signature=spec)
    tf2onnx.convert.from_function(function, input_signature=spec, opset=OPSET, output_path=str(path))


if __name__ == "__main__":
    result = Result()
    result.make("onnxruntime fp32", "onnxruntime", to=STOCK, by=convert)
    result.tell()
