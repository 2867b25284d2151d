"""Random small networks of smooth operators: their gradients against finite differences, in 64 bits and in 32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from hypothesis import given, note, settings
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgeml_runtime.session import Session
from tests.autodiff.graphs import gradient_model

FAR = 2e-5
MOST = 4000  # elements of a tensor
DOUBLE = ("Tanh", "Sigmoid", "Sin", "Cos", "Neg", "Identity")  # of those with float64 kernels
SINGLE = (*DOUBLE, "Erf", "Atan", "Softplus", "Gelu", "Mish", "Softsign", "Asinh")
Shape = tuple[int, ...]


@dataclass
class Net:
    """A network that grows: nodes, constants, and the tensors that the next node may read."""

    unary: tuple[str, ...] = DOUBLE
    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    tensors: list[tuple[str, Shape]] = field(default_factory=list)

    def op(self, op_type: str, *inputs: str, shape: Shape, **attributes: object) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], **attributes))
        self.tensors.append((name, shape))
        return name

    def const(self, value: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = value
        return name


Run = Callable[[dict[str, np.ndarray]], np.ndarray]
Grow = Callable[[st.DataObject, Net, str, Shape], None]


def pick(data: st.DataObject, net: Net, fits: Callable[[Shape], bool] = lambda _: True) -> tuple[str, Shape] | None:
    """Draw one of the tensors whose shape fits."""
    found = [one for one in net.tensors if fits(one[1])]
    return data.draw(st.sampled_from(found)) if found else None


def axis_of(data: st.DataObject, shape: Shape) -> int:
    return data.draw(st.integers(0, len(shape) - 1))


def unary(data: st.DataObject, net: Net, x: str, shape: Shape) -> None:
    net.op(data.draw(st.sampled_from(net.unary)), x, shape=shape)


def joins(shape: Shape, other: Shape) -> bool:
    pairs = zip(shape[::-1], other[::-1], strict=False)
    return all(a == b or 1 in (a, b) for a, b in pairs) and int(np.prod(np.broadcast_shapes(shape, other))) <= MOST


def binary(data: st.DataObject, net: Net, x: str, shape: Shape) -> None:
    found = pick(data, net, lambda other: joins(shape, other))
    assert found  # x itself
    other, wide = found[0], np.broadcast_shapes(shape, found[1])
    op_type = data.draw(st.sampled_from(("Add", "Sub", "Mul", "Div", "Pow")))
    if op_type in ("Div", "Pow"):  # away from 0
        safe = net.op("Add", net.op("Tanh", x, shape=shape), net.const(np.array(1.5)), shape=shape)
        pair = (other, safe) if op_type == "Div" else (safe, net.op("Tanh", other, shape=found[1]))
        net.op(op_type, *pair, shape=wide)
    else:
        net.op(op_type, *((x, other) if data.draw(st.booleans()) else (other, x)), shape=wide)


def product(data: st.DataObject, net: Net, x: str, shape: Shape) -> None:
    width = data.draw(st.integers(1, 4))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    net.op("MatMul", x, net.const(rng.normal(size=(shape[-1], width)) / 2), shape=(*shape[:-1], width))


def square(data: st.DataObject, net: Net, x: str, shape: Shape) -> None:
    """x times itself, its last axes turned."""
    if len(shape) < 2:
        return
    order = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
    turned = net.op("Transpose", x, shape=(*shape[:-2], shape[-1], shape[-2]), perm=order)
    net.op("MatMul", x, turned, shape=(*shape[:-1], shape[-2]))


def reduction(data: st.DataObject, net: Net, x: str, shape: Shape) -> None:
    axis, keep = axis_of(data, shape), data.draw(st.booleans())
    op_type = data.draw(st.sampled_from(("ReduceSum", "ReduceMean", "ReduceLogSumExp", "ReduceSumSquare")))
    left = (*shape[:axis], *([1] if keep else []), *shape[axis + 1 :])
    if left:
        net.op(op_type, x, net.const(np.array([axis])), shape=left, keepdims=int(keep))


def along(data: st.DataObject, net: Net, x: str, shape: Shape) -> None:
    op_type, axis = data.draw(st.sampled_from(("Softmax", "LogSoftmax", "CumSum"))), axis_of(data, shape)
    if op_type == "CumSum":
        net.op(op_type, x, net.const(np.array(axis)), shape=shape, reverse=data.draw(st.integers(0, 1)))
    else:
        net.op(op_type, x, shape=shape, axis=axis)


def normalized(data: st.DataObject, net: Net, x: str, shape: Shape) -> None:
    scale = net.const(np.linspace(0.5, 1.5, shape[-1]))
    net.op("LayerNormalization", x, scale, shape=shape, epsilon=0.1)


def moved(data: st.DataObject, net: Net, x: str, shape: Shape) -> None:
    axis = axis_of(data, shape)
    places = data.draw(st.lists(st.integers(-shape[axis], shape[axis] - 1), min_size=1, max_size=4))
    net.op("Gather", x, net.const(np.array(places)), shape=(*shape[:axis], len(places), *shape[axis + 1 :]), axis=axis)


def turned(data: st.DataObject, net: Net, x: str, shape: Shape) -> None:
    order = data.draw(st.permutations(range(len(shape))))
    net.op("Transpose", x, shape=tuple(shape[i] for i in order), perm=order)


def flattened(data: st.DataObject, net: Net, x: str, shape: Shape) -> None:
    axis = axis_of(data, shape)
    sizes = int(np.prod(shape[:axis], dtype=int)), int(np.prod(shape[axis:], dtype=int))
    net.op("Reshape", x, net.const(np.array([sizes[0], -1])), shape=sizes)


def joined(data: st.DataObject, net: Net, x: str, shape: Shape) -> None:
    axis = axis_of(data, shape)
    rest = (*shape[:axis], *shape[axis + 1 :])
    found = pick(data, net, lambda o: len(o) == len(shape) and (*o[:axis], *o[axis + 1 :]) == rest)
    assert found  # x itself
    size = shape[axis] + found[1][axis]
    net.op("Concat", x, found[0], shape=(*shape[:axis], size, *shape[axis + 1 :]), axis=axis)


def padded(data: st.DataObject, net: Net, x: str, shape: Shape) -> None:
    begins, ends = ([data.draw(st.integers(0, 1)) for _ in shape] for _ in range(2))
    amounts = net.const(np.array([*begins, *ends]))
    net.op("Pad", x, amounts, shape=tuple(a + b + c for a, b, c in zip(begins, shape, ends, strict=True)))


def cut(data: st.DataObject, net: Net, x: str, shape: Shape) -> None:
    axis, step = axis_of(data, shape), data.draw(st.sampled_from((1, 2, -1)))
    size = len(range(shape[axis])[:: abs(step)])
    begin, end = (0, shape[axis]) if step > 0 else (-1, -shape[axis] - 1)
    ends = [net.const(np.array([one])) for one in (begin, end, axis, step)]
    net.op("Slice", x, *ends, shape=(*shape[:axis], size, *shape[axis + 1 :]))


def taken_apart(data: st.DataObject, net: Net, x: str, shape: Shape) -> None:
    axis = axis_of(data, shape)
    if shape[axis] < 2:
        return
    first = data.draw(st.integers(1, shape[axis] - 1))
    sizes = net.const(np.array([first, shape[axis] - first]))
    names = [f"t{len(net.nodes)}", f"t{len(net.nodes)}.rest"]
    net.nodes.append(helper.make_node("Split", [x, sizes], names, axis=axis))
    for name, size in zip(names, (first, shape[axis] - first), strict=True):
        net.tensors.append((name, (*shape[:axis], size, *shape[axis + 1 :])))


GROWTHS: tuple[Grow, ...] = (
    *(unary, unary, binary, binary, product, square, reduction, along, normalized),
    *(moved, turned, flattened, joined, padded, cut, taken_apart),
)


@st.composite
def nets(draw: st.DrawFn, unary: tuple[str, ...]) -> tuple[Net, dict[str, Shape], bool]:
    """A network of up to twelve growths over one to three inputs, its sizes declared or left open."""
    data = draw(st.data())
    shapes = [
        draw(st.sampled_from([(2, 3), (3,), (2, 1, 3), (1, 4), (4, 2), (1,)])) for _ in range(draw(st.integers(1, 3)))
    ]
    inputs = {f"x{i}": shape for i, shape in enumerate(shapes)}
    net = Net(unary, tensors=list(inputs.items()))
    for _ in range(draw(st.integers(2, 12))):
        found = pick(data, net, lambda shape: 0 < len(shape) <= 4 and int(np.prod(shape)) <= MOST // 8)
        if found:
            draw(st.sampled_from(GROWTHS))(data, net, *found)
    if not net.nodes:
        net.op("Tanh", "x0", shape=inputs["x0"])
    return net, inputs, draw(st.booleans())


def a_model(net: Net, inputs: dict[str, Shape], dtype: type, *, known: bool) -> ModelProto:
    """The answer `y` adds up what no node reads, each part weighted otherwise."""
    of = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    read = {name for node in net.nodes for name in node.input}
    ends = [name for name, _ in net.tensors if name not in read and name not in inputs]
    nodes, parts = list(net.nodes), []
    constants = {n: v.astype(dtype) if v.dtype.kind == "f" else v for n, v in net.constants.items()}
    for index, name in enumerate(ends):
        constants[f"k{index}"] = np.array(1.0 + 0.3 * index, dtype)
        nodes.append(helper.make_node("Mul", [name, f"k{index}"], [f"p{index}"]))
        nodes.append(helper.make_node("ReduceSum", [f"p{index}"], [f"s{index}"], keepdims=0))
        parts.append(f"s{index}")
    nodes.append(helper.make_node("Sum", parts, ["y"]))
    taken = [
        helper.make_tensor_value_info(name, of, shape if known else [f"{name}.{i}" for i in range(len(shape))])
        for name, shape in inputs.items()
    ]
    named = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "net", taken, [helper.make_empty_tensor_value_info("y")], named)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def slopes(model: ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    reached = reachable(model)
    wrt = [name for name in feeds if name in reached]
    seed = np.array(1, next(iter(feeds.values())).dtype)
    found = gradient_model(model, wrt, seed).run({**feeds, "seed": seed})
    return {name: found[f"d.{name}"] if name in wrt else np.zeros_like(value) for name, value in feeds.items()}


def reachable(model: ModelProto) -> set[str]:
    """Return the tensors that the answer depends on."""
    found = {"y"}
    for node in reversed(model.graph.node):
        if found.intersection(node.output):
            found.update(node.input)
    return found


def by_runtime(model: ModelProto) -> Run:
    session = Session(model.SerializeToString())
    return lambda feeds: session.run(feeds)["y"]


def worst(run: Run, feeds: dict[str, np.ndarray], exact: dict[str, np.ndarray], *, seed: int, h: float = 1e-5) -> float:
    """Return the largest error along three random directions, over the size of the gradient and 1."""
    rng, errors = np.random.default_rng(seed), []
    size = 1 + float(np.sqrt(sum((grad**2).sum() for grad in exact.values())))
    for _ in range(3):
        ways = {name: rng.normal(size=value.shape) for name, value in feeds.items()}
        up, down = (
            float(run({name: value + sign * h * ways[name] for name, value in feeds.items()})) for sign in (1, -1)
        )
        slope = sum(float((exact[name] * ways[name]).sum()) for name in feeds)
        errors.append(abs(slope - (up - down) / (2 * h)) / size)
    return max(errors)


@settings(max_examples=150)
@given(drawn=nets(DOUBLE), seed=st.integers(0, 2**16))
def test_gradients_of_random_networks(drawn: tuple[Net, dict[str, Shape], bool], seed: int) -> None:
    net, inputs, known = drawn
    note(" ".join(node.op_type for node in net.nodes))
    rng = np.random.default_rng(seed)
    feeds = {name: rng.normal(size=shape) for name, shape in inputs.items()}
    model = a_model(net, inputs, np.float64, known=known)
    exact = slopes(model, feeds)
    assert all(exact[name].shape == value.shape for name, value in feeds.items())
    assert worst(by_runtime(model), feeds, exact, seed=seed) < FAR
    size = 1 + float(np.sqrt(sum((grad**2).sum() for grad in exact.values())))
    single = {name: value.astype(np.float32) for name, value in feeds.items()}
    for name, grad in slopes(a_model(net, inputs, np.float32, known=known), single).items():
        np.testing.assert_allclose(grad, exact[name], atol=1e-3 * size)


@settings(max_examples=60)
@given(drawn=nets(SINGLE), seed=st.integers(0, 2**16))
def test_gradients_in_32_bits_of_operators_that_have_no_more(
    drawn: tuple[Net, dict[str, Shape], bool], seed: int
) -> None:
    """Finite differences of onnx's own reference evaluator, in 64 bits but for its Erf: hence the longer step."""
    net, inputs, known = drawn
    note(" ".join(node.op_type for node in net.nodes))
    rng = np.random.default_rng(seed)
    feeds = {name: rng.normal(size=shape).astype(np.float32) for name, shape in inputs.items()}
    found = slopes(a_model(net, inputs, np.float32, known=known), feeds)
    reference = ReferenceEvaluator(a_model(net, inputs, np.float64, known=known))
    wide = {name: value.astype(np.float64) for name, value in feeds.items()}
    assert worst(lambda given: reference.run(None, given)[0], wide, found, seed=seed, h=1e-3) < 2e-3


def test_the_check_finds_gradients_that_are_off_by_a_thousandth() -> None:
    net = Net(tensors=[("x0", (2, 3))])
    net.op("Tanh", "x0", shape=(2, 3))
    feeds = {"x0": np.linspace(-1, 1, 6).reshape(2, 3)}
    model = a_model(net, {"x0": (2, 3)}, np.float64, known=True)
    run, exact = by_runtime(model), slopes(model, feeds)
    assert worst(run, feeds, exact, seed=0) < FAR / 100
    assert worst(run, feeds, {"x0": exact["x0"] * 1.001}, seed=0) > FAR
