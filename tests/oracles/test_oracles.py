"""Every gradient rule beside torch's float64 autograd and onnx-ad, operator by operator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeml.autodiff import RULES
from tests.autodiff.cases import CASES
from tests.oracles.compare import Figures, compare, worst

pytestmark = pytest.mark.oracles
FAR_64, FAR_32 = 1e-12, 5e-6  # relative: rounding of float64 and float32 through a few products
TORCH_SILENT = {"Resize": 1}  # its antialias is another one at the edges; finite differences have that case
ONNX_AD_SILENT = {"ConvTranspose", "Scan", "Slice"}  # it refuses every case, or onnxruntime its graph


@pytest.fixture(scope="session")
def figures(oracle_python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Figures]:
    return compare(oracle_python, tmp_path_factory.mktemp("cases"))


@pytest.mark.parametrize("op_type", sorted(RULES))
def test_every_rule_agrees_with_torch_in_64_and_in_32_bits(op_type: str, figures: dict[str, Figures]) -> None:
    found = figures[op_type]
    assert len(found.torch_silent) == TORCH_SILENT.get(op_type, 0), found.torch_silent
    assert found.torch[32] < FAR_32 and found.torch.get(64, 0.0) < FAR_64, found.torch


@pytest.mark.parametrize("op_type", sorted(RULES))
def test_every_rule_agrees_with_onnx_ad_where_that_agrees_with_torch(op_type: str, figures: dict[str, Figures]) -> None:
    found = figures[op_type]
    told = len(CASES[op_type]) - len(found.onnx_ad_silent) - len(found.onnx_ad_wrong)
    assert told > 0 or op_type in ONNX_AD_SILENT, (found.onnx_ad_silent, found.onnx_ad_wrong)
    assert found.onnx_ad is None or found.onnx_ad < FAR_32


def test_an_error_is_the_largest_difference_over_the_largest_element() -> None:
    oracle = {"x": np.array([1.0, -4.0])}
    assert worst({"x": np.array([1.0, -4.0])}, oracle) == 0
    assert worst({"x": np.array([1.5, -4.0])}, oracle) == 0.125
    assert worst({"x": np.array([1.0])}, oracle) == float("inf")
