"""The forms of a convolution's gradients: all of them are the same numbers, and the graphs hold nothing twice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgeml.autodiff import banded, convolution
from edgeml.autodiff.backward import live
from edgeml.autodiff.builder import GraphBuilder
from edgeml.autodiff.window import Layer, kernel_of, layer_of, window
from edgeml_runtime.session import Session

ROWS = 3


def a_layer(**changes: object) -> tuple[ModelProto, np.ndarray, np.ndarray]:
    """A convolution as a model, with rows for it and a gradient of its answers."""
    usual = {"channels": 2, "out": 4, "size": (7, 6), "kernel": (3, 3), "strides": (1, 1), "dilations": (1, 1)}
    of = usual | {"pads": (1, 1, 1, 1), "group": 1} | changes
    weight = np.zeros((of["out"], of["channels"] // of["group"], *of["kernel"]), np.float32)
    options = {name: list(of[name]) for name in ("strides", "dilations", "pads")}
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=of["group"], **options)
    given_x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", of["channels"], *of["size"]])
    initial = [numpy_helper.from_array(weight, "w")]
    graph = helper.make_graph([node], "conv", [given_x], [helper.make_empty_tensor_value_info("y")], initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    draw = np.random.default_rng(0)
    x = draw.normal(size=(ROWS, of["channels"], *of["size"])).astype(np.float32)
    return model, x, draw.normal(size=(ROWS, *after_of(model))).astype(np.float32)


def after_of(model: ModelProto) -> tuple[int, ...]:
    return tuple(int(n) for n in GraphBuilder(model).shapes["y"][1:])


def layer(model: ModelProto) -> tuple[GraphBuilder, Layer]:
    g = GraphBuilder(model)
    (node,) = model.graph.node
    found = layer_of(g, ("x", "y"), weight="w", move=window(g, node, kernel_of(g, node)))
    assert found is not None
    return g, found


def run(model: ModelProto, g: GraphBuilder, made: str, **feeds: np.ndarray) -> np.ndarray:
    """Return what the tensor `made` is, with what it needs of x, dy and w as inputs."""
    nodes = live(g.nodes, [made])
    used = {name for node in nodes for name in node.input}
    constants = [numpy_helper.from_array(a, n) for n, a in g.constants.items() if n in used and n not in feeds]
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in feeds.items() if n in used]
    graph = helper.make_graph(nodes, "gradient", inputs, [helper.make_empty_tensor_value_info(made)], constants)
    whole = helper.make_model(graph, opset_imports=model.opset_import, ir_version=9)
    return Session(whole.SerializeToString()).run({value.name: feeds[value.name] for value in inputs})[made]


def weight_gradients(model: ModelProto, x: np.ndarray, dy: np.ndarray) -> dict[str, np.ndarray]:
    """Return dW by every form that the layer can have."""
    forms = ["swapped", "taps", *(["banded"] if banded.height_of(layer(model)[1]) else [])]
    found = {}
    for form in forms:
        g, one = layer(model)
        made = convolution.FORMS[form](g, one, ("x", "dy", "w"))
        found[form] = run(model, g, made, x=x, dy=dy)
    return found


def by_definition(model: ModelProto, x: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """dW[o, i, tap] is the sum over rows and positions of dy[o] times the x that this tap met there."""
    _, one = layer(model)
    move = one.move
    (top, left, bottom, right), each = move.pads, one.outer // one.move.group
    wide = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right))).astype(np.float64)
    found = np.zeros((one.outer, one.inner, *move.kernel))
    for i, j in np.ndindex(*move.kernel):
        a, b = i * move.dilations[0], j * move.dilations[1]
        ends = [p + (o - 1) * s + 1 for p, o, s in zip((a, b), one.after, move.strides, strict=True)]
        met = wide[:, :, a : ends[0] : move.strides[0], b : ends[1] : move.strides[1]]
        for o in range(one.outer):
            own = o // each * one.inner
            found[o, :, i, j] = np.einsum("nhw,nchw->c", dy[:, o], met[:, own : own + one.inner])
    return found


SHAPES = {
    "same": {},
    "valid": {"pads": (0, 0, 0, 0)},
    "strided": {"strides": (2, 2), "pads": (0, 0, 1, 1)},
    "dilated": {"dilations": (2, 1), "pads": (2, 0, 1, 1)},
    "one tap": {"kernel": (1, 1), "pads": (0, 0, 0, 0)},
    "one channel": {"channels": 1},
    "many channels": {"channels": 10, "out": 3},
    "groups": {"channels": 4, "group": 2},
    "groups of many": {"channels": 20, "group": 2, "strides": (1, 2)},
    "depthwise": {"channels": 4, "group": 4},
    "depthwise, strided": {"channels": 4, "group": 4, "strides": (2, 2), "pads": (0, 0, 1, 1), "size": (8, 8)},
    "depthwise, odd": {"channels": 4, "group": 4, "strides": (3, 2), "kernel": (2, 5), "pads": (1, 2, 0, 1)},
    "depthwise, dilated": {"channels": 4, "group": 4, "dilations": (2, 1), "pads": (2, 1, 2, 1)},
    "two kernels a channel": {"channels": 2, "group": 2},
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_form_of_the_weights_gradient_is_what_its_definition_says(name: str) -> None:
    model, x, dy = a_layer(**SHAPES[name])
    expected = by_definition(model, x, dy)
    for form, found in weight_gradients(model, x, dy).items():
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4, err_msg=form)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_forms_agree_for_any_window(data: st.DataObject) -> None:
    small = st.integers(1, 3)
    kernel, strides, dilations = (data.draw(st.tuples(small, small)) for _ in range(3))
    most = [(kernel[i] - 1) * dilations[i] for i in (0, 1, 0, 1)]
    pads = data.draw(st.tuples(*[st.integers(0, n) for n in most]))
    least = [(kernel[i] - 1) * dilations[i] + 1 - pads[i] - pads[i + 2] for i in range(2)]
    size = tuple(max(1, low) + data.draw(st.integers(0, 4)) for low in least)
    group, inner, each = (data.draw(st.integers(1, 3)) for _ in range(3))
    shape = {"kernel": kernel, "strides": strides, "dilations": dilations, "pads": pads, "size": size}
    model, x, dy = a_layer(channels=group * inner, out=group * each, group=group, **shape)
    expected = by_definition(model, x, dy)
    for form, found in weight_gradients(model, x, dy).items():
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4, err_msg=form)


@pytest.mark.parametrize("name", SHAPES)
def test_every_form_of_the_inputs_gradient_is_the_one_that_finite_steps_of_the_weights_see(name: str) -> None:
    """<dx, x> = <dw, w> for every x: both are how the sum of dy y changes, as y is bilinear."""
    model, x, dy = a_layer(**SHAPES[name])
    weight = np.random.default_rng(1).normal(size=layer_shape(model)).astype(np.float32)
    _, one = layer(model)
    forms = ["spread", *(["turned"] if convolution.turns(one) else []), *(["banded"] if banded.height_of(one) else [])]
    found = {}
    for form in forms:
        g, one = layer(model)
        found[form] = run(model, g, convolution.BACKS[form](g, one, ("x", "dy", "w")), dy=dy, w=weight)
    for other in np.eye(1, x.size, 17).reshape(x.shape), x:
        wanted = (by_definition(model, other, dy) * weight).sum()
        for form, dx in found.items():
            assert dx.shape == x.shape
            assert (dx * other).sum() == pytest.approx(wanted, rel=1e-4, abs=1e-4), form
    for dx in found.values():
        np.testing.assert_allclose(dx, found["spread"], rtol=1e-4, atol=1e-5)


def layer_shape(model: ModelProto) -> tuple[int, ...]:
    return tuple(model.graph.initializer[0].dims)


@pytest.mark.parametrize("name", [name for name in SHAPES if name.startswith("depthwise")])
def test_tiles_of_every_height_make_the_same(name: str) -> None:
    model, x, dy = a_layer(**SHAPES[name])
    weight = np.random.default_rng(1).normal(size=layer_shape(model)).astype(np.float32)
    g, one = layer(model)
    wanted = {
        banded.forward: operator(model, x, weight),
        banded.weight_gradient: by_definition(model, x, dy),
        banded.input_gradient: run(model, g, convolution.BACKS["spread"](g, one, ("x", "dy", "w")), dy=dy, w=weight),
    }
    heights = [n for n in range(1, one.after[0] + 1) if all(banded.tiling(one, n, back=b).fits for b in (False, True))]
    assert heights[-1] == one.after[0]  # the whole picture always is a tile
    for height in heights:
        for product, expected in wanted.items():
            g, one = layer(model)
            found = run(model, g, product(g, one, ("x", "dy", "w"), height=height), x=x, dy=dy, w=weight)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4, err_msg=f"{product.__name__}, {height}")


def operator(model: ModelProto, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return what the layer's own operator makes of `x`."""
    whole = ModelProto()
    whole.CopyFrom(model)
    whole.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    return Session(whole.SerializeToString()).run({"x": x})["y"]
