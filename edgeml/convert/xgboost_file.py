"""XGBoost's JSON and UBJSON models (doc/model.schema in its repository).

A row goes left when its float32 value is below the threshold. The base score is kept in the units of the answer and
taken through the inverse of the link.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeml.convert.booster_trees import Boosted, Link, Tree
from edgeml.errors import UnsupportedModel

LINKS: dict[str, Link] = {
    **dict.fromkeys(("reg:squarederror", "reg:absoluteerror", "reg:pseudohubererror", "reg:quantileerror"), "identity"),
    **dict.fromkeys(("rank:pairwise", "rank:ndcg", "rank:map", "binary:logitraw", "reg:squaredlogerror"), "identity"),
    **dict.fromkeys(("count:poisson", "reg:gamma", "reg:tweedie"), "exp"),
    **dict.fromkeys(("binary:logistic", "reg:logistic"), "sigmoid"),
    **dict.fromkeys(("multi:softprob", "multi:softmax"), "softmax"),
}
NUMBERS = {b"i": ">b", b"U": ">B", b"I": ">h", b"l": ">i", b"L": ">q", b"d": ">f", b"D": ">d"}
PLAIN = {b"Z": None, b"T": True, b"F": False}


def parse_xgboost(data: bytes) -> Boosted:
    """Return the model in `data`, JSON or UBJSON; raise UnsupportedModel for what no tree ensemble can say."""
    learner = (_Ubjson(data).value() if data[1:2] in (b"L", b"l", b"I", b"i", b"U") else json.loads(data))["learner"]
    booster, name = learner["gradient_booster"], learner["objective"]["name"]
    if name not in LINKS:
        raise UnsupportedModel(f"XGBoost objective {name!r}: there is {', '.join(LINKS)}")
    if booster["name"] == "gblinear":
        raise UnsupportedModel("XGBoost booster=gblinear is a linear model: scikit-learn's linear models convert")
    weights = booster.get("weight_drop")
    model = (booster["gbtree"] if booster["name"] == "dart" else booster)["model"]
    facts = learner["learner_model_param"]
    outputs = max(int(facts.get("num_class", 0)), int(facts.get("num_target", 1)), 1)
    trees = [
        _tree(tree, output=int(output), weight=1.0 if weights is None else float(weights[index]))
        for index, (tree, output) in enumerate(zip(model["trees"], model["tree_info"], strict=True))
    ]
    link = LINKS[name]
    classes = {"softmax": outputs, "sigmoid": 2 if name.startswith("binary") else 0}.get(link, 0)
    base = _base(facts["base_score"], outputs, link)
    return Boosted("XGBoost", tuple(trees), int(facts["num_feature"]), base, link, classes)


def _base(written: Any, outputs: int, link: Link) -> np.ndarray:
    values = np.array(json.loads(written) if isinstance(written, str) else written, dtype=np.float64).ravel()
    if link == "sigmoid":
        values = np.log(values / (1 - values))
    elif link == "exp":
        values = np.log(values)
    return np.broadcast_to(values, (outputs,)).copy()


def _tree(tree: Mapping[str, Any], *, output: int, weight: float) -> Tree:
    if any(tree.get("split_type", [])) or len(tree.get("categories", [])):
        raise UnsupportedModel("XGBoost splits on native categories: one-hot encode them before training")
    if int(tree["tree_param"].get("size_leaf_vector", 1)) > 1:
        raise UnsupportedModel("XGBoost multi_strategy=multi_output_tree: use one_output_per_tree")
    left, right = (np.array(tree[name], dtype=np.int64) for name in ("left_children", "right_children"))
    condition = np.array(tree["split_conditions"], dtype=np.float32)
    leaf = left < 0
    return Tree(
        np.array(tree["split_indices"], dtype=np.int64),
        condition,
        left,
        right,
        np.array(tree["default_left"], dtype=bool),
        leaf,
        np.where(leaf, condition.astype(np.float64) * weight, 0.0),
        output,
        "BRANCH_LT",
    )


class _Ubjson:
    """A reader of the UBJSON draft 12 as XGBoost writes it; arrays of one type become numpy arrays."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def value(self) -> Any:
        return self._of(self._take(1))

    def _take(self, count: int) -> bytes:
        piece = self._data[self._at : self._at + count]
        if len(piece) < count:
            raise ValueError(f"ends at byte {len(self._data):,}")
        self._at += count
        return piece

    def _of(self, marker: bytes) -> Any:
        if marker in NUMBERS:
            return struct.unpack(NUMBERS[marker], self._take(struct.calcsize(NUMBERS[marker])))[0]
        if marker in PLAIN:
            return PLAIN[marker]
        if marker in (b"S", b"C"):
            return self._take(self.value() if marker == b"S" else 1).decode()
        if marker == b"[":
            return self._array()
        if marker == b"{":
            return self._object()
        raise ValueError(f"unknown marker {marker!r} at byte {self._at:,}")

    def _header(self) -> tuple[bytes | None, int | None]:
        kind = self._take(2)[1:] if self._data[self._at : self._at + 1] == b"$" else None
        if self._data[self._at : self._at + 1] != b"#":
            return kind, None
        self._take(1)
        return kind, int(self.value())

    def _array(self) -> Any:
        kind, count = self._header()
        if kind in NUMBERS and count is not None:
            code = np.dtype(NUMBERS[kind])
            return np.frombuffer(self._take(count * code.itemsize), dtype=code)
        if count is not None:
            return [self._of(kind) if kind else self.value() for _ in range(count)]
        found = []
        while (marker := self._take(1)) != b"]":
            found.append(self._of(marker))
        return found

    def _object(self) -> dict[str, Any]:
        _, count = self._header()
        found: dict[str, Any] = {}
        while count is None or len(found) < count:
            if count is None and self._data[self._at : self._at + 1] == b"}":
                self._take(1)
                break
            name = self._take(int(self.value())).decode()
            found[name] = self.value()
        return found
