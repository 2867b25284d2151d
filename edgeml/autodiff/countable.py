"""The number of turns of a loop that stops by a condition which counters and constants alone decide.

Keras's loops over time are of this kind: two counters from 0, each below the number of steps. What decides is cut out
of the body and run, turn by turn, until it says stop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import GraphProto, NodeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

MOST = 4096  # turns that are tried
OPSET = 18
Constants = Mapping[str, np.ndarray]


def turns_of(node: NodeProto, body: GraphProto, around: Sequence[NodeProto], *, constants: Constants) -> int | None:
    """Return how many turns the Loop `node` takes, or None where that depends on the run or passes MOST.

    `around` are the nodes beside it, which may compute what it starts with; `constants` what all of them can read.
    """
    starts = {value.name: outer for value, outer in zip(body.input[1:], node.input[1:], strict=True)}
    ends = {value.name: result.name for value, result in zip(body.input[1:], body.output, strict=False)}
    inside = {**constants, **{tensor.name: numpy_helper.to_array(tensor) for tensor in body.initializer}}
    states = _deciding(body, ends, inside)
    limit = _value(node.input[0], around, constants) if node.input[0] else np.array(MOST + 1)
    if states is None or limit is None:
        return None
    values = [_value(starts[name], around, constants) if starts[name] else np.array(True) for name in states]
    if any(value is None for value in values):
        return None
    turn = _cut(body.node, [body.input[0].name, *states], [ends[name] for name in states], constants=inside)
    for done in range(min(int(limit), MOST) + 1):
        if done == int(limit) or not bool(values[0]):
            return done
        given = dict(zip(turn.input_names, [np.array(done, np.int64), *values], strict=True))
        values = [np.asarray(value) for value in turn.run(None, given)]
    return None


def _deciding(body: GraphProto, ends: Mapping[str, str], constants: Constants) -> list[str] | None:
    """Return the states that the condition hangs on, itself first, or None where it hangs on more than states."""
    found = [body.input[1].name]
    for name in found:  # grows on the way
        for leaf in _leaves(body.node, ends[name], constants):
            if leaf not in ends and leaf != body.input[0].name:
                return None
            found += [leaf] if leaf in ends and leaf not in found else []
    return found


def _value(name: str, nodes: Sequence[NodeProto], constants: Constants) -> np.ndarray | None:
    """Return what `nodes` make of constants under `name`, or None where they read anything else."""
    if _leaves(nodes, name, constants):
        return None
    (value,) = _cut(nodes, [], [name], constants=constants).run(None, {})
    return np.asarray(value)


def _leaves(nodes: Sequence[NodeProto], name: str, constants: Constants) -> list[str]:
    """Return what `name` is made from that neither `nodes` make nor `constants` hold."""
    makers = {output: node for node in nodes for output in node.output}
    seen = [name]
    for one in seen:  # grows on the way
        if one in makers and not _has_graph(makers[one]):
            seen += [read for read in makers[one].input if read and read not in seen]
    return [one for one in seen if one not in constants and (one not in makers or _has_graph(makers[one]))]


def _has_graph(node: NodeProto) -> bool:
    return any(attribute.HasField("g") for attribute in node.attribute)


def _cut(
    nodes: Sequence[NodeProto], inputs: list[str], outputs: list[str], *, constants: Constants
) -> ReferenceEvaluator:
    """Return what computes `outputs` from `inputs`, out of `nodes`."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed & set(node.output):
            needed |= set(node.input)
            kept.append(node)
    ends = [f"edgeml.end.{place}" for place in range(len(outputs))]
    kept = [*reversed(kept), *(helper.make_node("Identity", [a], [b]) for a, b in zip(outputs, ends, strict=True))]
    made = {name for node in kept for name in node.output}
    tensors = [numpy_helper.from_array(constants[n], n) for n in sorted(needed & constants.keys() - made - set(inputs))]
    graph = helper.make_graph(
        kept,
        "turn",
        [helper.make_empty_tensor_value_info(name) for name in inputs],
        [helper.make_empty_tensor_value_info(name) for name in ends],
        tensors,
    )
    return ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)]))
