"""Twenty-five networks that no calibration has seen, with random weights: what predictions are judged by.

    PYTHONPATH=. python benchmarks/networks.py FOLDER     writes NAME.onnx and NAME.int8.onnx for each

Convolutional families from keras.applications at sizes of edge devices, and small nets of other kinds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from edgeml import convert, graph
from edgeml.artifacts import OnnxModel, Rows, Variant
from edgeml.bench.calibrate.blocks import Builder
from edgeml.quantize import quantize

ROWS = 32
KERAS: dict[str, tuple[str, int, dict[str, object]]] = {  # name -> class of keras.applications, input, arguments
    "mobilenet-1.0-128": ("MobileNet", 128, {}),
    "mobilenet-v2-1.0-160": ("MobileNetV2", 160, {}),
    "mobilenet-v3-small-224": ("MobileNetV3Small", 224, {}),
    "mobilenet-v3-large-160": ("MobileNetV3Large", 160, {}),
    "efficientnet-b0-160": ("EfficientNetB0", 160, {}),
    "efficientnet-v2-b0-128": ("EfficientNetV2B0", 128, {}),
    "densenet121-96": ("DenseNet121", 96, {}),
    "resnet50-128": ("ResNet50", 128, {}),
    "resnet50-v2-96": ("ResNet50V2", 96, {}),
    "xception-128": ("Xception", 128, {}),
    "inception-v3-128": ("InceptionV3", 128, {}),
    "nasnet-mobile-128": ("NASNetMobile", 128, {}),
}


def squeezenet() -> bytes:
    """SqueezeNet 1.1 at 160 (arXiv 1602.07360)."""
    net = Builder((1, 3, 160, 160))
    x = _pool(net, net.conv("x", 64, kernel=3, stride=2))
    for index, (squeeze, expand) in enumerate(((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (64, 256))):
        small = net.conv(x, squeeze)
        rows, _, *size = net.shapes[small]
        both = [net.conv(small, expand), net.conv(small, expand, kernel=3)]
        x = net.add("Concat", both, (rows, 2 * expand, *size), axis=1)
        x = _pool(net, x) if index in (1, 3) else x
    return net.done(net.pooled(net.conv(x, 100)))


def resnet18() -> bytes:
    """ResNet-18 at 128 (arXiv 1512.03385)."""
    net = Builder((1, 3, 128, 128))
    x = _pool(net, net.conv("x", 64, kernel=7, stride=2))
    for out in (64, 128, 256, 512):
        for block in range(2):
            stride = 2 if block == 0 and out > 64 else 1
            y = net.conv(net.conv(x, out, kernel=3, stride=stride), out, kernel=3, act="")
            skip = x if net.shapes[x] == net.shapes[y] else net.conv(x, out, stride=stride, act="")
            x = net.activate(net.sum(skip, y), "Relu")
    return net.done(net.dense(net.pooled(x), 100))


def vgg_small() -> bytes:
    """Eight 3x3 convolutions at 64, and two dense layers."""
    net, x = Builder((1, 3, 64, 64)), "x"
    for out in (32, 64, 128, 256):
        x = _pool(net, net.conv(net.conv(x, out, kernel=3), out, kernel=3))
    rows, channels, height, width = net.shapes[x]
    flat = net.add("Flatten", [x], (rows, channels * height * width))
    return net.done(net.dense(net.dense(flat, 512, act="Relu"), 100))


def tiny_yolo() -> bytes:
    """A detector like YOLOv3-tiny at 160, with leaky activations."""
    net, x = Builder((1, 3, 160, 160)), "x"
    for out in (16, 32, 64, 128, 256):
        y = net.conv(x, out, kernel=3, act="")
        x = _pool(net, net.add("LeakyRelu", [y], net.shapes[y], alpha=0.1))
    return net.done(net.conv(net.conv(x, 512, kernel=3), 75, act=""))


def unet() -> bytes:
    """A U-Net of three levels at 96 (arXiv 1505.04597)."""
    net = Builder((1, 3, 96, 96))
    net.weights["twice"] = np.array([1, 1, 2, 2], np.float32)
    x, skips = "x", []
    for out in (16, 32, 64):
        x = net.conv(net.conv(x, out, kernel=3), out, kernel=3)
        skips.append(x)
        x = _pool(net, x)
    x = net.conv(x, 128, kernel=3)
    for skip in reversed(skips):
        rows, channels, height, width = net.shapes[skip]
        mode = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        larger = net.add("Resize", [x, "", "twice"], (rows, net.shapes[x][1], height, width), **mode)
        both = net.add("Concat", [larger, skip], (rows, net.shapes[x][1] + channels, height, width), axis=1)
        x = net.conv(net.conv(both, channels, kernel=3), channels, kernel=3)
    return net.done(net.conv(x, 2, act=""))


def autoencoder() -> bytes:
    """MLPerf Tiny's anomaly detector, eight rows at once: 640 - 128 x 4 - 8 - 128 x 4 - 640."""
    net, x = Builder((8, 640)), "x"
    for out in (128, 128, 128, 128, 8, 128, 128, 128, 128):
        x = net.dense(x, out, act="Relu")
    return net.done(net.dense(x, 640))


def wide_mlp() -> bytes:
    """A dense classifier over 784 inputs: 1024 - 1024 - 512 - 10."""
    net, x = Builder((1, 784)), "x"
    for out in (1024, 1024, 512):
        x = net.dense(x, out, act="Relu")
    return net.done(net.dense(x, 10))


def lstm() -> bytes:
    """Two LSTM layers of 96 over 48 steps."""
    net, x, inner = Builder((48, 1, 24)), "x", 24
    for _ in range(2):
        weights = [net.weight(1, 384, inner), net.weight(1, 384, 96), net.weight(1, 768)]
        y = net.add("LSTM", [x, *weights], (48, 1, 1, 96), hidden_size=96)
        net.weights["flat"] = np.array([48, 1, 96], np.int64)
        x, inner = net.add("Reshape", [y, "flat"], (48, 1, 96)), 96
    return net.done(x)


def temporal() -> bytes:
    """A temporal convolutional net over 128 steps of nine sensors, as pictures of height one."""
    net = Builder((1, 9, 1, 128))
    x = net.conv("x", 64)
    for _ in range(4):
        y = _wide(net, x, 64)
        x = net.sum(x, _wide(net, y, 64))
    return net.done(net.dense(net.pooled(x), 6))


def transformer() -> bytes:
    """Four encoder blocks: 64 tokens, width 192, 3 heads."""
    net, x, shape = Builder((1, 64, 192)), "x", (1, 64, 192)
    net.weights |= {"heads": np.array([1, 64, 3, 64], np.int64), "whole": np.array([1, 64, 192], np.int64)}
    for _ in range(4):
        normed = net.add("LayerNormalization", [x, net.weight(192), net.weight(192)], shape, axis=-1)
        parts = []
        for _ in range(3):
            part = net.add("Add", [net.add("MatMul", [normed, net.weight(192, 192)], shape), net.weight(192)], shape)
            split = net.add("Reshape", [part, "heads"], (1, 64, 3, 64))
            parts.append(net.add("Transpose", [split], (1, 3, 64, 64), perm=[0, 2, 1, 3]))
        turned = net.add("Transpose", [parts[1]], (1, 3, 64, 64), perm=[0, 1, 3, 2])
        scores = net.add("MatMul", [parts[0], turned], (1, 3, 64, 64))
        mixed = net.add("MatMul", [net.add("Softmax", [scores], (1, 3, 64, 64), axis=-1), parts[2]], (1, 3, 64, 64))
        back = net.add("Transpose", [mixed], (1, 64, 3, 64), perm=[0, 2, 1, 3])
        joined = net.add("Reshape", [back, "whole"], shape)
        x = net.add("Add", [x, net.add("MatMul", [joined, net.weight(192, 192)], shape)], shape)
        normed = net.add("LayerNormalization", [x, net.weight(192), net.weight(192)], shape, axis=-1)
        wide = net.add("Relu", [net.add("MatMul", [normed, net.weight(192, 768)], (1, 64, 768))], (1, 64, 768))
        x = net.add("Add", [x, net.add("MatMul", [wide, net.weight(768, 192)], shape)], shape)
    return net.done(x)


def shufflenet() -> bytes:
    """ShuffleNetV2 1.0 at 160 (arXiv 1807.11164): channels split, and shuffled by a transposition."""
    net = Builder((1, 3, 160, 160))
    x = _pool(net, net.conv("x", 24, kernel=3, stride=2))
    for out, repeat in ((116, 4), (232, 8), (464, 4)):
        half = out // 2
        for index in range(repeat):
            if index == 0:
                side = net.shapes[x][1]
                left = net.conv(net.conv(x, side, kernel=3, stride=2, group=side, act=""), half)
                right = x
            else:
                left, right = (_half(net, x, start, half) for start in (0, half))
            wide = net.conv(right, half)
            deep = net.conv(wide, half, kernel=3, stride=2 if index == 0 else 1, group=half, act="")
            x = _shuffled(net, left, net.conv(deep, half))
    return net.done(net.dense(net.pooled(net.conv(x, 1024)), 100))


def _half(net: Builder, x: str, start: int, size: int) -> str:
    rows, _, height, width = net.shapes[x]
    net.weights |= {f"at{n}": np.array([n], np.int64) for n in (1, start, start + size)}
    return net.add("Slice", [x, f"at{start}", f"at{start + size}", "at1"], (rows, size, height, width))


def _shuffled(net: Builder, left: str, right: str) -> str:
    rows, half, height, width = net.shapes[left]
    both = net.add("Concat", [left, right], (rows, 2 * half, height, width), axis=1)
    net.weights |= {
        f"pairs{half}": np.array([rows, 2, half, height, width], np.int64),
        f"flat{half}": np.array([rows, 2 * half, height, width], np.int64),
    }
    pairs = net.add("Reshape", [both, f"pairs{half}"], (rows, 2, half, height, width))
    turned = net.add("Transpose", [pairs], (rows, half, 2, height, width), perm=[0, 2, 1, 3, 4])
    return net.add("Reshape", [turned, f"flat{half}"], (rows, 2 * half, height, width))


def resnext() -> bytes:
    """A ResNeXt of eight blocks at 96, four groups (arXiv 1611.05431)."""
    net = Builder((1, 3, 96, 96))
    x = _pool(net, net.conv("x", 32, kernel=7, stride=2))
    for out in (64, 128, 256, 512):
        for block in range(2):
            stride = 2 if block == 0 and out > 64 else 1
            y = net.conv(net.conv(x, out // 2), out // 2, kernel=3, stride=stride, group=4)
            y = net.conv(y, out, act="")
            skip = x if net.shapes[x] == net.shapes[y] else net.conv(x, out, stride=stride, act="")
            x = net.activate(net.sum(skip, y), "Relu")
    return net.done(net.dense(net.pooled(x), 100))


def squeeze_excite() -> bytes:
    """A MnasNet-A1 of 112 (arXiv 1807.11626): 3x3 and 5x5 depthwise, gates by channel."""
    net = Builder((1, 3, 112, 112))
    x = net.conv("x", 32, kernel=3, stride=2)
    for expand, out, kernel, stride, gate in (
        *((6, 24, 3, 2, False), (3, 40, 5, 2, True), (3, 40, 5, 1, True), (6, 80, 3, 2, False), (6, 80, 3, 1, False)),
        *(
            (6, 112, 3, 1, True),
            (6, 112, 3, 1, True),
            (6, 160, 5, 2, True),
            (6, 160, 5, 1, True),
            (6, 320, 3, 1, False),
        ),
    ):
        wide = net.shapes[x][1] * expand
        y = net.conv(net.conv(x, wide), wide, kernel=kernel, stride=stride, group=wide)
        if gate:
            mean = net.add("GlobalAveragePool", [y], (1, wide, 1, 1))
            small = net.conv(net.conv(mean, wide // 12), wide, act="")
            y = net.add("Mul", [y, net.add("Sigmoid", [small], (1, wide, 1, 1))], net.shapes[y])
        y = net.conv(y, out, act="")
        x = net.sum(x, y) if net.shapes[x] == net.shapes[y] else y
    return net.done(net.dense(net.pooled(x), 100))


WHOLE = {"autoencoder-8", "lstm-48", "transformer-64"}  # whose first axis is not one row: no int8 form of them


OWN: dict[str, Callable[[], bytes]] = {
    "squeezenet-160": squeezenet,
    "resnet18-128": resnet18,
    "vgg-small-64": vgg_small,
    "tiny-yolo-160": tiny_yolo,
    "unet-96": unet,
    "autoencoder-8": autoencoder,
    "mlp-784": wide_mlp,
    "lstm-48": lstm,
    "temporal-128": temporal,
    "transformer-64": transformer,
    "shufflenet-v2-160": shufflenet,
    "resnext-96": resnext,
    "mnasnet-a1-112": squeeze_excite,
}


def _pool(net: Builder, x: str) -> str:
    rows, channels, height, width = net.shapes[x]
    half = (rows, channels, height // 2, width // 2)
    return net.add("MaxPool", [x], half, kernel_shape=[2, 2], strides=[2, 2])


def _wide(net: Builder, x: str, out: int) -> str:
    rows, channels, _, width = net.shapes[x]
    weights = [net.weight(out, channels, 1, 5), net.weight(out)]
    made = net.add("Conv", [x, *weights], (rows, out, 1, width), kernel_shape=[1, 5], pads=[0, 2, 0, 2])
    return net.activate(made, "Relu")


def from_keras(name: str) -> OnnxModel:
    """Return a network of keras.applications without weights of its training, one row at a time."""
    import keras

    kind, side, arguments = KERAS[name]
    net = getattr(keras.applications, kind)(weights=None, input_shape=(side, side, 3), classes=100, **arguments)
    return convert.from_keras(net, name=name)


def _write(folder: Path, name: str) -> None:
    whole, small = folder / f"{name}.onnx", folder / f"{name}.int8.onnx"
    if not whole.exists():
        model = OnnxModel(OWN[name](), source="benchmark") if name in OWN else from_keras(name)
        whole.write_bytes(model.data)
        print(f"{name}: {len(model.data):,} bytes", flush=True)
    if not small.exists():
        model = OnnxModel(whole.read_bytes(), source="benchmark")
        draw = np.random.default_rng(0)
        one = graph.random_rows(model, 1)
        rows = Rows({key: draw.random((ROWS, *array.shape[1:]), np.float32) for key, array in one.items()})
        made = quantize(model, rows, ["int8-static-u8s8"]) if name not in WHOLE else []
        quantized = [found for found in made if isinstance(found, Variant) and found.recipe != "fp32"]
        small.write_bytes(quantized[0].model.data if quantized else b"")
        print(f"{name} int8: {len(quantized)}", flush=True)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*OWN, *KERAS):
        if not (folder / f"{name}.int8.onnx").exists():  # in a process of its own: Keras keeps what it built
            subprocess.run([sys.executable, __file__, str(folder), name], check=True)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        _write(Path(sys.argv[1]), sys.argv[2])
    else:
        main(Path(sys.argv[1]))
