"""Models of a newer opset than training graphs have: what came later is spelled out in operators that were there.

ONNX gives its newer composed operators (Attention, RMSNormalization, Swish) as functions of older
ones; the others changed in the element types they take alone, which the checker confirms.
"""

from __future__ import annotations

import onnx
from onnx import ModelProto, NodeProto, defs, helper
from onnx.inliner import inline_selected_functions

from edgeml.autodiff.builder import describe
from edgeml.errors import UnsupportedModel


def spelled_out(model: ModelProto, newest: int) -> ModelProto:
    """Return `model`, of a later opset, in opset `newest`.

    Raises UnsupportedModel naming the operator that cannot be written in it.
    """
    later = sorted({node.op_type for node in model.graph.node if _came_later(node, newest)})
    written = _inlined(model, later) if later else model
    for node in written.graph.node:
        if _came_later(node, newest):
            raise UnsupportedModel(f"{describe(node)} is not in opset {newest}, the newest that training graphs have")
    for entry in written.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = newest
    try:
        onnx.checker.check_model(written)
    except onnx.checker.ValidationError as error:
        reason = str(error).splitlines()[0]
        raise UnsupportedModel(
            f"the model cannot be written in opset {newest}, as training graphs are: {reason}"
        ) from error
    return written


def _inlined(model: ModelProto, operators: list[str]) -> ModelProto:
    typed = onnx.shape_inference.infer_shapes(model)
    constants = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in typed.graph.initializer]
    typed.graph.value_info.extend(constants)  # the inliner asks for the types of constants, too
    written = inline_selected_functions(typed, [("", name) for name in operators], False, True)
    del written.graph.value_info[:]
    return written


def _came_later(node: NodeProto, opset: int) -> bool:
    return node.domain in ("", "ai.onnx") and not defs.has(node.op_type, opset)
