"""What leaves a device: clipping, noise, feedback on the disk, and the owner's say in it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml_runtime import outgoing
from edgeml_runtime.config import Policy
from edgeml_runtime.feedback import Feedback
from edgeml_runtime.outgoing import Terms
from edgeml_runtime.wire import compress, gaussian, tensors
from edgeml_runtime.wire.messages import Secure, TaskOffer

SECURE = Secure(keys={}, threshold=2, bound=1.0)
SUMS = Secure(keys={}, threshold=2, bound=1.0, bits=64, ranges={"loss": 2.0**54})


def an_offer(**changes: Any) -> TaskOffer:
    fields: dict[str, Any] = {
        "round": "run-1",
        "kind": "training",
        "model": "m",
        "cohort": ("a",),
        "graph": "0" * 64,
        "graph_bytes": 1,
        "parameters": "0" * 64,
        "parameters_bytes": 1,
        "scalars": {},
        "min_rows": 1,
        "max_update_bytes": 1 << 20,
        "deadline_s": 10.0,
    }
    return TaskOffer(**fields | changes)


def an_update(size: int = 20) -> dict[str, np.ndarray]:
    return {"w": np.linspace(-1, 1, size, dtype=np.float32), "b": np.ones((), np.float32)}


@settings(deadline=None)
@given(st.integers(0, 2**32), st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_a_clipped_update_is_never_longer_and_keeps_its_direction(seed: int, size: float, most: float) -> None:
    update = {"w": np.random.default_rng(seed).normal(0, size, 30), "b": np.array(size)}
    short = gaussian.clip(update, most)
    assert gaussian.norm(short) <= most
    expected = min(1.0, most / gaussian.norm(update))
    np.testing.assert_allclose(short["w"], update["w"] * expected, atol=gaussian.grid(most))


@given(st.floats(1e-300, 1e300))
def test_the_grid_is_a_power_of_two_far_below_the_norm(most: float) -> None:
    step = gaussian.grid(most)
    assert math.frexp(step)[0] == 0.5 and most / 2**17 < step <= most / 2**16


def test_noise_is_normal_and_not_of_any_seed() -> None:
    np.random.seed(0)
    first = gaussian.noise((300, 401), 2.5)
    np.random.seed(0)
    again = gaussian.noise((300, 401), 2.5)
    assert first.shape == (300, 401) and not np.any(first == again)
    z = np.sort(first.ravel() / 2.5)
    normal = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in z[::40]])
    worst = np.abs(normal - (np.arange(z.size)[::40] + 0.5) / z.size).max()  # Kolmogorov's distance
    assert worst < 2.2 / math.sqrt(z.size), "p < 1e-4"
    assert abs(np.corrcoef(first.ravel()[:60_000], first.ravel()[60_000:120_000])[0, 1]) < 0.02


def test_what_leaves_lies_on_the_grid_whatever_it_was_made_of() -> None:
    got = outgoing.bounded(an_update(), Terms(0.5, 0.5))
    steps = got["w"] / gaussian.grid(0.5)
    assert np.array_equal(steps, np.rint(steps))


POLICIES = [
    ({}, {}, Terms()),
    ({"clip_norm": 2.0}, {}, Terms(2.0)),
    ({"clip_norm": 2.0}, {"clip_norm": 1.0}, Terms(1.0)),
    ({"clip_norm": 1.0, "noise": 2.0}, {"clip_norm": 3.0, "noise": 0.5}, Terms(1.0, 2.0)),
    ({}, {"clip_norm": 3.0, "noise": 0.5}, Terms(3.0, 1.5)),
]


@pytest.mark.parametrize(("asked", "demanded", "terms"), POLICIES)
def test_the_stricter_of_offer_and_policy_counts(
    asked: dict[str, float], demanded: dict[str, float], terms: Terms
) -> None:
    assert outgoing.terms(an_offer(**asked), Policy(**demanded)) == terms  # type: ignore[arg-type]


OBJECTIONS = [
    ({"compress": "zip"}, {}, "topk:FRACTION"),
    ({"noise": 1.0}, {}, "noise without a clip_norm"),
    ({"clip_norm": math.nan}, {}, "numbers of at least 0"),
    ({"clip_norm": 1.0, "noise": -1.0}, {}, "numbers of at least 0"),
    ({}, {"secure": True}, "secure aggregation only"),
    ({"kind": "evaluation"}, {"noise": 1.0, "clip_norm": 1.0}, "the owner's policy asks for clipping"),
    ({"kind": "evaluation"}, {"secure": True}, "secure aggregation only"),
    ({"kind": "evaluation", "secure": SUMS}, {"secure": True}, ""),
    ({"kind": "evaluation", "secure": SUMS}, {"secure": True, "noise": 1.0, "clip_norm": 1.0}, "clipping, noise or"),
    ({"kind": "evaluation", "compress": "int8"}, {}, "the offer asks for clipping"),
    ({}, {}, ""),
    ({"secure": SECURE}, {"secure": True}, ""),
    ({"secure": SECURE, "compress": "int8"}, {}, "exclude each other"),
    ({"noise": 1.0}, {"clip_norm": 1.0}, ""),
]


@pytest.mark.parametrize(("asked", "demanded", "words"), OBJECTIONS)
def test_an_offer_that_asks_the_impossible_or_too_little_is_answered_with_the_reason(
    asked: dict[str, Any], demanded: dict[str, Any], words: str
) -> None:
    found = outgoing.objection(an_offer(**asked), Policy(**demanded))
    assert words in found and bool(words) == bool(found)


def test_losses_stay_here_when_updates_are_noised_or_hidden() -> None:
    losses = {"loss.before": 2.0}
    assert outgoing.told(losses, an_offer(), Terms(1.0)) == losses
    assert outgoing.told(losses, an_offer(), Terms(1.0, 0.5)) == {}
    assert outgoing.told(losses, an_offer(secure=SECURE), Terms()) == {}


def test_what_compression_lost_comes_with_the_next_round_also_after_a_restart(tmp_path: Path) -> None:
    shapes = {name: value.shape for name, value in an_update().items()}
    arrived = {name: np.zeros(shape) for name, shape in shapes.items()}
    for number in range(1, 9):
        body = outgoing.packed(an_update(), an_offer(round=f"run-{number}", compress="topk:0.1"), Feedback(tmp_path))
        for name, value in compress.decode(tensors.unpack(body), "topk:0.1", shapes).items():
            arrived[name] += value
    left = Feedback(tmp_path).before("run-9")
    for name, value in an_update().items():
        np.testing.assert_allclose(arrived[name] + left[name], 8 * value, atol=1e-5)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_round_trained_twice_sends_the_same_bytes_twice(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    outgoing.packed(an_update(), an_offer(compress="int8"), feedback)
    second = an_offer(round="run-2", compress="int8")
    assert outgoing.packed(an_update(), second, feedback) == outgoing.packed(an_update(), second, feedback)


def test_another_federation_starts_without_feedback_and_a_damaged_file_is_none(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path)
    assert feedback.before("run-1") == {}
    feedback.after("run-1", an_update())
    assert feedback.before("run-2").keys() == {"w", "b"} and feedback.before("other-2") == {}
    (tmp_path / "run-1.safetensors").write_bytes(b"torn")
    assert feedback.before("run-2") == {}
    feedback.after("other-1", an_update())
    assert [path.name for path in tmp_path.iterdir()] == ["other-1.safetensors"]
