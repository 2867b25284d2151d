"""Keras networks of every kind that people bring, small, with seeded random weights and statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Network = Any
Builder = Callable[[Any], Network]
ARCHITECTURES: dict[str, Builder] = {}


def build(name: str, keras: Any) -> Network:
    """Return the network `name`, every weight and every statistic of it random."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    network = ARCHITECTURES[name](keras)
    rng = np.random.default_rng(0)
    for variable in network.weights:
        if variable.path.split("/")[-1] in ("seed_generator_state", "mean", "variance", "count"):
            continue  # of a Normalization layer: what it was adapted to
        if variable.path.endswith("moving_variance"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif np.issubdtype(np.dtype(variable.dtype), np.floating):
            fan, flat = max(1, int(np.prod(variable.shape[:-1]))), variable.ndim < 2
            drawn = rng.normal(0, 0.3 if flat else (2 / fan) ** 0.5, variable.shape)
            variable.assign(drawn + 1 if variable.path.endswith("gamma") else drawn)
    normalizers = [layer for layer in network._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in normalizers:
        layer.momentum = 0.0  # the statistics of one batch, so that a deep network neither dies nor explodes
    if normalizers:
        network(
            [rng.normal(0, 3, (16, *tensor.shape[1:])).astype("float32") for tensor in network.inputs], training=True
        )
    return network


def _named(name: str) -> Callable[[Builder], Builder]:
    def register(builder: Builder) -> Builder:
        ARCHITECTURES[name] = builder
        return builder

    return register


def _chain(name: str, shape: tuple[int | None, ...], layers: Callable[[Any], list[Any]], **given: Any) -> None:
    """Add a Sequential model; `layers` makes its layers from the module keras.layers."""
    ARCHITECTURES[name] = lambda keras: keras.Sequential([keras.Input(shape, **given), *layers(keras.layers)])


_chain("MLP", (8,), lambda k: [k.Dense(16, "relu"), k.Dropout(0.5), k.Dense(3, "softmax")])
_chain("MLP with batch normalisation", (8,), lambda k: [k.Dense(16), k.BatchNormalization(), k.ReLU(), k.Dense(3)])
_chain("regressor behind Normalization", (4,), lambda k: [_adapted(k), k.Dense(8, "tanh"), k.Dense(1)])
_chain("CNN", (8, 8, 1), lambda k: [k.Conv2D(4, 3, activation="relu"), k.MaxPool2D(), k.Flatten(), k.Dense(3)])
_chain(
    "CNN, same padding and strides", (9, 9, 2), lambda k: [k.Conv2D(4, 3, 2, "same"), k.AveragePooling2D(2, 1, "same")]
)
_chain("dilated CNN", (12, 12, 1), lambda k: [k.Conv2D(4, 3, dilation_rate=2), k.GlobalMaxPooling2D()])
_chain(
    "DS-CNN",
    (10, 8, 1),
    lambda k: [
        k.Conv2D(8, (4, 3), 2, "same"),
        k.BatchNormalization(),
        k.ReLU(),
        *[
            layer
            for _ in range(2)
            for layer in (
                k.DepthwiseConv2D(3, padding="same"),
                k.BatchNormalization(),
                k.ReLU(),
                k.Conv2D(8, 1),
                k.BatchNormalization(),
                k.ReLU(),
            )
        ],
        k.GlobalAveragePooling2D(),
        k.Dense(4, "softmax"),
    ],
)
_chain(
    "separable CNN",
    (8, 8, 3),
    lambda k: [k.SeparableConv2D(6, 3, padding="same"), k.SpatialDropout2D(0.2), k.Flatten()],
)
_chain("Conv1D", (20, 3), lambda k: [k.Conv1D(4, 5, padding="causal"), k.MaxPooling1D(), k.GlobalAveragePooling1D()])
_chain(
    "SeparableConv1D", (20, 3), lambda k: [k.SeparableConv1D(4, 5), k.ZeroPadding1D(2), k.Cropping1D(1), k.Flatten()]
)
_chain("Conv3D", (4, 6, 6, 1), lambda k: [k.Conv3D(3, 2), k.MaxPooling3D(), k.GlobalAveragePooling3D()])
_chain("transposed convolution", (4, 4, 3), lambda k: [k.Conv2DTranspose(2, 3, 2, "same"), k.UpSampling2D(2)])
_chain("upsampling, bilinear", (4, 4, 2), lambda k: [k.UpSampling2D(2, interpolation="bilinear"), k.Conv2D(1, 1)])
_chain(
    "padding and cropping", (6, 6, 2), lambda k: [k.ZeroPadding2D(((1, 2), (0, 1))), k.Cropping2D(1), k.Conv2D(2, 3)]
)
_chain("shapes", (6, 4), lambda k: [k.Permute((2, 1)), k.Reshape((3, 8)), k.Flatten(), k.RepeatVector(2), k.Dense(3)])
_chain("rescaled image", (8, 8, 3), lambda k: [k.Rescaling(1 / 255, -0.5), k.Resizing(4, 4), k.Conv2D(2, 3)])
_chain("layer normalisation", (5, 6), lambda k: [k.LayerNormalization(), k.Dense(4), k.UnitNormalization()])
_chain("group normalisation", (4, 4, 8), lambda k: [k.GroupNormalization(2), k.Conv2D(2, 1), k.Softmax(axis=1)])
_chain(
    "time distributed",
    (5, 6, 6, 1),
    lambda k: [k.TimeDistributed(k.Conv2D(2, 3)), k.TimeDistributed(k.Flatten()), k.LSTM(4)],
)
_chain("LSTM", (9, 3), lambda k: [k.LSTM(5), k.Dense(2)])
_chain("LSTM of any length", (None, 3), lambda k: [k.LSTM(5, return_sequences=True), k.LSTM(4), k.Dense(2)])
_chain("LSTM, recurrent dropout", (9, 3), lambda k: [k.LSTM(5, recurrent_dropout=0.2)])
_chain("LSTM, hard sigmoid", (9, 3), lambda k: [k.LSTM(5, recurrent_activation="hard_sigmoid")])
_chain("bidirectional LSTM", (9, 3), lambda k: [k.Bidirectional(k.LSTM(5, return_sequences=True)), k.Dense(2)])
_chain("GRU", (9, 3), lambda k: [k.GRU(5), k.Dense(2)])
_chain("GRU of any length", (None, 3), lambda k: [k.GRU(5, return_sequences=True), k.GRU(4)])
_chain("GRU, reset before", (9, 3), lambda k: [k.GRU(5, reset_after=False)])
_chain("GRU, backwards", (9, 3), lambda k: [k.GRU(5, go_backwards=True, return_sequences=True)])
_chain("GRU without bias, relu", (9, 3), lambda k: [k.GRU(5, use_bias=False, activation="relu")])
_chain("bidirectional GRU", (9, 3), lambda k: [k.Bidirectional(k.GRU(5)), k.Dense(2)])
_chain("SimpleRNN", (9, 3), lambda k: [k.SimpleRNN(5, return_sequences=True), k.SimpleRNN(4, activation="relu")])
_chain("bidirectional SimpleRNN", (9, 3), lambda k: [k.Bidirectional(k.SimpleRNN(5), merge_mode="sum")])
_chain("ConvLSTM1D", (5, 8, 2), lambda k: [k.ConvLSTM1D(3, 3)])
_chain("words, LSTM", (6,), lambda k: [k.Embedding(11, 4), k.LSTM(5)], dtype="int32")
_chain("words, masked GRU", (6,), lambda k: [k.Embedding(11, 4, mask_zero=True), k.GRU(5)], dtype="int32")
_chain("words, masked LSTM", (6,), lambda k: [k.Embedding(11, 4, mask_zero=True), k.LSTM(5)], dtype="int32")
_chain(
    "words, masked bidirectional",
    (6,),
    lambda k: [
        k.Embedding(11, 4, mask_zero=True),
        k.Bidirectional(k.GRU(5, return_sequences=True)),
        k.LSTM(4, return_sequences=True, zero_output_for_mask=True),
        k.SimpleRNN(3, go_backwards=True, return_sequences=True),
    ],
    dtype="int32",
)
_chain("whole numbers, one-hot", (1,), lambda k: [k.CategoryEncoding(5, "one_hot"), k.Dense(2)], dtype="int32")
_chain("half precision inside", (8,), lambda k: [k.Dense(8, dtype="mixed_float16"), k.Dense(2, dtype="float32")])
_chain("noise layers", (8,), lambda k: [k.GaussianNoise(0.5), k.AlphaDropout(0.2), k.GaussianDropout(0.1), k.Dense(2)])
_chain("buckets", (3,), lambda k: [k.Discretization([-1.0, 0.0, 1.0])])
_chain("text", (1,), lambda k: [k.TextVectorization(vocabulary=["a", "b"])], dtype="string")
_chain("string lookup", (1,), lambda k: [k.StringLookup(vocabulary=["a", "b"])], dtype="string")
_chain("integer lookup", (1,), lambda k: [k.IntegerLookup(vocabulary=[3, 5])], dtype="int64")
_chain("hashed words", (1,), lambda k: [k.Hashing(7)], dtype="string")
_chain("random augmentation", (8, 8, 3), lambda k: [k.RandomFlip(), k.RandomRotation(0.1), k.Conv2D(2, 3)])


def _adapted(layers: Any) -> Any:
    layer = layers.Normalization()
    layer.adapt(np.random.default_rng(0).normal(3, 2, size=(50, 4)))
    return layer


@_named("activations")
def _activations(keras: Any) -> Network:
    start = keras.Input((8,))
    names = (
        "gelu",
        "celu",
        "elu",
        "selu",
        "silu",
        "softplus",
        "softsign",
        "relu6",
        "hard_sigmoid",
        "hard_silu",
        "mish",
    )
    names += ("leaky_relu", "exponential", "log_softmax", "glu", "hard_tanh", "squareplus")
    heads = [keras.layers.Dense(4, name)(start) for name in names]
    return keras.Model(start, keras.layers.Concatenate()([*heads, keras.layers.PReLU()(start)]))


def _residual(keras: Any, tensor: Any, width: int, stride: int) -> Any:
    layers = keras.layers
    inner = layers.Conv2D(width, 3, stride, "same")(tensor)
    inner = layers.ReLU()(layers.BatchNormalization()(inner))
    inner = layers.BatchNormalization()(layers.Conv2D(width, 3, 1, "same")(inner))
    if stride > 1:
        tensor = layers.Conv2D(width, 1, stride, "same")(tensor)
    return layers.ReLU()(layers.Add()([tensor, inner]))


@_named("ResNet-8")
def _resnet(keras: Any) -> Network:
    start = tensor = keras.Input((16, 16, 3))
    tensor = keras.layers.Conv2D(8, 3, 1, "same")(tensor)
    for width, stride in ((8, 1), (16, 2), (32, 2)):
        tensor = _residual(keras, tensor, width, stride)
    return keras.Model(start, keras.layers.Dense(10, "softmax")(keras.layers.GlobalAveragePooling2D()(tensor)))


@_named("EfficientNet-lite-like")
def _efficientnet(keras: Any) -> Network:
    layers = keras.layers
    start = tensor = keras.Input((16, 16, 3))
    for width, stride in ((8, 2), (12, 1)):
        inner = layers.Activation("relu6")(layers.BatchNormalization()(layers.Conv2D(width * 2, 1)(tensor)))
        inner = layers.DepthwiseConv2D(3, stride, "same")(inner)
        inner = layers.Activation("relu6")(layers.BatchNormalization()(inner))
        gate = layers.GlobalAveragePooling2D(keepdims=True)(inner)
        gate = layers.Conv2D(width * 2, 1, activation="sigmoid")(layers.Conv2D(4, 1, activation="swish")(gate))
        tensor = layers.BatchNormalization()(layers.Conv2D(width, 1)(layers.Multiply()([inner, gate])))
    return keras.Model(start, layers.Dense(5)(layers.GlobalAveragePooling2D()(tensor)))


@_named("MobileNetV2")
def _mobilenet_v2(keras: Any) -> Network:
    return keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=10)


@_named("MobileNetV3Small")
def _mobilenet_v3(keras: Any) -> Network:
    return keras.applications.MobileNetV3Small((32, 32, 3), alpha=0.75, weights=None, classes=10)


@_named("autoencoder")
def _autoencoder(keras: Any) -> Network:
    layers = keras.layers
    coder = keras.Sequential([keras.Input((16,)), layers.Dense(8, "relu"), layers.Dense(3)], name="coder")
    decoder = keras.Sequential([keras.Input((3,)), layers.Dense(8, "relu"), layers.Dense(16)], name="decoder")
    start = keras.Input((16,), name="frame")
    return keras.Model(start, decoder(coder(start)))


@_named("U-net")
def _unet(keras: Any) -> Network:
    layers = keras.layers
    start = keras.Input((8, 8, 1))
    high = layers.Conv2D(4, 3, padding="same", activation="relu")(start)
    low = layers.Conv2D(8, 3, padding="same", activation="relu")(layers.MaxPooling2D()(high))
    merged = layers.Concatenate()([high, layers.Conv2DTranspose(4, 2, 2)(low)])
    return keras.Model(start, layers.Conv2D(2, 1, activation="softmax")(merged))


@_named("attention")
def _attention(keras: Any) -> Network:
    layers = keras.layers
    start = keras.Input((7, 8))
    tensor = layers.LayerNormalization()(start)
    tensor = layers.Add()([start, layers.MultiHeadAttention(2, 4)(tensor, tensor)])
    tensor = layers.Add()([tensor, layers.Dense(8)(layers.Dense(16, "gelu")(layers.LayerNormalization()(tensor)))])
    return keras.Model(start, layers.GlobalAveragePooling1D()(tensor))


@_named("several inputs and outputs")
def _several(keras: Any) -> Network:
    layers = keras.layers
    picture, table = keras.Input((6, 6, 1), name="picture"), keras.Input((3,), name="table")
    both = layers.Concatenate()([layers.Flatten()(layers.Conv2D(2, 3)(picture)), table])
    heads = [layers.Dense(3, "softmax", name="kind")(both), layers.Dense(1, name="level")(table)]
    return keras.Model([picture, table], heads)


@_named("shared layer")
def _siamese(keras: Any) -> Network:
    left, right = keras.Input((5,), name="left"), keras.Input((5,), name="right")
    shared = keras.layers.Dense(4, "tanh")
    return keras.Model([left, right], keras.layers.Dot(axes=1, normalize=True)([shared(left), shared(right)]))


@_named("operators of keras.ops")
def _operators(keras: Any) -> Network:
    start = keras.Input((6,))
    centred = start - keras.ops.mean(start, axis=-1, keepdims=True)
    return keras.Model(start, keras.ops.concatenate([keras.ops.abs(centred), centred * centred], axis=-1))


@_named("subclassed")
def _subclassed(keras: Any) -> Network:
    class Twice(keras.Model):  # type: ignore[misc, name-defined]
        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            self.dense, self.last = keras.layers.Dense(8, "relu"), keras.layers.Dense(2)

        def call(self, rows: Any) -> Any:
            return self.last(self.dense(rows) + self.dense(rows))

    network = Twice()
    network(np.zeros((2, 5), np.float32))
    return network
