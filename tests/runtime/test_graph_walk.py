"""Reading an ONNX file without the onnx package: the same as the package reads, and nothing but refusals for junk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from edgeml_runtime.errors import TaskRefused
from edgeml_runtime.graph_walk import MAX_DEPTH, outline
from edgeml_runtime.vetting import OPERATORS, Allowed, vet
from tests.runtime.graphs import colours, mlp
from tests.runtime.test_agent_rounds import slow_task, softmax_regression

AGENT_PAGE = Path(__file__).resolve().parents[2] / "docs/agent.md"
GRAPHS = (mlp(), colours(), softmax_regression(), slow_task())


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from nodes_of(inner)


@pytest.mark.parametrize("data", GRAPHS, ids=["mlp", "colours", "softmax", "loop"])
def test_operators_and_constants_are_those_that_onnx_reads(data: bytes) -> None:
    proto, found = onnx.load_model_from_string(data), outline(data)
    expected = [(node.domain or "ai.onnx", node.op_type, tuple(node.input)) for node in nodes_of(proto.graph)]
    assert [(node.domain, node.operator, node.inputs) for node in found.nodes] == expected
    assert found.domains == {entry.domain or "ai.onnx" for entry in proto.opset_import}
    held = {constant.name: constant for constant in found.constants}
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        assert (held[tensor.name].shape, held[tensor.name].size) == (array.shape, array.nbytes)


@pytest.mark.parametrize("packed", ["raw", "field"])
def test_short_whole_numbers_are_known_by_value(packed: str) -> None:
    values = np.array([3, -1, 2**40], np.int64)
    tensor = numpy_helper.from_array(values, "shape")
    if packed == "field":
        tensor = helper.make_tensor("shape", onnx.TensorProto.INT64, [3], values.tolist())
    graph = helper.make_graph([helper.make_node("ConstantOfShape", ["shape"], ["y"])], "g", [], [], [tensor])
    (constant,) = outline(helper.make_model(graph).SerializeToString()).constants
    assert constant.numbers == (3, -1, 2**40)


def test_a_graph_that_comes_in_two_parts_is_read_as_both() -> None:
    def part(operator: str) -> bytes:
        graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"])], "g", [], [])
        return bytes(onnx.ModelProto(graph=graph).SerializeToString())

    merged = part("Relu") + part("RandomNormalLike")  # protobuf merges the two graph fields
    assert [node.op_type for node in onnx.load_model_from_string(merged).graph.node] == ["Relu", "RandomNormalLike"]
    with pytest.raises(TaskRefused, match="RandomNormalLike"):
        vet(merged, Allowed())


def test_graphs_too_deep_inside_each_other_are_refused() -> None:
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [], [])
    for _ in range(MAX_DEPTH + 1):
        graph = helper.make_graph([helper.make_node("If", ["c"], ["y"], then_branch=graph)], "g", [], [])
    with pytest.raises(TaskRefused, match="graphs 9 deep"):
        vet(helper.make_model(graph).SerializeToString(), Allowed())


@given(data=st.binary(max_size=200))
def test_junk_is_refused_and_nothing_else(data: bytes) -> None:
    with pytest.raises(TaskRefused):
        vet(data, Allowed())


@given(index=st.integers(0, len(GRAPHS) - 1), at=st.floats(0, 1), byte=st.integers(0, 255), cut=st.booleans())
@settings(max_examples=300)
def test_a_damaged_graph_is_read_or_refused_and_nothing_else(index: int, at: float, byte: int, cut: bool) -> None:
    data = bytearray(GRAPHS[index])
    place = min(len(data) - 1, int(at * len(data)))
    damaged = bytes(data[:place]) if cut else bytes(data[:place]) + bytes([byte]) + bytes(data[place + 1 :])
    with contextlib.suppress(TaskRefused):
        vet(damaged, Allowed())


def a_task(operator: str, *inputs: str, sizes: tuple[int, ...] = ()) -> bytes:
    constant = numpy_helper.from_array(np.array(sizes, np.int64), "sizes")
    graph = helper.make_graph([helper.make_node(operator, inputs, ["y"])], "g", [], [], [constant])
    return bytes(helper.make_model(graph).SerializeToString())


@pytest.mark.parametrize("engine", ["", "1.23.0", "1.25.1"])
def test_an_operator_that_reads_outside_its_inputs_is_refused_on_the_versions_that_do(engine: str) -> None:
    with pytest.raises(TaskRefused, match=f"GridSample, which reads outside .* 1.26; {engine or 'none'} is here"):
        vet(a_task("GridSample", "x", "grid"), Allowed(engine=engine))
    for later in ("1.26.0", "1.32.0", "2.0"):
        vet(a_task("GridSample", "x", "grid"), Allowed(engine=later))
    vet(a_task("MaxUnpool", "x", "i"), Allowed(engine=engine))


def test_a_written_size_to_unpool_to_is_bounded() -> None:
    vet(a_task("MaxUnpool", "x", "i", "sizes", sizes=(1, 1, 1 << 13, 1 << 13)), Allowed())
    with pytest.raises(TaskRefused, match="134,217,728 elements; 67,108,864 are allowed"):
        vet(a_task("MaxUnpool", "x", "i", "sizes", sizes=(1, 1, 1 << 14, 1 << 13)), Allowed())


def test_the_list_names_operators_that_exist_and_gives_nothing_by_chance() -> None:
    known = {schema.name if not schema.domain else f"{schema.domain}:{schema.name}" for schema in all_schemas()}
    assert known >= OPERATORS
    assert f"{len(OPERATORS)} operators of two domains" in AGENT_PAGE.read_text(encoding="utf-8")
    assert not {name for name in OPERATORS if name.startswith(("Random", "Sequence", "Optional", "Image", "Bernoulli"))}


def all_schemas() -> list[onnx.defs.OpSchema]:
    return list(onnx.defs.get_all_schemas_with_history())
