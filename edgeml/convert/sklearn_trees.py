"""skl2onnx's tree converters with three cures, each for answers that would be wrong or not come at all.

    forest or histogram boosting -> TreeEnsemble node with plain attributes, exact thresholds, NaN on its own side

- Histogram boosting hands over booleans, which the onnx library refuses: made plain integers.
- Its thresholds are float64, between two float32 values: rounded down, so that no float32 row changes sides.
- Trees and forests that learned where NaN goes lose it: filled in from the trees themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from skl2onnx.common._registration import get_converter, register_converter

Converter = Callable[[Any, Any, Any], None]
CURED = tuple(
    f"Sklearn{family}{kind}"
    for family in ("HistGradientBoosting", "RandomForest", "ExtraTrees", "DecisionTree", "ExtraTree")
    for kind in ("Classifier", "Regressor")
)
PLAIN = {int, float, str, bytes}  # an attribute of these alone needs no repair


class Cured:
    """A skl2onnx container that repairs the attributes of tree nodes on their way in."""

    def __init__(self, container: Any, model: Any) -> None:
        self._container, self._model = container, model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def add_node(self, op_type: str, *given: Any, **attributes: Any) -> Any:
        if op_type.startswith("TreeEnsemble"):
            attributes = _repaired(attributes, self._model)
        return self._container.add_node(op_type, *given, **attributes)


def register() -> None:
    """Put the cured converters in place of skl2onnx's own."""
    for name in CURED:
        original = get_converter(name)
        register_converter(name, _cured(original), overwrite=True, options=original.get_allowed_options())


def _cured(converter: Converter) -> Converter:
    def convert(scope: Any, operator: Any, container: Any) -> None:
        converter(scope, operator, Cured(container, operator.raw_operator))

    return convert


def _repaired(attributes: Mapping[str, Any], model: Any) -> dict[str, Any]:
    repaired = {name: _plain(value) for name, value in attributes.items()}
    trees = [each.tree_ for each in _sklearn_trees(model)]
    if trees:
        missing = [bool(left) for one in trees for left in one.missing_go_to_left]
        repaired["nodes_missing_value_tracks_true"] = [int(left) for left in missing]
    else:
        nodes = np.concatenate([one.nodes for stage in model._predictors for one in stage])
        thresholds = np.where(nodes["is_leaf"], 0.0, nodes["num_threshold"])
        repaired["nodes_values"] = [float(value) for value in float32_below(thresholds)]
    assert len(repaired["nodes_missing_value_tracks_true"]) == len(repaired["nodes_values"])
    return repaired


def _sklearn_trees(model: Any) -> list[Any]:
    if hasattr(model, "tree_"):
        return [model]
    return list(getattr(model, "estimators_", []))


def float32_below(values: np.ndarray) -> np.ndarray:
    """Return the largest float32 not above each value: x <= value says the same for every float32 x."""
    narrow = values.astype(np.float32)
    return np.where(narrow > values, np.nextafter(narrow, np.float32(-np.inf)), narrow)


def _plain(value: Any) -> Any:
    """Return an attribute without numpy scalars and booleans."""
    if isinstance(value, list):
        return value if set(map(type, value)) <= PLAIN else [_plain(item) for item in value]
    if isinstance(value, bool | np.bool_):
        return int(value)
    return value.item() if isinstance(value, np.generic) else value
