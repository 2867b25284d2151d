"""Operators that take places from tensors: onnxruntime reads and writes nowhere but in what it was given."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from edgeml_runtime.errors import ShapeMismatch
from edgeml_runtime.session import Session
from tests.runtime.graphs import FLOAT, INT64
from tests.runtime.hostile_kit import a_graph, node


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_grid_reads_beside_the_image(padding: str, mode: str, dtype: type) -> None:
    of = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    values = ("x", of, [1, 1, 3, 4]), ("grid", of, [1, 1, "places", 2])
    sample = node("GridSample", ["x", "grid"], ["y"], mode=mode, padding_mode=padding)
    session = Session(a_graph([sample], ("y", of, [1, 1, 1, "places"]), inputs=values, opset=20))
    far = [sign * far for sign in (1, -1) for far in (2, 1e6, 3e9, 1.5e10, 1e12, 1e20, 3e38, np.inf)]
    grid = np.array([(x, y) for x in [*far, np.nan, 0] for y in [*far, np.nan, 0]], dtype)[None, None]
    read = session.run({"x": np.ones((1, 1, 3, 4), dtype), "grid": grid})["y"]
    assert (np.isnan(read) | (abs(read) < 2)).all()  # no more than the ones of the image and the zeros beside


@pytest.mark.parametrize("place", [16, 1 << 40, -1])
def test_nothing_is_put_beside_what_is_unpooled(place: int) -> None:
    values = ("x", FLOAT, [1, 1, 2, 2]), ("i", INT64, [1, 1, 2, 2])
    unpool = node("MaxUnpool", ["x", "i"], ["y"], kernel_shape=[2, 2], strides=[2, 2])
    session = Session(a_graph([unpool], ("y", FLOAT, [1, 1, 4, 4]), inputs=values))
    with pytest.raises(ShapeMismatch, match="MaxUnpool"):
        session.run({"x": np.ones((1, 1, 2, 2), np.float32), "i": np.array([[[[0, 6], [9, place]]]])})
