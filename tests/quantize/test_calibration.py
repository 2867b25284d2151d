"""Ranges from rows: exact, bounded in memory, and honest about rows that are not numbers."""

import re
import subprocess
import sys

import numpy as np
import pytest

from edgeml import graph
from edgeml.artifacts import Rows
from edgeml.errors import DataError
from edgeml.quantize import quantize
from edgeml.quantize.calibration import BINS, CUTS, Range, channel_maxima, channel_means, ranges
from tests import networks

MEMORY = """
import resource, numpy as np
from edgeml import graph
from edgeml.artifacts import Rows
from edgeml.quantize.calibration import ranges
from onnx import TensorProto, helper
from tests import networks
weights = {"c": np.ones((8, 3, 3, 3), np.float32)}
nodes = [helper.make_node("Conv", ["image", "c"], ["a"], strides=[2, 2]), helper.make_node("Relu", ["a"], ["b"])]
types = {"inputs": {"image": (TensorProto.FLOAT, ["n", 3, 96, 96])}, "outputs": {"b": (TensorProto.FLOAT, None)}}
proto = networks.a_graph(nodes, weights=weights, **types)
image = np.random.default_rng(0).random((1, 3, 96, 96), dtype=np.float32)
for method, rows in (("minmax", 100), ("mse", 100), ("minmax", 5000), ("mse", 5000)):
    many = Rows({"image": np.broadcast_to(image, (rows, 3, 96, 96))})
    ranges(proto, many, tensors=["image", "a", "b"], method=method, max_rows=None)
    print(rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def relu_net():
    return graph.load(networks.an_mlp())


def test_the_ends_are_those_of_all_rows():
    rows = networks.some_rows(1000)
    found = ranges(relu_net(), rows, tensors=["scaled", "r"])
    scaled = (rows.inputs["numeric"] - 0.5) * 2
    assert found["scaled"] == pytest.approx((scaled.min(), scaled.max()))
    assert found["r"].low == 0


@pytest.mark.parametrize("method", sorted(CUTS))
def test_every_method_stays_within_the_ends(method):
    rows = networks.some_rows(300)
    ends, cut = (ranges(relu_net(), rows, tensors=["scaled", "r"], method=m) for m in ("minmax", method))
    for name in ends:
        assert ends[name].low <= cut[name].low <= 0 <= cut[name].high <= ends[name].high


@pytest.mark.parametrize("method", ["percentile", "mse"])
def test_a_single_outlier_is_cut(method):
    values = np.append(np.random.default_rng(0).standard_normal(999_999), 40.0)
    ends = Range(values.min(), 40.0)
    assert CUTS[method](np.histogram(values, BINS, ends)[0], ends).high < 20


def test_rows_that_are_not_numbers_are_named():
    rows = networks.some_rows(100)
    rows.inputs["numeric"][[3, 70], 2] = np.nan
    with pytest.raises(DataError, match=r"calibration rows 3 make .* NaN or infinite: drop or repair"):
        ranges(relu_net(), rows, tensors=["scaled"])
    rows.inputs["numeric"][3] = 0
    with pytest.raises(DataError, match=r"calibration rows 70 make"):
        ranges(relu_net(), rows, tensors=["scaled"])
    with pytest.raises(DataError, match=r"calibration rows 70 make"):
        ranges(relu_net(), rows.take(slice(0, 71)), tensors=["scaled"], max_rows=36)
    rows.inputs["numeric"][3] = np.inf
    with pytest.raises(DataError, match="calibration rows 3 make"):
        quantize(networks.an_mlp(), rows, ["int8"])


@pytest.mark.parametrize("measure", [ranges, channel_means])
def test_rows_that_fill_no_batch_are_refused(measure):
    proto, rows = graph.load(networks.an_mlp(batch=64)), networks.some_rows(40)
    with pytest.raises(DataError, match="do not fill one batch"):
        measure(proto, rows, tensors={"scaled": 1})


def test_a_constant_tensor_has_a_range_that_holds_zero():
    rows = Rows({"numeric": np.full((64, networks.FEATURES), 3.0, np.float32)})
    assert ranges(relu_net(), rows, tensors=["numeric"])["numeric"] == Range(0.0, 3.0)


def test_channels_are_measured_along_their_axis():
    rows, proto = networks.some_rows(200), relu_net()
    maxima, means = (f(proto, rows, {"numeric": 1})["numeric"] for f in (channel_maxima, channel_means))
    assert maxima == pytest.approx(rows.inputs["numeric"].max(axis=0))
    assert means == pytest.approx(rows.inputs["numeric"].mean(axis=0), rel=1e-5)


def test_memory_does_not_grow_with_the_rows():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    peaks = [int(kb) for _, kb in re.findall(r"(\d+) (\d+)", done.stdout)]
    assert len(peaks) == 4
    # 5000 of these rows are 553 MB; what is left is what the allocator keeps of its batches
    assert peaks[-1] - peaks[1] < 40_000, f"{peaks} kB"
