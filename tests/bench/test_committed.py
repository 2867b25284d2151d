"""Figures that docs print and that need no machine: what is committed is what today's code gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import predict_published, predict_recipes

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks/results"


def committed(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def test_the_ranking_of_recipes_is_that_of_todays_fit() -> None:
    found = predict_recipes.summary(predict_recipes.rankings())
    stored = committed("predict_recipes")["agreement"]
    assert found.keys() == stored.keys()
    for core, figures in stored.items():
        assert found[core] == pytest.approx(figures, rel=1e-3, abs=1e-3), core


def test_the_errors_of_the_prior_are_those_of_todays_fit() -> None:
    found, stored = predict_published.everything(), committed("predict_published")
    assert found["summary"] == pytest.approx(stored["summary"], rel=1e-3)
    errors = [[one["roofline_mape"] for one in document["networks_left_out"]] for document in (found, stored)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)
