"""Every aggregation rule: weights, order, outliers of bookkeeping."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml.errors import UserError
from edgeml.federated import AGGREGATORS, Believe, Federation, Plan, Update, aggregate, apply_delta, least_updates
from edgeml.federated.aggregate import norm

every_rule = pytest.mark.parametrize("rule", sorted(AGGREGATORS))
robust_rules = pytest.mark.parametrize("rule", sorted(AGGREGATORS.keys() - {"fedavg", "fednova", "qfedavg"}))
TRUST = Believe(byzantine=0, fairness=0.0)
TOLD = {"loss.before": 0.5}


def updates(n: int, *, seed: int = 0) -> list[Update]:
    rng = np.random.default_rng(seed)
    return [
        Update(f"pi-{i}", int(rng.integers(1, 1000)), {"w": rng.normal(size=(3, 2)).astype(np.float32)}, metrics=TOLD)
        for i in range(n)
    ]


@every_rule
@given(seed=st.integers(0, 1000), n=st.integers(3, 9))
def test_the_order_of_arrival_does_not_matter(rule: str, seed: int, n: int) -> None:
    some = updates(n, seed=seed)
    shuffled = [some[i] for i in np.random.default_rng(seed).permutation(n)]
    first, second = (aggregate(given_, rule=rule, believe=TRUST)["w"] for given_ in (some, shuffled))
    assert first.dtype == np.float32 and np.array_equal(first, second)


@every_rule
def test_devices_that_agree_are_believed(rule: str) -> None:
    delta = {"w": np.array([0.1, -2.5], np.float32), "b": np.array(3.0, np.float32)}
    same = [Update(f"pi-{i}", i + 1, delta, metrics=TOLD) for i in range(7)]
    agreed = aggregate(same, rule=rule, believe=Believe(fairness=0.0))
    assert agreed["b"].shape == () and all(np.array_equal(agreed[name], delta[name]) for name in delta)


@every_rule
@given(seed=st.integers(0, 1000))
def test_the_result_lies_between_what_the_devices_say(rule: str, seed: int) -> None:
    some = updates(5, seed=seed)
    all_of_them = np.stack([update.delta["w"] for update in some])
    result = aggregate(some, rule=rule, believe=TRUST)["w"]
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
    with pytest.raises(UserError, match="'mean'; known: fedavg"):
        aggregate(updates(2), rule="mean")


def test_a_change_is_added_in_float32() -> None:
    new = apply_delta({"w": np.ones(2, np.float32)}, {"w": np.array([0.5, -1], np.float32)})
    assert new["w"].dtype == np.float32 and new["w"].tolist() == [1.5, 0.0]


@robust_rules
@pytest.mark.parametrize("attack", ["huge", "flipped", "noise", "equal"])
def test_a_robust_rule_holds_against_as_many_liars_as_it_says(rule: str, attack: str) -> None:
    """Twelve of fifteen devices agree up to noise of 0.1; what comes out stays within it of what they mean."""
    rng = np.random.default_rng(3)
    truth = rng.normal(size=40).astype(np.float32)
    lies = {"huge": 1e6, "flipped": -10.0, "noise": 100.0, "equal": 5.0}[attack]
    sent = [truth + 0.1 * rng.normal(size=40).astype(np.float32) for _ in range(12)]
    for _ in range(3):
        noise = rng.normal(size=40).astype(np.float32)
        sent.append(
            np.asarray(lies * (noise if attack == "noise" else np.ones(40) if attack == "equal" else truth), np.float32)
        )
    some = [Update(f"pi-{i:02}", 50, {"w": value}) for i, value in enumerate(sent)]
    held = aggregate(some, rule=rule, believe=Believe(byzantine=3))["w"]
    assert np.abs(held - truth).max() < 0.4
    fooled = aggregate(some)["w"]
    assert np.abs(fooled - truth).max() > 0.5 or attack == "noise"


@robust_rules
def test_too_few_updates_for_a_rule_are_refused_with_the_numbers(rule: str) -> None:
    least = least_updates(rule, Believe(byzantine=2))
    if least > 1:
        with pytest.raises(
            UserError, match=rf"{rule} against 2 byzantine devices needs {least} updates and has {least - 1}"
        ):
            aggregate(updates(least - 1), rule=rule, believe=Believe(byzantine=2))
        plan = Plan(min_devices=least - 1, strategy=rule, believe=Believe(byzantine=2))
        with pytest.raises(UserError, match=f"min_devices {least - 1}.*raise min_devices"):
            Federation("digits-1", plan, model="digits", parameters={"w": np.zeros(2, np.float32)})
    assert aggregate(updates(least), rule=rule, believe=Believe(byzantine=2))["w"].shape == (3, 2)


@given(seed=st.integers(0, 1000), most=st.floats(0.01, 100))
def test_no_change_is_longer_than_the_clip(seed: int, most: float) -> None:
    one = updates(1, seed=seed)
    clipped = aggregate(one, believe=Believe(clip_norm=most))
    assert norm(clipped) <= most * (1 + 1e-5)
    if norm(one[0].delta) <= most:
        assert np.array_equal(clipped["w"], one[0].delta["w"])


def test_fednova_takes_the_number_of_steps_out() -> None:
    """Two devices that go the same way per step, one ten times as often: the mean way, times the mean steps."""
    way = np.array([1.0, -2.0], np.float32)
    some = [Update("a", 10, {"w": way}, steps=1), Update("b", 30, {"w": 10 * way}, steps=10)]
    np.testing.assert_allclose(aggregate(some, rule="fednova")["w"], way * (0.25 * 1 + 0.75 * 10), rtol=1e-6)
    apart = [Update("a", 10, {"w": way}, steps=1), Update("b", 10, {"w": -10 * way}, steps=10)]
    np.testing.assert_allclose(aggregate(apart, rule="fednova")["w"], 0.0, atol=1e-6)
    assert np.abs(aggregate(apart)["w"]).min() > 1


def test_qfedavg_listens_to_the_device_with_the_larger_loss() -> None:
    way = np.array([1.0], np.float32)
    pulled = [
        Update("a", 10, {"w": way}, metrics={"loss.before": 4.0}),
        Update("b", 10, {"w": -way}, metrics={"loss.before": 1.0}),
    ]
    assert aggregate(pulled, rule="qfedavg", believe=Believe(fairness=2.0, rate=1.0))["w"][0] > 0
    assert aggregate(pulled, rule="qfedavg", believe=Believe(fairness=0.0))["w"][0] == 0
    deaf = [*pulled, Update("c", 10, {"w": 100 * way}, metrics={"loss.before": float("nan")})]
    assert abs(aggregate(deaf, rule="qfedavg", believe=Believe(fairness=0.0))["w"][0]) == 0
