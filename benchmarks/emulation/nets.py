"""The nets by which emulated predictions are judged, in every recipe: none of them is among what was fitted.

Three are of families that the reference nets know too, at other sizes; others are benchmarks/networks.py's own.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.emulation.emulator import Job
from benchmarks.emulation.models import recipes
from benchmarks.networks import OWN, WHOLE
from edgeml import graph
from edgeml.artifacts import OnnxModel
from edgeml.bench.calibrate.blocks import Builder

STATIC = ("int8-static-u8s8", "int8-static-s8s8", "int8-tensor-u8s8", "int8-tensor-s8s8")
RECIPES = ("fp32", *STATIC, "int8-qoperator-u8s8", "int8-dynamic", "int8-dynamic-tensor", "fp16", "int4-weights")
FREE = ("fp32", "int8-dynamic", "int8-dynamic-tensor", "fp16", "int4-weights")  # where the first axis is not a row
CHOSEN = ("autoencoder-8", "mlp-784", "lstm-48", "temporal-128", "transformer-64")


def mobilenet_v2() -> bytes:
    """MobileNetV2 1.0 at 96 (arXiv 1801.04381, table 2), ReLU for ReLU6."""
    net = Builder((1, 3, 96, 96))
    x = net.conv("x", 32, kernel=3, stride=2)
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expand, out, repeat, first in stages:
        for block in range(repeat):
            wide, stride = net.shapes[x][1] * expand, first if block == 0 else 1
            y = net.conv(x, wide) if expand > 1 else x
            y = net.conv(net.conv(y, wide, kernel=3, stride=stride, group=wide), out, act="")
            x = net.sum(x, y) if net.shapes[x] == net.shapes[y] else y
    return net.done(net.dense(net.pooled(net.conv(x, 1280)), 1000))


def ds_cnn() -> bytes:
    """A keyword spotter like DS-CNN's medium size (arXiv 1711.07128): 172 channels, 40 by 10."""
    net = Builder((1, 1, 40, 10))
    x = net.conv("x", 172, kernel=5, stride=2)
    for _ in range(4):
        x = net.conv(net.conv(x, 172, kernel=3, group=172), 172)
    return net.done(net.dense(net.pooled(x), 12))


def resnet8() -> bytes:
    """MLPerf Tiny's image classifier: ResNet-8 at 32."""
    net = Builder((1, 3, 32, 32))
    x = net.conv("x", 16, kernel=3)
    for out, stride in ((16, 1), (32, 2), (64, 2)):
        y = net.conv(net.conv(x, out, kernel=3, stride=stride), out, kernel=3, act="")
        skip = x if stride == 1 else net.conv(x, out, stride=stride, act="")
        x = net.activate(net.sum(skip, y), "Relu")
    return net.done(net.dense(net.pooled(x), 10))


def mlp() -> bytes:
    """A classifier of digits: 784 - 256 - 128 - 10."""
    net = Builder((1, 784))
    return net.done(net.dense(net.dense(net.dense("x", 256, act="Relu"), 128, act="Relu"), 10))


SAME_FAMILY: dict[str, Callable[[], bytes]] = {  # as a reference net's, whose scalar is then not used for it
    "mobilenet-v2-1.0-96": mobilenet_v2,
    "ds-cnn-172": ds_cnn,
    "resnet8-32": resnet8,
}
NETS: dict[str, Callable[[], bytes]] = {
    **SAME_FAMILY,
    "mlp-256": mlp,
    **{name: OWN[name] for name in CHOSEN},
}


def variants(name: str) -> dict[str, OnnxModel]:
    """Return the net in every recipe that makes something of it, by recipe."""
    model = OnnxModel(NETS[name](), source="emulation")
    asked = FREE if name in WHOLE else RECIPES
    made = {recipe: OnnxModel(data, source="emulation") for recipe, data in recipes(model, asked).items()}
    return {recipe: made[recipe] for recipe in asked if recipe in made}


def job(name: str, recipe: str, model: OnnxModel) -> Job:
    return Job(f"{name} {recipe}", model.data, graph.random_rows(model, 1))
