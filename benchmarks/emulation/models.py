"""The models whose instructions are counted: calibration's micro-models and reference nets, and forms it lacks.

Weights need not be cold here, where no cache is modelled: hardly anything is read between two runs.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np
import onnx

from benchmarks.emulation.emulator import Job
from edgeml.artifacts import OnnxModel, Rows, Variant
from edgeml.bench.calibrate.blocks import Builder, feeds
from edgeml.bench.calibrate.kernels import kernels
from edgeml.bench.calibrate.reference import REFERENCES
from edgeml.graph import cost
from edgeml.quantize import MIN_CALIBRATION_ROWS, quantize

LEAST_CACHE = 4096  # bytes: what kernels() reads in between follows it
THIRD = 3  # each third micro-model is there to be run with cold caches: it is left out
MOST_OF_KIND = 8
MOST_MACS = 20e6  # larger ones cost minutes of emulation, and the same cycles per operation
SIGNED = " s8"  # ends the name of a form with signed activations
FORMS = ("int8-dynamic", "int8-dynamic-tensor", "fp16", "int4-weights")  # recipes with operators of their own


def micro_models() -> list[Job]:
    """Return the micro-models of calibration, their form with signed activations, and those of other recipes."""
    chosen = (kernel for kernel in kernels(LEAST_CACHE) if _is_chosen(int(kernel.name.rpartition(" ")[2])))
    built = ((kernel.name, *kernel.built()) for kernel in chosen)
    plain = [
        Job(name, data, feeds(shape))
        for name, data, shape in built
        if cost(OnnxModel(data, source="emulation")).macs <= MOST_MACS
    ]
    signed = [Job(job.name + SIGNED, data, job.feeds) for job in plain if (data := as_signed(job.model))]
    return [*plain, *signed, *_other_forms()]


def references() -> list[Job]:
    """Return calibration's reference nets in fp32, with unsigned and with signed activations."""
    jobs = []
    for name, build in REFERENCES.items():
        for form in ("", " int8", f" int8{SIGNED}"):
            data, shape = build(bool(form))
            jobs.append(Job(name + form, as_signed(data) if form.endswith(SIGNED) else data, feeds(shape)))
    return jobs


def as_signed(data: bytes) -> bytes:
    """Return a QDQ model with uint8 activations as one with int8 activations; nothing where there are none."""
    model = onnx.load_from_string(data)
    changed = False
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.UINT8:
            moved = onnx.numpy_helper.to_array(tensor).astype(np.int16) - 128
            tensor.CopyFrom(onnx.numpy_helper.from_array(moved.astype(np.int8), tensor.name))
            changed = True
    return bytes(model.SerializeToString()) if changed else b""


def recipes(model: OnnxModel, names: Sequence[str]) -> dict[str, bytes]:
    """Return the variants that edgeml's own recipes make of `model`, calibrated with random rows."""
    session_inputs = onnx.load_from_string(model.data).graph.input
    draw, columns = np.random.default_rng(0), {}
    for value in session_inputs:
        shape = [axis.dim_value for axis in value.type.tensor_type.shape.dim][1:]
        columns[value.name] = draw.standard_normal((MIN_CALIBRATION_ROWS, *shape)).astype(np.float32)
    made = quantize(model, Rows(columns), list(names))
    return {variant.recipe: variant.model.data for variant in made if isinstance(variant, Variant)}


def _is_chosen(index: int) -> bool:
    return index < MOST_OF_KIND and index % THIRD != THIRD - 1


def _other_forms() -> Iterator[Job]:
    """Yield small nets of one layer in the forms that only a recipe makes."""
    draw = random.Random(1)
    for index, (name, net) in enumerate([*_dense(draw), *_convolutions(draw)]):
        shape = net.shapes["x"]
        asked = FORMS if name == "dense" else ("fp16",)
        data = net.done(next(reversed(net.shapes)))
        for recipe, made in recipes(OnnxModel(data, source="emulation"), asked).items():
            if recipe in asked:
                yield Job(f"{name} {index} {recipe}", made, feeds(shape))


def _dense(draw: random.Random) -> Iterator[tuple[str, Builder]]:
    for rows in (*[1] * 14, *[8, 32, 64] * 3):
        inner, out = draw.choice((64, 128, 256, 512, 784, 1024, 1280)), draw.choice((10, 64, 100, 128, 256, 512, 1000))
        net = Builder((rows, inner))
        net.dense("x", out, act=draw.choice(("", "Relu")))
        yield "dense", net


def _convolutions(draw: random.Random) -> Iterator[tuple[str, Builder]]:
    for kind in ("pointwise", "depthwise", "3x3", "first", "sum", "pool") * 4:
        size, channels = draw.choice((7, 10, 14, 20, 28)), draw.choice((16, 32, 64, 96, 128))
        if kind == "first":
            size, channels = draw.choice((32, 64, 96)), 3
        net = Builder((1, channels, size, size))
        match kind:
            case "pointwise":
                net.conv("x", draw.choice((32, 64, 128)))
            case "depthwise":
                net.conv("x", channels, kernel=3, stride=draw.choice((1, 2)), group=channels)
            case "3x3" | "first":
                net.conv("x", draw.choice((16, 32, 64)), kernel=3, stride=draw.choice((1, 2)))
            case "sum":
                net.sum(net.conv("x", channels), net.conv("x", channels))
            case "pool":
                net.dense(net.pooled(net.conv("x", 32)), 10)
        yield kind, net
