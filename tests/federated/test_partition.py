"""Rows dealt to devices: every row once, as skewed as was asked for, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml.errors import UserError
from edgeml.federated.partition import PARTITIONS, is_column, partition, skew

LABELS = np.random.default_rng(0).integers(0, 10, 600)
SPECS = ("iid", "dirichlet:0.1", "dirichlet:100", "shards:1", "shards:2")


@pytest.mark.parametrize("spec", SPECS)
@given(devices=st.integers(1, 60), seed=st.integers(0, 5), rows=st.integers(120, 600))
@settings(deadline=None, max_examples=30)
def test_every_row_goes_to_one_device_and_no_device_is_empty(spec: str, devices: int, seed: int, rows: int) -> None:
    shares = partition(spec, LABELS[:rows], devices=devices, seed=seed)
    assert len(shares) == devices and all(len(share) for share in shares)
    assert np.array_equal(np.sort(np.concatenate(shares)), np.arange(rows))
    again = partition(spec, LABELS[:rows], devices=devices, seed=seed)
    assert all(np.array_equal(one, other) for one, other in zip(shares, again, strict=True))


def test_the_rules_differ_as_their_names_say() -> None:
    found = {spec: partition(spec, LABELS, devices=10, seed=1) for spec in SPECS}
    sizes = {spec: [len(share) for share in shares] for spec, shares in found.items()}
    assert set(sizes["iid"]) == {60} and max(sizes["dirichlet:0.1"]) > 2 * min(sizes["dirichlet:0.1"])
    apart = {spec: skew(LABELS, shares) for spec, shares in found.items()}
    assert apart["iid"] < 0.2 < apart["shards:2"] < apart["shards:1"]
    assert apart["dirichlet:100"] < 0.2 < apart["dirichlet:0.1"] <= 1
    assert all(len(np.unique(LABELS[share])) <= 3 for share in found["shards:1"])
    assert PARTITIONS.keys() == {spec.partition(":")[0] for spec in SPECS}


def test_rows_of_one_value_stay_together_and_groups_are_spread_evenly() -> None:
    groups = np.repeat(["a", "b", "c", "d"], [300, 200, 60, 40])
    shares = partition("user", LABELS, devices=3, groups=groups)
    assert [sorted(set(groups[share])) for share in shares] == [["a"], ["b"], ["c", "d"]]
    with pytest.raises(UserError, match="5 devices, and column 'user' has 4 values"):
        partition("user", LABELS, devices=5, groups=groups)
    assert is_column("user") and not is_column("dirichlet:0.5")


def test_numbers_to_predict_are_dealt_by_their_rank() -> None:
    target = np.random.default_rng(0).normal(size=(200, 1)).astype(np.float32)
    shares = partition("shards:1", target, devices=10)
    lows = sorted(float(target[share].min()) for share in shares)
    assert lows[-1] - lows[0] > 2 and all(np.ptp(target[share]) < 1.7 for share in shares)


@pytest.mark.parametrize(
    ("spec", "devices", "message"),
    [
        ("iid", 601, "601 devices and 600 rows"),
        ("iid", 0, "0 devices"),
        ("iid:3", 4, "write iid"),
        ("dirichlet", 4, "dirichlet:0.1"),
        ("dirichlet:0", 4, "above 0"),
        ("dirichlet:nan", 4, "above 0"),
        ("shards:1.5", 4, "a whole number"),
        ("shards:7", 100, "more than 600 rows"),
        ("city", 4, "unknown partition 'city'"),
    ],
)
def test_what_cannot_be_dealt_is_refused_with_the_numbers(spec: str, devices: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        partition(spec, LABELS, devices=devices)
