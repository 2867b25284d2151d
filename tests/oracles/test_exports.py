"""Whole exported networks of torch: the gradients of their inputs are torch's own, through every operator they hold."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest

from edgeml.errors import UnsupportedModel
from tests.oracles.compare import FAR
from tests.oracles.exports import error_of, gradient_of, operators, torch_exports

pytestmark = pytest.mark.oracles
LEAST = 200  # exports that torch 2.13 can write, of both exporters
REFUSED = {  # by us, and what is in the way
    "dynamo.smoothed_cross_entropy": "torch's fault",
    "script.put": "torch's fault",
}


@pytest.fixture(scope="module")
def exports(oracle_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    torch_exports(oracle_python, folder)
    return folder


def test_every_export_of_torch_has_the_gradients_of_torch(exports: Path) -> None:
    errors, refused = {}, {}
    for path in sorted(exports.glob("*.onnx")):
        try:
            errors[path.stem] = error_of(path)
        except UnsupportedModel as error:
            refused[path.stem] = str(error)
    assert refused.keys() == REFUSED.keys(), refused
    assert all(REFUSED[name] in why for name, why in refused.items())
    assert len(errors) > LEAST
    assert {name: error for name, error in errors.items() if error > FAR} == {}


def test_no_operator_of_an_export_lacks_a_rule_but_the_known(exports: Path) -> None:

    held: Counter[str] = Counter()
    for path in exports.glob("*.onnx"):
        held.update(operators(onnx.load(path)))
    assert {name for name in held if gradient_of(name) == "missing"} == {"Range"}
