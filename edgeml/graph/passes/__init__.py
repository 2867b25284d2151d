"""Rewrites that keep every answer and cost less to run: one file each, applied in the order of PASSES.

    ModelProto -optimize-> the same ModelProto, changed in place, and a note for everything that was done

A pass may only use operators of the graph's own opset and must keep the names of inputs, outputs and trainable weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from onnx import ModelProto

from edgeml.graph.passes.affine import affine
from edgeml.graph.passes.dead import dead
from edgeml.graph.passes.recurrent import recurrent
from edgeml.graph.passes.trees import trees

Rewrite = Callable[[ModelProto], list[str]]
PASSES: dict[str, Rewrite] = {
    "recurrent": recurrent,
    "affine": affine,
    "trees": trees,
    "dead": dead,
}


def optimize(proto: ModelProto, only: Iterable[str] | None = None) -> list[str]:
    """Apply the passes named in `only` (default: all) to `proto` in place and return what they did, a note each."""
    wanted = list(PASSES) if only is None else list(only)
    return [note for name in wanted for note in PASSES[name](proto)]
