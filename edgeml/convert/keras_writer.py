"""ONNX nodes in tf2onnx's graph, in the place of a mark that stands for a layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import tf2onnx


class Writer:
    """Writes ONNX nodes into tf2onnx's graph in place of one mark."""

    def __init__(self, ctx: Any, node: Any, *, masked: bool = False) -> None:
        self.ctx, self.stem = ctx, node.name
        self.x, *self.weights = list(node.input)
        self.mask = self.weights.pop() if masked else ""
        self.rank = len(ctx.get_shape(self.x))
        self.shapes, self.dtypes, self.result = node.output_shapes, node.output_dtypes, node.output[0]

    def op(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Return the output of a new node, or the list of them."""
        name = tf2onnx.utils.make_name(self.stem)
        made = self.ctx.make_node(
            operator, list(inputs), attr=attributes, output_count=outputs, name=name, dtypes=self.dtypes * outputs
        )
        return made.output[0] if outputs == 1 else list(made.output)

    def const(self, value: Any, dtype: Any = np.int64) -> str:
        name = tf2onnx.utils.make_name(self.stem)
        return str(self.ctx.make_const(name, np.asarray(value, dtype)).output[0])
