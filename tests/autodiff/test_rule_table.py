"""The table of rules in docs/autodiff.md is what the rules are and what the oracles measured."""

from __future__ import annotations

import json

import pytest

from edgeml.autodiff import RULES
from edgeml.autodiff.backward import FLAT
from tests.autodiff.cases import CASES
from tests.oracles.compare import RESULT
from tests.oracles.table import BEGIN, END, PAGE, table

MEASURED = json.loads(RESULT.read_text(encoding="utf-8"))["operators"]


def test_the_table_is_generated() -> None:
    written = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    assert written == table(), "run `python -m tests.oracles.table`"


def test_every_rule_was_measured_with_every_case_that_it_has() -> None:
    assert MEASURED.keys() == RULES.keys()
    assert {name: row["cases"] for name, row in MEASURED.items()} == {name: len(c) for name, c in CASES.items()}


@pytest.mark.parametrize("name", sorted(MEASURED))
def test_what_was_measured_is_exact_to_rounding(name: str) -> None:
    row = MEASURED[name]
    assert row["torch_32"] < 5e-6
    assert row.get("torch_64", 0.0) < 1e-12
    assert (row["onnx_ad"] or 0.0) < 5e-6


def test_the_page_names_what_is_flat() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert all(f"{name}" in page for name in FLAT)
