"""The server's own optimizers: their first steps by hand, what they have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml.errors import UserError
from edgeml.federated import STEPS, Memory, ServerStep, take

every_step = pytest.mark.parametrize("kind", sorted(STEPS))
CHANGE = {"w": np.array([0.5, -1.0, 0.0], np.float32)}


def follow(step: ServerStep, rounds: int) -> list[np.ndarray]:
    memory, moved = Memory(), []
    for _ in range(rounds):
        delta, memory = take(step, CHANGE, memory)
        moved.append(delta["w"])
    return moved


@every_step
def test_every_step_goes_the_way_of_the_change(kind: str) -> None:
    for moved in follow(ServerStep(kind=kind), 5):
        assert moved.dtype == np.float32 and np.array_equal(np.sign(moved), np.sign(CHANGE["w"]))


@every_step
@given(rate=st.floats(0.01, 10))
def test_a_step_grows_with_its_rate(kind: str, rate: float) -> None:
    one, other = follow(ServerStep(kind=kind), 3), follow(ServerStep(kind=kind, rate=rate), 3)
    np.testing.assert_allclose(np.stack(other), rate * np.stack(one), rtol=1e-4)


def test_the_first_two_rounds_by_hand() -> None:
    d, tau = 0.5, 1e-3
    assert follow(ServerStep(), 2)[1][0] == d
    assert follow(ServerStep(kind="momentum", beta1=0.9), 2)[1][0] == pytest.approx(0.9 * d + d)
    second: dict[str, float] = {
        "adagrad": tau**2 + 2 * d**2,
        "adam": 0.99 * (0.99 * tau**2 + 0.01 * d**2) + 0.01 * d**2,
    }
    first = tau**2 + 0.01 * d**2
    second["yogi"] = first + 0.01 * d**2
    for kind, v in second.items():
        m = 0.9 * (0.1 * d) + 0.1 * d
        assert follow(ServerStep(kind=kind), 2)[1][0] == pytest.approx(m / (np.sqrt(v) + tau), rel=1e-5), kind


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "lamb"}, "unknown server step 'lamb'; known: add"),
        ({"rate": 0.0}, "rate 0.0"),
        ({"beta2": 1.0}, "beta2 1.0"),
    ],
)
def test_numbers_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ServerStep(**options)
