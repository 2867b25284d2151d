"""Every aggregation rule: weights, order, outliers of bookkeeping."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml.errors import UserError
from edgeml.federated import AGGREGATORS, Update, aggregate, apply_delta

every_rule = pytest.mark.parametrize("rule", sorted(AGGREGATORS))


def updates(n: int, *, seed: int = 0) -> list[Update]:
    rng = np.random.default_rng(seed)
    return [
        Update(f"pi-{i}", int(rng.integers(1, 1000)), {"w": rng.normal(size=(3, 2)).astype(np.float32)})
        for i in range(n)
    ]


@every_rule
@given(seed=st.integers(0, 1000), n=st.integers(1, 9))
def test_the_order_of_arrival_does_not_matter(rule: str, seed: int, n: int) -> None:
    some = updates(n, seed=seed)
    shuffled = [some[i] for i in np.random.default_rng(seed).permutation(n)]
    first, second = aggregate(some, rule=rule)["w"], aggregate(shuffled, rule=rule)["w"]
    assert first.dtype == np.float32 and np.array_equal(first, second)


@every_rule
def test_devices_that_agree_are_believed(rule: str) -> None:
    delta = {"w": np.array([0.1, -2.5], np.float32), "b": np.array(3.0, np.float32)}
    agreed = aggregate([Update(f"pi-{i}", i + 1, delta) for i in range(7)], rule=rule)
    assert agreed["b"].shape == () and all(np.array_equal(agreed[name], delta[name]) for name in delta)


@every_rule
@given(seed=st.integers(0, 1000))
def test_the_result_lies_between_what_the_devices_say(rule: str, seed: int) -> None:
    some = updates(5, seed=seed)
    all_of_them = np.stack([update.delta["w"] for update in some])
    result = aggregate(some, rule=rule)["w"]
    assert np.all(result <= all_of_them.max(0) + 1e-6) and np.all(result >= all_of_them.min(0) - 1e-6)


def test_fedavg_weighs_by_rows_and_sums_in_double_precision() -> None:
    one, many = np.array([1.0], np.float32), np.array([3.0], np.float32)
    assert aggregate([Update("a", 1, {"w": one}), Update("b", 3, {"w": many})])["w"] == pytest.approx(2.5)
    tiny = [Update(f"pi-{i:04}", 1, {"w": np.array([1e-3], np.float32)}) for i in range(5000)]
    huge = [Update("0", 1, {"w": np.array([1e5], np.float32)}), Update("1", 1, {"w": np.array([-1e5], np.float32)})]
    assert aggregate(huge + tiny)["w"][0] == pytest.approx(5.0 / 5002, rel=1e-6)


def test_nothing_to_aggregate_is_refused() -> None:
    with pytest.raises(UserError, match="0 updates"):
        aggregate([])
    with pytest.raises(UserError, match="pi-9 has 0 rows"):
        aggregate([Update("pi-9", 0, {})])
    with pytest.raises(UserError, match="'median'; known: fedavg"):
        aggregate(updates(2), rule="median")


def test_a_change_is_added_in_float32() -> None:
    new = apply_delta({"w": np.ones(2, np.float32)}, {"w": np.array([0.5, -1], np.float32)})
    assert new["w"].dtype == np.float32 and new["w"].tolist() == [1.5, 0.0]
