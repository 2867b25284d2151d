"""Our own converters for scikit-learn's networks: one Gemm and one activation per layer, then Softmax.

    MLPClassifier | MLPRegressor -> layer0 .. layerN -> probabilities, label | prediction

`register` puts them in place of skl2onnx's own, which split each layer in two, and give a binary
classifier a tail that has no gradient; this form is one that can be trained further and quantized. The weights are
initializers called layer<i>.weight and layer<i>.bias.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto
from skl2onnx import update_registered_converter
from skl2onnx.common.data_types import FloatTensorType, Int64TensorType
from sklearn.neural_network import MLPClassifier, MLPRegressor

from edgeml.artifacts import TARGET_SCALE
from edgeml.errors import UnsupportedModel

ACTIVATIONS = {"relu": "Relu", "tanh": "Tanh", "logistic": "Sigmoid", "identity": ""}


def _classifier_shapes(operator: Any) -> None:
    classes = len(operator.raw_operator.classes_)
    operator.outputs[0].type = Int64TensorType([None])
    operator.outputs[1].type = FloatTensorType([None, classes])


def _regressor_shapes(operator: Any) -> None:
    operator.outputs[0].type = FloatTensorType([None, operator.raw_operator.n_outputs_])


def _convert_classifier(scope: Any, operator: Any, container: Any) -> None:
    network = operator.raw_operator
    if network._label_binarizer.y_type_ == "multilabel-indicator":
        raise UnsupportedModel("an MLPClassifier of several labels per row has no converter; fit one per label")
    label, probabilities = (output.full_name for output in operator.outputs)
    logits = _layers(operator, container, output="logits")
    if len(network.classes_) == 2:  # softmax([0, z]) is [1 - sigmoid(z), sigmoid(z)]
        container.add_initializer("both_classes", TensorProto.FLOAT, [1, 2], [0.0, 1.0])
        container.add_node("Mul", [logits, "both_classes"], "both_logits", name="both_logits")
        logits = "both_logits"
    container.add_node("Softmax", logits, probabilities, name="probabilities", op_version=13, axis=1)
    container.add_node("ArgMax", probabilities, label, name="label", op_version=13, axis=1, keepdims=0)


def _convert_regressor(scope: Any, operator: Any, container: Any) -> None:
    network, prediction = operator.raw_operator, operator.outputs[0].full_name
    mean, deviation = getattr(network, "target_scale_", (0.0, 1.0))
    if (mean, deviation) == (0.0, 1.0):
        _layers(operator, container, output=prediction)
        return
    standard = _layers(operator, container, output="standardized", scale=(mean, deviation))
    container.add_initializer(TARGET_SCALE, TensorProto.FLOAT, [], [deviation])
    container.add_initializer("target.mean", TensorProto.FLOAT, [], [mean])
    container.add_node("Mul", [standard, TARGET_SCALE], "rescaled", name="rescaled", op_version=14)
    container.add_node("Add", ["rescaled", "target.mean"], prediction, name="prediction", op_version=14)


def _layers(operator: Any, container: Any, *, output: str, scale: tuple[float, float] = (0.0, 1.0)) -> str:
    """Emit every layer; return the name of the last one's output, which is not activated.

    The last layer answers in standard units of a target with this mean and deviation.
    """
    network, value = operator.raw_operator, str(operator.inputs[0].full_name)
    last = len(network.coefs_) - 1
    activation, (mean, deviation) = ACTIVATIONS[network.activation], scale
    weights = [*network.coefs_[:-1], network.coefs_[-1] / deviation]
    biases = [*network.intercepts_[:-1], (network.intercepts_[-1] - mean) / deviation]
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        layer = f"layer{i}"
        for name, array in ((f"{layer}.weight", weight), (f"{layer}.bias", bias)):
            container.add_initializer(name, TensorProto.FLOAT, array.shape, np.asarray(array, np.float32).ravel())
        end = output if i == last else f"{layer}.sum"
        container.add_node("Gemm", [value, f"{layer}.weight", f"{layer}.bias"], end, name=layer, op_version=13)
        value = end
        if i < last and activation:
            value = f"{layer}.activation"
            container.add_node(activation, end, value, name=value, op_version=13)
    return value


def register() -> None:
    """Put these converters in place of skl2onnx's own."""
    update_registered_converter(
        MLPClassifier,
        "EdgemlMLPClassifier",
        _classifier_shapes,
        _convert_classifier,
        options={"zipmap": [True, False, "columns"], "nocl": [True, False], "output_class_labels": [False, True]},
    )
    update_registered_converter(MLPRegressor, "EdgemlMLPRegressor", _regressor_shapes, _convert_regressor)
