"""What the compiler leaves in a graph: nothing twice, nothing unused, and no more at a time than it needs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper

from edgeml_runtime.session import Session
from tests.autodiff.learners import CLASSES, NETS, ROWS, a_step

OVERHEAD = 3  # bytes at one time, as a multiple of what the forward pass makes and of the parameters' four copies


def graph_of(name: str) -> onnx.GraphProto:
    return onnx.load_model_from_string(a_step(name).data).graph


@pytest.mark.parametrize("name", NETS)
def test_no_expression_is_computed_twice(name: str) -> None:
    seen = set()
    for node in graph_of(name).node:
        options = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
        key = (node.op_type, *node.input, *options)
        assert key not in seen, f"{node.op_type} of {list(node.input)} is there twice"
        seen.add(key)


@pytest.mark.parametrize("name", NETS)
def test_every_node_and_constant_is_used_and_each_constant_is_there_once(name: str) -> None:
    graph = graph_of(name)
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    assert all(set(node.output) & used for node in graph.node)
    assert all(constant.name in used for constant in graph.initializer)
    made = [c.SerializeToString() for c in graph.initializer if c.name.startswith("ad.") and not c.ClearField("name")]
    assert len(set(made)) == len(made)


@pytest.mark.parametrize("name", NETS)
def test_what_is_held_at_one_time_is_bounded(name: str) -> None:
    """In the order of the nodes, counting a tensor from the node that makes it to the last that reads it."""
    step = a_step(name)
    model = onnx.load_model_from_string(step.data)
    sizes = tensor_bytes(model, feeds_of(name, step))
    last = {read: index for index, node in enumerate(model.graph.node) for read in node.input}
    last |= {value.name: len(model.graph.node) for value in model.graph.output}
    held = peak = 0
    ends: dict[int, int] = {}
    for index, node in enumerate(model.graph.node):
        for made in filter(None, node.output):
            held += sizes[made]
            ends[last.get(made, index)] = ends.get(last.get(made, index), 0) + sizes[made]
        peak = max(peak, held)
        held -= ends.pop(index, 0)
    forward = sum(size for made, size in sizes.items() if not made.startswith(("ad.", "new.")))
    parameters = sum(array.nbytes for array in step.parameters.values())
    assert peak <= OVERHEAD * (forward + 4 * parameters), (peak, forward, parameters)


def feeds_of(name: str, step: object) -> dict[str, np.ndarray]:
    session = Session(step.data)
    given = {**step.parameters, **step.state, "lr": np.array(0.01, np.float32)}
    (own,) = [spec for spec in session.inputs if spec.name not in {*given, "target"}]
    draw = np.random.default_rng(0)
    target = draw.integers(0, CLASSES[name], ROWS)
    return given | {own.name: draw.normal(size=(ROWS, *own.shape[1:])).astype(np.float32), "target": target}


def tensor_bytes(model: ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, int]:
    """Return the bytes of every tensor that a node makes, as onnxruntime makes it."""
    whole = ModelProto()
    whole.CopyFrom(model)
    names = [made for node in model.graph.node for made in node.output if made]
    known = {value.name for value in model.graph.output}
    whole.graph.output.extend(helper.make_empty_tensor_value_info(made) for made in names if made not in known)
    return {made: array.nbytes for made, array in Session(whole.SerializeToString()).run(feeds).items()}
