"""Differential privacy: what noise there is, what it costs, and which plans cannot have it."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeml.artifacts import Task
from edgeml.errors import UserError
from edgeml.federated import (
    STRATEGIES,
    Believe,
    Candidate,
    CohortOptions,
    Federation,
    Masks,
    Plan,
    Privacy,
    SecureRound,
    Update,
)
from edgeml.federated.accountant import epsilon
from edgeml.federated.combinations import EXCLUSIONS, check_plan, table
from edgeml.federated.privacy import Ledger, adapted, drawn, noised_mean
from edgeml.federated.results import abandoned
from edgeml_runtime.wire import gaussian

SERVER, DEVICE = Privacy(where="server", noise=2.0), Privacy(where="device", noise=2.0)
A_TASK = Task("training", b"", "", parameters={}, scalars=())
START = {"w": np.zeros(4, np.float32), "b": np.zeros((), np.float32)}


def a_plan(**changes: Any) -> Plan:
    return Plan(**{"rounds": 4, "min_devices": 2, "max_abandoned": 2, **changes})


def a_federation(**changes: Any) -> Federation:
    return Federation("run", a_plan(**changes), model="m", parameters=START)


def an_update(device: str, size: float = 1.0) -> Update:
    delta = {name: np.full(value.shape, size, np.float32) for name, value in START.items()}
    return Update(device, 30, delta, {"loss.after": 0.5, "loss.before": 1.0}, size=100)


def a_round(f: Federation, *, answers: str = "ab", cohort: str = "ab", now: float = 0.0) -> None:
    r = f.begin(dict.fromkeys(cohort, 50), now=now)
    assert r is not None, f.passed_over
    for device in answers:
        r.receive(device, an_update(device), now + 1)
    f.conclude(now + 60)


def of_gaussians(sigma: float, delta: float) -> float:
    """The epsilon of one Gaussian of sensitivity 1, by bisection of its privacy profile (arXiv 1805.06530, 6)."""

    def spent(eps: float) -> float:
        def phi(x: float) -> float:
            return 0.5 * math.erfc(-x / math.sqrt(2))

        return phi(0.5 / sigma - eps * sigma) - math.exp(eps) * phi(-0.5 / sigma - eps * sigma)

    low, high = 0.0, 200.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) > delta else (low, middle)
    return high


@pytest.mark.parametrize(("noise", "rounds"), [(1.0, 1), (1.0, 5), (2.0, 100), (0.5, 3)])
def test_epsilon_without_sampling_is_that_of_the_gaussian_mechanism(noise: float, rounds: int) -> None:
    expected = of_gaussians(noise / math.sqrt(rounds), 1e-5)
    assert epsilon(noise, rounds, sampling=1.0, delta=1e-5) == pytest.approx(expected, rel=1e-6)


def test_epsilon_with_sampling_is_the_published_figure() -> None:
    """q = .01, sigma = 1, T = 1000: 2.1 by Renyi divergences (arXiv 1607.00133), 1.83 by loss distributions."""
    assert epsilon(1.0, 1000, sampling=0.01, delta=1e-5) == pytest.approx(1.828, abs=2e-3)
    assert epsilon(1.0, 100, sampling=0.1, delta=1e-5) == pytest.approx(7.047, abs=5e-3)
    assert epsilon(0.15, 2, sampling=0.5, delta=1e-5) < epsilon(0.15, 2, sampling=1.0, delta=1e-5) * 1.05


def test_the_server_pays_for_closed_rounds_and_the_device_for_all_it_was_asked() -> None:
    empty = Ledger()
    assert empty.epsilon(SERVER) == empty.epsilon(DEVICE) == 0.0 and empty.epsilon(Privacy()) is None
    one = empty.after("ab", closed=True)
    more = one.after("bc", closed=False).after("b", closed=False)
    assert more.epsilon(SERVER) == one.epsilon(SERVER) == pytest.approx(of_gaussians(2.0, 1e-5), rel=1e-6)
    assert more.epsilon(DEVICE) == pytest.approx(of_gaussians(1.0 / math.sqrt(3), 1e-5), rel=1e-6), "b, three times"


def test_each_round_says_what_has_been_spent() -> None:
    f = a_federation(privacy=SERVER)
    a_round(f)
    a_round(f, answers="a", now=100.0)
    a_round(f, now=200.0)
    first, abandoned, second = (result.epsilon for result in f.history)
    assert first == abandoned == pytest.approx(of_gaussians(2.0, 1e-5))
    assert second == pytest.approx(of_gaussians(2.0 / math.sqrt(2), 1e-5))
    assert f.history[0].loss is None, "a mean of losses has no noise"
    device = a_federation(privacy=DEVICE)
    a_round(device, answers="a")
    assert device.history[0].epsilon == pytest.approx(of_gaussians(1.0, 1e-5)), "a's update was sent all the same"


def test_a_budget_ends_the_rounds_before_it_is_passed() -> None:
    budget = of_gaussians(2.0 / math.sqrt(3), 1e-5) + 0.01
    f = a_federation(privacy=dataclasses.replace(SERVER, max_epsilon=budget), rounds=9)
    for number in range(3):
        a_round(f, now=100.0 * number)
    assert f.finished and f.closed == 3 and f.begin({"a": 50, "b": 50}, now=999.0) is None
    spent = f.history[-1].epsilon
    assert spent is not None and spent <= budget


def test_a_device_that_has_given_enough_is_not_asked_again() -> None:
    budget = of_gaussians(1.0, 1e-5) + 0.01
    f = a_federation(privacy=dataclasses.replace(DEVICE, max_epsilon=budget))
    a_round(f)
    r = f.begin(dict.fromkeys("abcd", 50), now=100.0)
    assert r is not None and r.cohort == {"c", "d"}
    assert "max_epsilon" in f.passed_over["a"]


def test_the_mean_is_of_clipped_updates_and_has_the_promised_noise() -> None:
    big = {"w": np.full(200_000, 1.0), "b": np.zeros(1)}
    small = {"w": np.zeros(200_000), "b": np.full(1, 0.5)}
    privacy = Privacy(where="server", clip_norm=2.0, noise=0.25)
    mean = noised_mean([big, small], privacy)
    expected = gaussian.clip(big, 2.0)["w"][0] / 2
    noise = mean["w"] - expected
    assert noise.std() == pytest.approx(0.25 * 2.0 / 2, rel=0.01)
    assert abs(noise.mean()) < 4 * 0.25 / math.sqrt(200_000)


def test_one_device_moves_the_sum_by_no_more_than_the_clip_norm() -> None:
    rng = np.random.default_rng(0)
    updates = [{"w": rng.normal(0, 10.0**k, 50)} for k in range(-3, 4)]
    for update in updates:
        assert gaussian.norm(gaussian.clip(update, 0.7)) <= 0.7


def test_with_hardly_any_noise_it_is_the_plain_mean() -> None:
    f = a_federation(privacy=Privacy(where="server", clip_norm=100.0, noise=1e-9))
    a_round(f)
    np.testing.assert_allclose(f.parameters["w"], 1.0, atol=2e-3)


def test_offers_ask_for_what_the_plan_says() -> None:
    assert (SERVER.clip_norm, SERVER.noise) == (1.0, 2.0)
    for privacy, expected in ((Privacy(), (0.0, 0.0)), (SERVER, (1.0, 0.0)), (DEVICE, (1.0, 2.0))):
        f = a_federation(privacy=privacy)
        f.begin({"a": 50, "b": 50}, now=0.0)
        from_plan = f.offer(A_TASK)[0]
        assert (from_plan.clip_norm, from_plan.noise) == expected


def test_a_minimum_cohort_is_the_quorum() -> None:
    f = a_federation(privacy=dataclasses.replace(SERVER, min_cohort=3))
    assert f.begin({"a": 50, "b": 50}, now=0.0) is None
    r = f.begin({"a": 50, "b": 50, "c": 50}, now=0.0)
    assert r is not None and r.quorum == 3


def test_chance_decides_who_takes_part_and_too_few_are_an_abandoned_round() -> None:
    sizes = [len(drawn(map(str, range(100)), 0.3)) for _ in range(200)]
    assert 25 < np.mean(sizes) < 35 and np.std(sizes) > 2
    f = a_federation(privacy=dataclasses.replace(SERVER, sampling=1e-9))
    assert f.begin({"a": 50, "b": 50}, now=0.0) is None
    assert [(r.state, r.asked) for r in f.history] == [("abandoned", ())] and "raise sampling" in f.history[0].why
    assert f.history[0].epsilon == 0.0


def test_an_adaptive_clip_norm_finds_the_quantile_of_the_lengths() -> None:
    """A hundred devices whose updates are .1 to 10 long: the norm settles near the median, from far off."""
    rng = np.random.default_rng(0)
    updates = [{"w": np.array([length])} for length in rng.uniform(0.1, 10, 100)]
    privacy = Privacy(where="server", clip_norm=0.1, noise=1.0, adapt=0.3)
    for _ in range(60):
        _, following = adapted(updates, privacy)
        privacy = dataclasses.replace(privacy, clip_norm=following)
    lengths = sorted(gaussian.norm(update) for update in updates)
    assert lengths[25] < privacy.clip_norm < lengths[75]


def test_what_the_count_tells_is_paid_for_by_more_noise() -> None:
    """Two Gaussians, of the sum and of the count with sensitivity 1/2, are one of `noise`: 1/z^2 = 1/s^2 + 1/(2b)^2."""
    for count in (1, 30, 1000):
        more, _ = adapted([{"w": np.ones(1)}] * count, Privacy(where="server", noise=1.5, adapt=0.2))
        sigma = max(count / 20, 1.5)
        assert more.noise**-2 + (2 * sigma) ** -2 == pytest.approx(1.5**-2)


def test_an_adaptive_clip_norm_is_remembered_from_round_to_round() -> None:
    f = a_federation(privacy=Privacy(where="server", clip_norm=100.0, noise=0.1, adapt=1.0))
    f.begin({"a": 50, "b": 50}, now=0.0)
    assert f.offer(A_TASK)[0].clip_norm == 0.0, "the server must see how long updates are"
    for device in "ab":
        assert f.round is not None
        f.round.receive(device, an_update(device), 1.0)
    f.conclude(1.0)
    assert f.clip_norm == f.history[0].next_clip < 80 and f.closed == 1
    assert math.isfinite(f.parameters["w"][0])


BROKEN = [{"clip_norm": 0.0}, {"noise": 0.0}, {"delta": 1.0}, {"sampling": 0.0}, {"min_cohort": 0}, {"noise": math.inf}]


@pytest.mark.parametrize("change", BROKEN)
def test_numbers_without_sense_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        Privacy(where="server", **change)


def test_without_dp_accounting_a_private_federation_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['dp_accounting'] = None\n"
        "import numpy as np\n"
        "from edgeml.federated import Federation, Plan, Privacy\n"
        "Federation('r', Plan(), model='m', parameters={})\n"
        "try: Federation('r', Plan(privacy=Privacy(where='server')), model='m', parameters={})\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("MissingExtra") and "edgeml[privacy]" in done.stdout


# --- with masks

CLASHING: dict[tuple[str, str], dict[str, Any]] = {
    ("secure aggregation", "strategies"): {"secure": Masks(), "strategy": "trimmed_mean", "min_devices": 5},
    ("secure aggregation", "compression"): {"secure": Masks(), "compress": "topk:0.05"},
    ("secure aggregation", "believe"): {"secure": Masks(), "believe": Believe(clip_norm=1.0)},
    ("secure aggregation", "rounds"): {"secure": Masks(), "cohort": CohortOptions(target=3)},
    ("secure aggregation", "more"): {"secure": Masks(), "min_devices": 300},
    ("noise on the server", "strategies"): {"privacy": SERVER, "strategy": "fednova"},
    ("noise on a device", "robust"): {"privacy": DEVICE, "strategy": "krum"},
    ("differential privacy", "qfedavg"): {"privacy": DEVICE, "strategy": "qfedavg"},
    ("differential privacy", "control"): {"privacy": SERVER, "strategy": "scaffold"},
    ("differential privacy", "believe"): {"privacy": SERVER, "believe": Believe(clip_norm=1.0)},
    ("noise on a device", "top-k"): {"privacy": DEVICE, "compress": "sign"},
    ("an adaptive clip norm", "secure"): {"privacy": dataclasses.replace(SERVER, adapt=0.2), "secure": Masks()},
    ("sampling below 1", "no"): {"privacy": Privacy(sampling=0.5)},
    ("asynchronous rounds", "strategies"): {"mode": "async", "strategy": "scaffold"},
    ("asynchronous rounds", "secure"): {"mode": "async", "privacy": SERVER},
    ("asynchronous rounds", "rounds"): {"mode": "async", "cohort": CohortOptions(target=3)},
}


def test_every_exclusion_has_an_example() -> None:
    assert len(EXCLUSIONS) == len(CLASHING)
    for (one, other), plan in CLASHING.items():
        rows = [row for row in EXCLUSIONS if row.one == one and row.other.startswith(other)]
        assert len(rows) == 1, (one, other)
        with pytest.raises(UserError, match=f"{one} and {other}.* exclude each other: .*; use "):
            Federation("run", a_plan(**plan), model="m", parameters=START)
        assert rows[0].clash(a_plan(**plan))


GOOD = [
    {},
    {"compress": "topk:0.05", "privacy": SERVER},
    {"secure": Masks(), "privacy": SERVER},
    {"secure": Masks(bits=64), "privacy": DEVICE, "strategy": "fedadam"},
    {"privacy": dataclasses.replace(SERVER, sampling=0.3), "strategy": "fedprox"},
    {"strategy": "krum", "min_devices": 5, "compress": "int8"},
]


@pytest.mark.parametrize("plan", GOOD)
def test_what_goes_together_is_let_through(plan: dict[str, Any]) -> None:
    check_plan(a_plan(**plan))


def test_the_page_has_the_table() -> None:
    page = Path(__file__).parents[2] / "docs/learn.md"
    assert table() in page.read_text(encoding="utf-8"), "python -m edgeml.federated.combinations prints it"


def test_the_table_names_every_strategy_that_masks_exclude() -> None:
    assert all(name in table() for name, row in STRATEGIES.items() if "secure" in row.excludes)
    with pytest.raises(UserError, match="topk:FRACTION"):
        check_plan(a_plan(compress="topk"))


def test_devices_without_a_key_are_passed_over_when_sums_are_masked() -> None:
    f = a_federation(secure=Masks())
    known = [Candidate(device=name, rows=50, key=key) for name, key in (("a", "11" * 32), ("b", "22" * 32), ("c", ""))]
    r = f.begin(known, now=0.0)
    assert isinstance(r, SecureRound) and r.cohort == {"a", "b"} and "no key" in f.passed_over["c"]
    assert r.asked.rows == 50 and r.asked.threshold == 2
    f.history.append(dataclasses.replace(abandoned("run-1", "spoilt"), culprit="b"))
    f.round = None
    assert f.begin(known, now=9.0) is None and "did not open in round run-1" in f.passed_over["b"]
