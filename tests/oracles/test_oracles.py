"""Every gradient rule beside torch's float64 autograd and onnx-ad, operator by operator."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeml.autodiff import RULES
from tests.autodiff.cases import CASES
from tests.oracles.compare import Figures, compare

pytestmark = pytest.mark.oracles
FAR_64, FAR_32 = 1e-9, 2e-5  # relative: rounding of float64 and float32 through a few products
SILENT = {  # operators of which onnx-ad says nothing in some case, and what it says
    "Dropout": "",
}


@pytest.fixture(scope="session")
def figures(oracle_python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Figures]:
    return compare(oracle_python, tmp_path_factory.mktemp("cases"))


@pytest.mark.parametrize("op_type", sorted(CASES))
def test_every_rule_agrees_with_torch_in_64_and_in_32_bits(op_type: str, figures: dict[str, Figures]) -> None:
    found = figures[op_type]
    assert not found.torch_silent
    assert found.torch[32] < FAR_32 and found.torch.get(64, 0.0) < FAR_64, found.torch


@pytest.mark.parametrize("op_type", sorted(RULES))
def test_every_rule_agrees_with_onnx_ad_where_that_has_one(op_type: str, figures: dict[str, Figures]) -> None:
    found = figures[op_type]
    assert len(found.onnx_ad_silent) < len(CASES[op_type]) or op_type in SILENT, found.onnx_ad_silent
    assert found.onnx_ad is None or found.onnx_ad < FAR_32
