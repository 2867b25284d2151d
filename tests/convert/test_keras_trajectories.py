"""Networks that Keras trains, trained by our graphs: the same weights after 30 steps of the same batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from edgeml import convert
from edgeml.autodiff import SGD, Adagrad, Adam, Optimizer, RMSprop, training_step
from edgeml_runtime.session import Session

pytestmark = pytest.mark.extras
F32 = np.float32
STEPS, ROWS, CLOSE = 30, 32, 1e-5


def _residual(k: Any, x: Any, filters: int) -> Any:
    y = k.layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
    y = k.layers.Activation("swish")(k.layers.BatchNormalization()(y))
    return k.layers.Add()([y, k.layers.Conv2D(filters, 1)(x)])


def _resnet(k: Any) -> list[Any]:
    x = k.Input((8, 8, 1))
    y = _residual(k, k.layers.MaxPool2D()(_residual(k, x, 8)), 16)
    return [x, k.layers.Dense(10)(k.layers.GlobalAveragePooling2D()(y))]


def _attention(k: Any) -> list[Any]:
    x = k.Input((8, 8))
    y = k.layers.LayerNormalization()(k.layers.Add()([x, k.layers.MultiHeadAttention(2, 4)(x, x)]))
    return [x, k.layers.Dense(10)(k.layers.Flatten()(y))]


def _autoencoder(k: Any) -> list[Any]:
    x = k.Input((8, 8, 1))
    y = k.layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(x)
    y = k.layers.Conv2DTranspose(1, 3, strides=2, padding="same")(y)
    return [x, k.layers.Flatten()(y)]


def _layers(shape: tuple[int, ...], *layers: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    def build(k: Any) -> list[Any]:
        x = y = k.Input(shape)
        for make in layers:
            y = make(k.layers)(y)
        return [x, y]

    return build


def _images(*layers: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    return _layers((8, 8, 1), *layers, lambda n: n.Dense(10))


def _steps(*layers: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    return _layers((8, 8), *layers, lambda n: n.Dense(10))


def _words(*layers: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    return _layers((12,), lambda n: n.Embedding(17, 8, mask_zero=True), *layers, lambda n: n.Dense(10))


WORDS = ("embedding", "masked lstm", "masked gru")
NETS: dict[str, Callable[[Any], list[Any]]] = {
    "mlp": _layers((64,), lambda n: n.Dense(64, "relu"), lambda n: n.Dense(10)),
    "gelu": _layers((64,), lambda n: n.Dense(32, "gelu"), lambda n: n.Dense(10)),
    "cnn": _images(
        lambda n: n.Conv2D(8, 3, padding="same", activation="relu"),
        lambda n: n.MaxPool2D(2),
        lambda n: n.Conv2D(16, 3, padding="same", activation="relu"),
        lambda n: n.GlobalAveragePooling2D(),
    ),
    "depthwise": _images(
        lambda n: n.Conv2D(16, 3, strides=2, padding="same"),
        lambda n: n.BatchNormalization(),
        lambda n: n.Activation("swish"),  # smooth: a relu that one side sees at 1e-9 and the other at -1e-9 parts them
        lambda n: n.DepthwiseConv2D(3, padding="same", activation="elu"),
        lambda n: n.Conv2D(16, 1, activation="tanh"),
        lambda n: n.AveragePooling2D(2),
        lambda n: n.Flatten(),
    ),
    "separable": _images(
        lambda n: n.SeparableConv2D(8, 3, strides=2, padding="same", activation="swish"),
        lambda n: n.GlobalMaxPooling2D(),
    ),
    "resnet": _resnet,
    "conv1d": _layers(
        (64, 1),
        lambda n: n.Conv1D(8, 5, padding="same", activation="relu"),
        lambda n: n.MaxPool1D(2),
        lambda n: n.Conv1D(8, 3, padding="causal", dilation_rate=2, activation="elu"),
        lambda n: n.GlobalAveragePooling1D(),
        lambda n: n.Dense(10),
    ),
    "layer norm": _steps(lambda n: n.Dense(16), lambda n: n.LayerNormalization(), lambda n: n.Flatten()),
    "attention": _attention,
    "lstm": _steps(lambda n: n.LSTM(12)),
    "stacked lstm": _steps(lambda n: n.LSTM(8, return_sequences=True), lambda n: n.LSTM(6)),
    "bidirectional": _steps(lambda n: n.Bidirectional(n.LSTM(6))),
    "gru": _steps(lambda n: n.GRU(12)),
    "rnn": _steps(lambda n: n.SimpleRNN(12)),
    "masked lstm": _words(lambda n: n.LSTM(8)),
    "masked gru": _words(lambda n: n.Bidirectional(n.GRU(4, return_sequences=True)), lambda n: n.GRU(4)),
    "convolving lstm": _layers((4, 16, 1), lambda n: n.ConvLSTM1D(4, 3), lambda n: n.Flatten(), lambda n: n.Dense(10)),
    "embedding": _layers(
        (64,), lambda n: n.Embedding(17, 8), lambda n: n.GlobalAveragePooling1D(), lambda n: n.Dense(10)
    ),
    "autoencoder": _autoencoder,
}
QUICK = ("depthwise", "attention", "gru")  # the others are slow: TensorFlow takes a second to build each
OPTIMIZERS: dict[str, tuple[Optimizer, Callable[[Any], Any], float]] = {
    "momentum": (SGD(0.9), lambda o: o.SGD(0.01, momentum=0.9), 0.01),
    "nesterov": (SGD(0.9, nesterov=True), lambda o: o.SGD(0.01, momentum=0.9, nesterov=True), 0.01),
    "adam": (Adam(form="plain"), lambda o: o.Adam(1e-3), 1e-3),
    "adamw": (Adam(form="plain", decay=0.01), lambda o: o.AdamW(1e-3, weight_decay=0.01), 1e-3),
    "rmsprop": (RMSprop(form="inside"), lambda o: o.RMSprop(1e-3), 1e-3),
    "adagrad": (Adagrad(initial=0.1, form="inside"), lambda o: o.Adagrad(0.01), 0.01),
}


def a_network(name: str, keras: Any) -> Any:
    keras.backend.clear_session()  # names of layers begin anew
    keras.utils.set_random_seed(0)
    return keras.Model(*NETS[name](keras))


def batches(name: str, model: Any) -> Any:
    shape = model.input_shape[1:]
    for number in range(STEPS):
        draw = np.random.default_rng(number)
        x = draw.uniform(size=(ROWS, *shape)).astype(F32)
        if name in WORDS:
            x = np.floor(16 * x).astype(F32)
        yield x, x.reshape(ROWS, -1) if name == "autoencoder" else draw.integers(0, 10, ROWS)


def trained(name: str, keras: Any, optimizer: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], Any]:
    """Return our variables and Keras's after STEPS steps, by name, and the Keras model."""
    model = a_network(name, keras)
    ours, theirs, lr = OPTIMIZERS[optimizer]
    loss = "mse" if name == "autoencoder" else "softmax_cross_entropy"
    converted = convert.from_keras(model, trainable=True)
    graph = training_step(converted, loss=loss, optimizer=ours, batch_statistics=True)
    session, state = Session(graph.data), {**graph.parameters, **graph.state}
    their_loss = "mse" if loss == "mse" else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(theirs(keras.optimizers), their_loss)
    (own,) = {spec.name for spec in session.inputs} - {*state, "target", "lr"}
    for x, target in batches(name, model):
        found = session.run({**state, own: x, "target": target, "lr": np.array(lr, F32)})
        state = {key: found[f"new.{key}"] for key in state}
        model.train_on_batch(x, target)
    after = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load_model_from_string(convert.from_keras(model, trainable=True).data).graph.initializer
    }
    return {key: state[key] for key in graph.parameters}, after, model


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in NETS])
def test_thirty_steps_end_at_the_weights_that_keras_has(name: str, keras: Any) -> None:
    ours, theirs, model = trained(name, keras, "momentum")
    assert len(ours) == len([variable for variable in model.variables if variable.dtype == "float32"]), list(ours)
    apart = {key: float(np.abs(ours[key] - theirs[key]).max()) for key in ours}
    assert max(apart.values()) < CLOSE, apart


@pytest.mark.parametrize(
    "optimizer", [pytest.param(o, marks=() if o == "adam" else pytest.mark.slow) for o in OPTIMIZERS]
)
def test_every_optimizer_steps_as_keras_does(optimizer: str, keras: Any) -> None:
    ours, theirs, _ = trained("mlp", keras, optimizer)
    apart = {key: float(np.abs(ours[key] - theirs[key]).max()) for key in ours}
    assert max(apart.values()) < CLOSE, apart


@pytest.mark.slow
def test_a_bias_before_a_normalization_may_drift_under_adam_while_the_answers_stay_together(keras: Any) -> None:
    """Its gradient is zero but for rounding, which Adam makes a step of: so answers are compared, not that bias."""
    ours, theirs, model = trained("depthwise", keras, "adam")
    x = np.random.default_rng(99).uniform(size=(64, 8, 8, 1)).astype(F32)
    answers = [np.asarray(model(x, training=True))]
    for variable in model.variables:
        moved = theirs.get(variable.path), ours.get(variable.path)
        if all(value is not None for value in moved) and variable.shape == moved[0].shape:
            variable.assign(moved[1])
    answers.append(np.asarray(model(x, training=True)))
    assert np.abs(answers[0] - answers[1]).max() < 1e-2 * np.abs(answers[0]).max()


def test_zero_biases_and_frozen_layers_come_over_as_keras_has_them(keras: Any) -> None:
    model = a_network("depthwise", keras)
    model.layers[1].trainable = model.layers[2].trainable = False  # the first convolution and its normalization
    converted = convert.from_keras(model, trainable=True)
    graph = training_step(converted, batch_statistics=True)
    assert set(graph.parameters) == {variable.path for variable in model.trainable_variables}
    assert {"depthwise_conv2d/bias", "dense/bias"} <= set(graph.parameters)
    names = {tensor.name for tensor in onnx.load_model_from_string(converted.data).graph.initializer}
    assert {variable.path for variable in model.variables if variable.dtype == "float32"} <= names
