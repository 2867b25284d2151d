"""One case as a model, and the gradients of a model as a session."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, helper, numpy_helper

from edgeml.autodiff.backward import gradients, live
from edgeml.autodiff.builder import GraphBuilder
from edgeml_runtime.session import Session
from tests.autodiff.case import Case


def a_model(op_type: str, case: Case, *, dtype: type, symbolic: bool, opset: int) -> ModelProto:
    """One node from graph inputs to `y`; with `symbolic`, nothing is known of any size."""
    of = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    inputs = []
    for name, array in case.inputs.items():
        dims = [f"{name}{i}" for i in range(array.ndim)] if symbolic and name not in case.known else array.shape
        inputs.append(helper.make_tensor_value_info(name, of, dims))
    constants = [np.asarray(v, dtype) if np.asarray(v).dtype.kind == "f" else v for v in case.constants.values()]
    named = [numpy_helper.from_array(np.asarray(v), n) for n, v in zip(case.constants, constants, strict=True)]
    node = helper.make_node(
        op_type, case.order or tuple(case.inputs), ["y", *(f"y{i}" for i in range(1, case.outputs))], **case.attributes
    )
    output = helper.make_empty_tensor_value_info("y")
    graph = helper.make_graph([node], "one", inputs, [output], named)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def gradient_model(model: ModelProto, wrt: list[str], seed: np.ndarray) -> Session:
    return Session(gradient_graph(model, wrt, seed).SerializeToString())


def gradient_graph(model: ModelProto, wrt: list[str], seed: np.ndarray) -> ModelProto:
    """Return the gradients `d.<name>` of `y` for its gradient `seed`."""
    g = GraphBuilder(model)
    found = gradients(g, {"y": "seed"}, wrt)
    assert all(found.values()), f"no gradient for {[name for name, tensor in found.items() if tensor is None]}"
    nodes = live([*g.forward, *g.nodes], [tensor for tensor in found.values() if tensor])
    nodes += [helper.make_node("Identity", [str(found[name])], [f"d.{name}"]) for name in wrt]
    constants = [numpy_helper.from_array(array, name) for name, array in g.constants.items()]
    seed_info = helper.make_tensor_value_info("seed", helper.np_dtype_to_tensor_dtype(seed.dtype), seed.shape)
    outputs = [helper.make_empty_tensor_value_info(f"d.{name}") for name in wrt]
    graph = helper.make_graph(nodes, "gradients", [*model.graph.input, seed_info], outputs, constants)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
