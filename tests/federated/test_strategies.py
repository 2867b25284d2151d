"""Every row of the table of strategies: what all have in common, and each against its paper, written in numpy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from edgeml.autodiff import SGD, training_step
from edgeml.errors import UserError
from edgeml.federated import STRATEGIES, Believe, Federation, Plan, Update, check_update, strategy
from edgeml.federated.journal import arrays_of, resume, state_of
from edgeml.federated.local import head, task_of
from edgeml.federated.strategy import table
from edgeml_runtime.session import Session
from tests.tasks.test_training_task import LAYERS, MEAN, SCALE, SCALER, WEIGHTS, a_model, loss_and_gradients
from tests.tasks.trajectory import trained

F32 = np.float32
EPOCHS, BATCH, RATE, SEED, ROUNDS, BYZANTINE = 2, 8, 0.1, 5, 3, 1
MODEL = a_model(
    [*SCALER, *LAYERS],
    constants={**WEIGHTS, "mean": MEAN, "scale": SCALE},
    inputs={"x": (TensorProto.FLOAT, 4)},
)
every_strategy = pytest.mark.parametrize("name", sorted(STRATEGIES))
Weights = dict[str, Any]


def some_devices(count: int = 8, *, alike: bool = False) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Devices of uneven size whose rows lie apart; of even size where they are `alike`."""
    found = {}
    for i in range(count):
        rng = np.random.default_rng(i)
        n = 24 if alike else 12 + 5 * i
        x = rng.normal(size=(n, 4)).astype(F32) + (0 if alike else 0.3 * (i - count / 2))
        found[f"pi-{i}"] = (x.astype(F32), rng.integers(0, 3 if alike else 2 + i % 2, n))
    return found


DEVICES = some_devices()


def a_plan(name: str, **changes: Any) -> Plan:
    return Plan(
        **{
            "strategy": name,
            "rounds": ROUNDS,
            "min_devices": 8,
            "learning_rate": RATE,
            "local_epochs": EPOCHS,
            "batch_size": BATCH,
            "min_rows": 1,
            "seed": SEED,
            "believe": Believe(byzantine=BYZANTINE),
            **changes,
        }
    )


class Fleet:
    """Devices that run the strategy's own task graph and keep what it lets them keep."""

    def __init__(self, plan: Plan, devices: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
        self.devices, self.memory = devices, {name: dict[str, np.ndarray]() for name in devices}
        self.task = task_of(
            plan.row, MODEL, loss="softmax_cross_entropy", momentum=plan.momentum, epochs=EPOCHS, batch_size=BATCH
        )
        self.session = Session(self.task.data)
        self.federation = Federation(
            "run", plan, model="m", parameters=self.task.parameters, controls=self.task.controls
        )

    def round(self, order: Sequence[str] = ()) -> Weights:
        f = self.federation
        machine = f.begin({name: len(rows[1]) for name, rows in self.devices.items()}, now=0.0)
        assert machine is not None
        scalars = f.offer(self.task)[0].scalars
        for name in order or list(self.devices):
            x, y = self.devices[name]
            given: Weights = {**f.offered, "x": x, "target": y}
            for spec in self.session.inputs:
                if spec.name in scalars:
                    given[spec.name] = np.asarray(scalars[spec.name], spec.dtype)
                elif spec.name.startswith("kept."):
                    given[spec.name] = self.memory[name].get(spec.name[5:], np.zeros(spec.shape, F32))
            out = self.session.run(given)
            self.memory[name] = {key[5:]: value for key, value in out.items() if key.startswith("keep.")}
            delta = check_update({k: v for k, v in out.items() if k.startswith("delta.")}, f.offered)
            metrics = {key: float(out[key]) for key in ("loss.before", "loss.after", "steps")}
            assert not machine.receive(name, Update(name, len(y), delta, metrics=metrics), 1.0)
        f.conclude(now=1.0)
        return f.parameters


# ---- the papers, one function each: rows of all devices in, the parameters after every round out ----


class Paper:
    """One round after the other in float64; `server` makes the next parameters of what devices sent."""

    def __init__(self, devices: Mapping[str, tuple[np.ndarray, np.ndarray]], **plan: Any) -> None:
        self.devices, self.plan = devices, plan
        self.rows = np.array([len(y) for _, y in devices.values()], float)
        self.p = self.rows / self.rows.sum()
        self.w: Weights = {name: value.astype(np.float64) for name, value in WEIGHTS.items()}
        self.m: Weights = {name: np.zeros_like(value) for name, value in self.w.items()}
        self.v: Weights = {}
        self.c: Weights = dict(self.m)
        self.ci = [dict(self.m) for _ in devices]
        self.heads = [{name: self.w[name] for name in ("w2", "b2")} for _ in devices]
        self.number = 0

    def local(self, i: int, start: Weights, **more: Any) -> Weights:
        rows = list(self.devices.values())[i]
        return trained(start, rows=rows, epochs=EPOCHS, batch_size=BATCH, rate=RATE, seed=SEED + self.number, **more)

    def deltas(self, **more: Any) -> list[Weights]:
        ends = [self.local(i, self.w, **more) for i in range(len(self.devices))]
        return [{name: end[name] - self.w[name] for name in end} for end in ends]

    def mean(self, deltas: Sequence[Weights], weights: Any) -> Weights:
        return {name: sum(w * d[name] for w, d in zip(weights, deltas, strict=True)) for name in self.w}

    def add(self, change: Weights) -> None:
        self.w = {name: value + change[name] for name, value in self.w.items()}

    def rounds(self, one: Callable[[Paper], None]) -> list[Weights]:
        found = []
        for self.number in range(ROUNDS):
            one(self)
            found.append(dict(self.w))
        return found


def fedavg(s: Paper) -> None:
    s.add(s.mean(s.deltas(), s.p))


def fedavgm(s: Paper) -> None:
    """v = beta v + mean; w = w + rate v."""
    row = STRATEGIES["fedavgm"].server
    change = s.mean(s.deltas(), s.p)
    s.m = {name: row.beta1 * s.m[name] + change[name] for name in s.w}
    s.add({name: row.rate * s.m[name] for name in s.w})


def fedprox(s: Paper) -> None:
    s.add(s.mean(s.deltas(mu=STRATEGIES["fedprox"].mu), s.p))


def scaffold(s: Paper) -> None:
    """Algorithm 1 with option II, devices weighted by rows."""
    ends, moved = [], []
    for i, n in enumerate(s.rows):
        mine = s.ci[i]
        y = s.local(i, s.w, control={k: s.c[k] - mine[k] for k in s.w})
        steps = EPOCHS * math.ceil(n / BATCH)
        new = {k: mine[k] - s.c[k] + (s.w[k] - y[k]) / (steps * RATE) for k in s.w}
        ends.append({k: y[k] - s.w[k] for k in s.w})
        moved.append({k: new[k] - mine[k] for k in s.w})
        s.ci[i] = new
    s.add(s.mean(ends, s.p))
    change = s.mean(moved, s.p)
    s.c = {k: s.c[k] + change[k] for k in s.w}


def fednova(s: Paper) -> None:
    """d_i = delta_i / |a_i|_1, with a_i the weights of the gradients under momentum; tau_eff = sum p_i |a_i|_1."""
    m = s.plan["momentum"]
    tau = [sum((1 - m ** (k + 1)) / (1 - m) for k in range(EPOCHS * math.ceil(n / BATCH))) for n in s.rows]
    change = s.mean(s.deltas(momentum=m), s.p / tau)
    s.add({name: float(s.p @ tau) * value for name, value in change.items()})


def adaptive(kind: str) -> Callable[[Paper], None]:
    """Algorithm 2 of arXiv 2003.00295."""

    def one(s: Paper) -> None:
        row = STRATEGIES[kind].server
        if s.number == 0:
            s.v = {name: np.full_like(value, row.tau**2) for name, value in s.w.items()}
        d = s.mean(s.deltas(), s.p)
        for name in s.w:
            s.m[name] = row.beta1 * s.m[name] + (1 - row.beta1) * d[name]
            square, v = d[name] ** 2, s.v[name]
            s.v[name] = {
                "fedadagrad": v + square,
                "fedadam": row.beta2 * v + (1 - row.beta2) * square,
                "fedyogi": v - (1 - row.beta2) * square * np.sign(v - square),
            }[kind]
        s.add({k: row.rate * s.m[k] / (np.sqrt(s.v[k]) + row.tau) for k in s.w})

    return one


def qfedavg(s: Paper) -> None:
    """Algorithm 2 of arXiv 1905.10497 with L = 1 / rate, every device counted by its share of rows."""
    q, big_l, top, bottom = 1.0, 1 / RATE, dict.fromkeys(s.w, 0.0), 0.0
    for p, delta, (x, y) in zip(s.p, s.deltas(), s.devices.values(), strict=True):
        loss = loss_and_gradients(x, y, s.w)[0]
        gradient = {name: -big_l * value for name, value in delta.items()}
        top = {name: top[name] + p * loss**q * gradient[name] for name in s.w}
        square = sum(float((g**2).sum()) for g in gradient.values())
        bottom += p * (q * loss ** (q - 1) * square + big_l * loss**q)
    s.add({name: -value / bottom for name, value in top.items()})


def flat(delta: Weights) -> np.ndarray:
    return np.concatenate([np.ravel(delta[name]) for name in WEIGHTS])


def scores(deltas: Sequence[Weights]) -> np.ndarray:
    """Krum's: the sum of squared distances to the n - f - 2 nearest others."""
    near = max(1, len(deltas) - BYZANTINE - 2)
    return np.array(
        [sum(sorted(float(((flat(a) - flat(b)) ** 2).sum()) for b in deltas if b is not a)[:near]) for a in deltas]
    )


def median(s: Paper) -> None:
    deltas = s.deltas()
    s.add({name: np.median([d[name] for d in deltas], axis=0) for name in s.w})


def trimmed_mean(s: Paper) -> None:
    deltas = s.deltas()
    kept = {name: np.sort([d[name] for d in deltas], axis=0)[BYZANTINE:-BYZANTINE] for name in s.w}
    s.add({name: value.mean(axis=0) for name, value in kept.items()})


def krum(s: Paper) -> None:
    deltas = s.deltas()
    s.add(deltas[int(np.argmin(scores(deltas)))])


def multi_krum(s: Paper) -> None:
    deltas = s.deltas()
    best = np.argsort(scores(deltas))[: len(deltas) - BYZANTINE]
    s.add({name: np.mean([deltas[i][name] for i in best], axis=0) for name in s.w})


def bulyan(s: Paper) -> None:
    left, chosen = s.deltas(), []
    for _ in range(len(left) - 2 * BYZANTINE):
        chosen.append(left.pop(int(np.argmin(scores(left)))))
    keep = len(chosen) - 2 * BYZANTINE
    change = {}
    for name in s.w:
        values = np.array([d[name] for d in chosen])
        nearest = np.argsort(abs(values - np.median(values, axis=0)), axis=0)[:keep]
        change[name] = np.take_along_axis(values, nearest, axis=0).mean(axis=0)
    s.add(change)


def fedper(s: Paper) -> None:
    """The head of every device goes on by itself."""
    deltas = []
    for i in range(len(s.devices)):
        start = {**s.w, **s.heads[i]}
        end = s.local(i, start)
        s.heads[i] = {k: end[k] for k in ("w2", "b2")}
        deltas.append({k: end[k] - start[k] for k in s.w})
    change = s.mean(deltas, s.p)
    s.add({k: change[k] if k in ("w1", "b1") else 0.0 for k in s.w})


PAPERS: dict[str, Callable[[Paper], None]] = {
    "fedavg": fedavg,
    "fedavgm": fedavgm,
    "fedprox": fedprox,
    "scaffold": scaffold,
    "fednova": fednova,
    "fedadagrad": adaptive("fedadagrad"),
    "fedadam": adaptive("fedadam"),
    "fedyogi": adaptive("fedyogi"),
    "qfedavg": qfedavg,
    "median": median,
    "trimmed_mean": trimmed_mean,
    "krum": krum,
    "multi_krum": multi_krum,
    "bulyan": bulyan,
    "fedper": fedper,
    "ditto": fedavg,  # what is shared; the second model is checked in tests/tasks
}


@every_strategy
def test_three_rounds_equal_the_paper(name: str) -> None:
    momentum = 0.9 if name == "fednova" else 0.0
    fleet = Fleet(a_plan(name, momentum=momentum), DEVICES)
    for expected in Paper(DEVICES, momentum=momentum).rounds(PAPERS[name]):
        got = fleet.round()
        assert got.keys() == (WEIGHTS.keys() if name != "fedper" else {"w1", "b1"})
        for key, value in got.items():
            np.testing.assert_allclose(value, expected[key], atol=5e-5, rtol=1e-4, err_msg=key)
    assert fleet.federation.finished


@every_strategy
def test_the_order_in_which_devices_answer_changes_nothing(name: str) -> None:
    one, other = Fleet(a_plan(name), DEVICES), Fleet(a_plan(name), DEVICES)
    for _ in range(2):
        first, second = one.round(), other.round(order=sorted(DEVICES, reverse=True))
        assert all(np.array_equal(first[key], second[key]) for key in first)


ADDED = sorted(name for name, row in STRATEGIES.items() if row.server.kind == "add" and name != "qfedavg")
ALONE = [name for name in ADDED if STRATEGIES[name].rule in ("fedavg", "fednova", "median")]


@pytest.mark.parametrize(("name", "count"), [*((name, 1) for name in ALONE), *((name, 8) for name in ADDED)])
def test_one_device_and_copies_of_one_device_are_local_training(name: str, count: int) -> None:
    rows = DEVICES["pi-3"]
    plan = a_plan(name, min_devices=count, mu=0.3)
    got = Fleet(plan, {f"pi-{i}": rows for i in range(count)}).round()
    mu = 0.3 if name == "fedprox" else 0.0
    alone = trained(WEIGHTS, rows=rows, epochs=EPOCHS, batch_size=BATCH, rate=RATE, seed=SEED, mu=mu)
    for key, value in got.items():
        np.testing.assert_allclose(value, alone[key], atol=2e-6)


@every_strategy
def test_a_row_is_complete(name: str) -> None:
    row = strategy(name)
    assert row.name == name and row.what and row.paper and name in PAPERS
    linear = row.rule == "fedavg"
    assert linear == ("secure" not in row.excludes), "only a plain mean can be taken of masked updates"


def test_numbers_of_a_plan_take_the_place_of_the_rows_own() -> None:
    assert Plan(strategy="fedprox", mu=0.0).row.mu == 0.0 and Plan(strategy="fedprox").row.mu == 0.1
    assert Plan(strategy="fedavg", mu=0.5).row.mu == 0.0
    assert Plan(strategy="fedadam").row.server.kind == "adam"
    rates = []
    f = Federation("run", Plan(rounds=3, decay=0.5, learning_rate=0.4, min_devices=1), model="m", parameters=WEIGHTS)
    task = task_of(strategy("fedavg"), MODEL, loss="softmax_cross_entropy")
    for _ in range(3):
        f.begin({"a": 50}, now=0.0)
        rates.append(f.offer(task)[0].scalars["lr"])
        zero = {name: np.zeros_like(value) for name, value in WEIGHTS.items()}
        assert f.round is not None and not f.round.receive("a", Update("a", 50, zero), 0.0)
        f.conclude(now=0.0)
    assert rates == [0.4, 0.2, 0.1]


def test_qfedavg_without_fairness_is_fedavg_and_needs_losses() -> None:
    plan = a_plan("qfedavg", believe=Believe(fairness=0.0))
    first, second = Fleet(plan, DEVICES).round(), Fleet(a_plan("fedavg"), DEVICES).round()
    for name in first:
        np.testing.assert_allclose(first[name], second[name], atol=1e-6)
    f = Federation("run", dataclasses.replace(plan, min_devices=1), model="m", parameters=WEIGHTS)
    machine = f.begin({"a": 50}, now=0.0)
    assert machine is not None
    machine.receive("a", Update("a", 50, dict(WEIGHTS)), 0.0)
    with pytest.raises(UserError, match=r"none of 1 devices told its loss\.before"):
        f.conclude(now=0.0)


def test_the_head_is_the_last_layer_and_a_model_of_one_layer_has_no_body() -> None:
    assert head(training_step(MODEL, optimizer=SGD())) == ["w2", "b2"]
    with pytest.raises(UserError, match="unknown strategy 'fedx'; known: fedavg, fedavgm"):
        strategy("fedx")


def test_control_variates_outlive_the_server() -> None:
    """A server that is restarted after a round goes on as one that was not."""
    one, other = Fleet(a_plan("scaffold"), DEVICES), Fleet(a_plan("scaffold"), DEVICES)
    one.round()
    other.round()
    fresh = Federation(
        "run", a_plan("scaffold"), model="m", parameters=other.task.parameters, controls=other.task.controls
    )
    resume(fresh, state_of(other.federation, 1.0), arrays_of(other.federation), now=2.0)
    other.federation = fresh
    first, second = one.round(), other.round()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert any(value.any() for value in fresh.controls.values())


def test_the_table_in_the_docs_is_the_table() -> None:
    assert table() in (Path(__file__).parents[2] / "docs/learn.md").read_text(encoding="utf-8"), "print it again"
