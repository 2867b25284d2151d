"""The ONNX workbench: read, check, rename, re-weigh and cost graphs. Knows operators, nothing of devices.

    OnnxModel -load-> ModelProto -serialize-> OnnxModel;  inputs, outputs, initializers, rename, cost

Whatever `serialize` lets out loads on onnxruntime 1.19 and newer.
"""

from edgeml.graph.cost import Cost, Layer, cost
from edgeml.graph.proto import MAX_IR, MAX_OPSET, check, load, serialize
from edgeml.graph.samples import random_rows
from edgeml.graph.shapes import annotate, infer
from edgeml.graph.tensors import DTYPES, initializers, inputs, outputs, rename, set_initializers

__all__ = [
    "DTYPES",
    "MAX_IR",
    "MAX_OPSET",
    "Cost",
    "Layer",
    "annotate",
    "check",
    "cost",
    "infer",
    "initializers",
    "inputs",
    "load",
    "outputs",
    "random_rows",
    "rename",
    "serialize",
    "set_initializers",
]
