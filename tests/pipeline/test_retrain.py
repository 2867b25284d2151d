"""What was learned on devices comes back by the front door: judged on the server's rows, then the usual gates."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeml import autodiff, graph, metrics, tasks
from edgeml.artifacts import OnnxModel, Rows
from edgeml.demo.digits import deal
from edgeml.errors import NotFound, UnsupportedModel, UserError
from edgeml.federated import Plan, Survey, Update
from edgeml.federated.gate import UNASKED
from edgeml.pipeline import build, retraining
from edgeml.pipeline.subject import read_subject
from edgeml.project import read_project
from edgeml.registry import FederationRecord, Registry, RoundRecord
from edgeml.server import Finding, Learner
from edgeml.server.preparation import prepare
from edgeml_runtime.session import Session

ROUND = RoundRecord(
    round=1,
    participants=("a", "b"),
    refused={},
    rows=200,
    metric=0.9,
    loss=0.3,
    bytes_up=10,
    bytes_down=20,
    seconds=0.1,
)


def released(folder: Path, data: str) -> tuple[Registry, FederationRecord]:
    """Build a small network on `data` and return its registry with a request to federate it."""
    text = f"name: small\ndata: {{train: '{data}'}}\nsearch: {{trials: 1, folds: 2}}\n"
    (folder / "edgeml.yaml").write_text(text + "federated: {enabled: true}\ntrack: {mlflow: off}\n", encoding="utf-8")
    registry = Registry.open(folder / "registry")
    build(read_project(folder), registry)
    return registry, registry.federation(registry.request_federation("small", {}))


@pytest.fixture(scope="module")
def wine(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """A small network that tells wines apart, released."""
    return released(tmp_path_factory.mktemp("wine"), "sklearn:wine")[0]


def the_digits(folder: Path) -> tuple[Registry, FederationRecord, Rows]:
    """Build the demo's first model from its 120 digits; return with it the rows that its agents hold."""
    _, shares = deal(folder / "project", agents=3)
    project = folder / "project/edgeml.yaml"
    text = project.read_text(encoding="utf-8").replace("search: {", "search: {trials: 1, folds: 2, ")
    project.write_text(text, encoding="utf-8")
    registry = Registry.open(folder / "registry")
    build(read_project(folder / "project"), registry)
    manifest = registry.manifest_of(registry.find("digits"))
    columns = [shares[0].columns.index(feature.name) for feature in manifest.features]
    pixels = np.concatenate([share.pixels for share in shares])[:, columns]
    digits = np.concatenate([share.digits for share in shares])
    target = np.array([manifest.classes.index(str(digit)) for digit in digits])
    return registry, registry.federation(registry.request_federation("digits", {})), Rows({"numeric": pixels}, target)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Registry, FederationRecord, Rows]:
    """The demo's first model, for tests that begin at it whatever was released since."""
    return the_digits(tmp_path_factory.mktemp("digits"))


def learned(learner: Learner, rows: Rows, *, rounds: int, learning_rate: float) -> OnnxModel:
    """Train the learner's model as one device would that holds `rows`."""
    assert rows.target is not None
    target = rows.target.astype(np.float32).reshape(-1, 1) if learner.loss == "mse" else rows.target
    task = tasks.training(autodiff.training_step(learner.model, loss=learner.loss), epochs=2, batch_size=16)
    weights = dict(task.parameters)
    for number in range(rounds):
        scalars = {"lr": np.float32(learning_rate * learner.rate).reshape(()), "seed": np.array(number)}
        out = Session(task.data).run({**rows.inputs, "target": target, **scalars, **weights})
        assert np.isfinite(out["loss.after"])
        weights = {name: old + out[f"delta.{name}"] for name, old in weights.items()}
    return graph.set_initializers(learner.model, weights)


def spoiled(model: OnnxModel) -> OnnxModel:
    """Return the model with the weights of its last layer turned round."""
    weights = graph.initializers(model)
    last = max(name for name in weights if name.endswith(".weight"))
    return graph.set_initializers(model, {last: -weights[last]})


def test_a_better_model_is_released_with_its_parent_in_the_lineage(
    digits: tuple[Registry, FederationRecord, Rows], tmp_path: Path
) -> None:
    base, record, rows = digits
    registry = Registry.open(Path(shutil.copytree(base.root, tmp_path / "registry")))
    learner = retraining(registry).prepare(record)
    first = registry.find("digits")
    told = learner.release(spoiled(learner.model), [ROUND], {})
    assert told["released"] is None and "not released, worse here: " in told["reason"]
    assert told["gate"]["passed"] is False and told["gate"]["why"] in told["reason"]
    assert [release.release for release in registry.releases("digits")] == [first.release]

    told = learner.release(learned(learner, rows, rounds=3, learning_rate=0.05), [ROUND], {})
    newest = registry.find("digits")
    assert told["released"] == newest.release != first.release
    assert told["after"] > told["before"]
    low, high = told["gain_interval"]
    assert low < told["after"] - told["before"] < high and "a gain of +0." in told["reason"]
    lineage = registry.bundle_of(newest).manifest.lineage
    assert lineage["parent"] == first.release and "fitted" not in lineage
    assert (Path(newest.run_dir) / "report.html").is_file()

    following = registry.federation(registry.request_federation("digits", {}))
    assert following.release == newest.release
    successor = retraining(registry).prepare(following)
    assert successor.evaluate(successor.model)["metric"] == pytest.approx(told["after"])


def test_where_devices_keep_their_last_layer_theirs_must_gain_and_the_others_not_lose(
    digits: tuple[Registry, FederationRecord, Rows],
) -> None:
    registry, record, _ = digits
    fedper = dataclasses.replace(record, options=dataclasses.replace(record.options, strategy="fedper"))
    learner = retraining(registry).prepare(fedper)
    assert "evaluation" not in learner.surveys(learner.model), "other last layers answer there"

    def rounds(*losses: Mapping[str, float]) -> list[RoundRecord]:
        return [dataclasses.replace(ROUND, round=n, own_losses=told) for n, told in enumerate(losses, start=1)]

    settled = learner.settle(
        spoiled(learner.model), [n for n in _parameters(learner) if not n.startswith(_last(learner))]
    )
    before, after = learner.evaluate(spoiled(learner.model)), learner.evaluate(settled)
    assert before["metric"] < 0.2 < 0.8 < after["metric"], "the server's rows give it a last layer again"
    for model, losses, why in (
        (spoiled(learner.model), ({"a": 2.0}, {"a": 0.5}), "worse by more than 0.02 for devices without a model of"),
        (learner.model, ({"a": 0.5}, {"a": 0.5}), "the devices' own models are not better"),
        (
            learner.model,
            ({"a": 0.5, "b": 9.0}, {"a": 0.6, "c": 0.1}),
            "models 0.5 -> 0.6, before the first and the last of 2",
        ),
        (
            learner.model,
            ({"a": 2.0}, {"b": 0.5}),
            "no device told its loss both in the first round and in the last of 2",
        ),
        (learner.model, ({"a": 2.0},), "one round cannot show that own models gained"),
    ):
        told = learner.release(model, rounds(*losses), {})
        assert told["released"] is None and why in told["reason"], told["reason"]
        assert told["gate"]["rule"] == "own" and "no held-out row of the fleet" in told["gate"]["says"]

    told = learner.release(learner.model, rounds({}, {}), {})
    assert "not released, not better here beyond chance" in told["reason"], "no losses: as any other"
    assert told["gate"]["rule"] == "better" and told["gate"]["says"] == UNASKED["better"]


def _parameters(learner: Learner) -> list[str]:
    return list(autodiff.training_step(learner.model, loss=learner.loss).parameters)


def _last(learner: Learner) -> str:
    return max(name for name in _parameters(learner) if name.endswith(".weight")).removesuffix("weight")


def answered(learner: Learner, candidate: OnnxModel, shares: list[Rows]) -> dict[str, Finding]:
    """Return what a fleet that holds `shares` answers to all that is asked about `candidate`."""
    found = {}
    for name, study in learner.surveys(candidate).items():
        survey = Survey(name, Plan(min_devices=len(shares), min_rows=1), model="digits", study=study)
        while not survey.finished:
            opened = survey.begin({f"d{i}": len(share) for i, share in enumerate(shares)}, now=0.0)
            task = survey.study.task()
            session = Session(task.data)
            for device, share in enumerate(shares):
                given = {**share.inputs, "target": share.target, **task.parameters}
                sums = session.run({spec.name: given[spec.name] for spec in session.inputs})
                assert (
                    opened is not None
                    and opened.receive(f"d{device}", Update(f"d{device}", len(share), sums), 1.0) == ""
                )
            survey.conclude(1.0)
        devices = tuple(sorted(survey.members))
        found[name] = Finding(result=survey.study.result(), devices=devices, rows=survey.rows, rounds=survey.closed)
    return found


def test_the_fleet_has_its_say_before_anything_ships(digits: tuple[Registry, FederationRecord, Rows]) -> None:
    registry, record, rows = digits
    learner = retraining(registry).prepare(record)
    candidate = learned(learner, rows, rounds=3, learning_rate=0.05)
    thirds = [rows.take(slice(start, None, 3)) for start in range(3)]
    assert all(share.target is not None for share in thirds)
    wrong = [Rows(share.inputs, (share.target + 1) % 10) for share in thirds if share.target is not None]

    against = learner.release(candidate, [ROUND], answered(learner, candidate, wrong))
    assert against["released"] is None and "worse in the fleet: " in against["reason"]
    assert against["fleet_evaluation"]["gain"] < 0 and against["fleet_evaluation"]["devices"] == 3

    silent = {"evaluation": Finding(result=None, why="0 of the 2 updates needed arrived")}
    told = learner.release(candidate, [ROUND], silent)
    assert told["released"] is None and "the fleet was asked and did not answer: 0 of the 2" in told["reason"]

    findings = answered(learner, candidate, thirds)
    told = learner.release(candidate, [ROUND], findings)
    newest = registry.find("digits")
    assert told["released"] == newest.release, told["reason"]
    fleet = told["fleet_evaluation"]
    assert fleet["gain"] > 0 and fleet["gain_interval"][0] <= fleet["gain"] <= fleet["gain_interval"][1]
    assert fleet["rows"] == len(rows) and fleet["certain"] and fleet["held_out"]
    assert told["gate"]["rule"] == "better" and told["gate"]["passed"]
    lineage = registry.bundle_of(newest).manifest.lineage
    assert lineage["federation"] == f"{record.id}: 1 rounds of 2 devices and 200 rows" and "ranges" in lineage
    assert lineage["gate"] == told["gate"]["why"] and f"on {len(rows):,} held-out rows of 3 devices" in lineage["gate"]
    assert read_subject(Path(newest.run_dir)).ranges is None
    notes = registry.find("digits").summary["notes"]
    assert f"int8 holds the activations of {len(rows):,} rows of the fleet" in notes

    count = len(registry.releases("digits"))
    again = learner.release(candidate, [ROUND], findings)  # as a server does that died before it wrote the end down
    assert again["released"] == told["released"] and len(registry.releases("digits")) == count


def test_a_gain_that_few_rows_cannot_show_ships_where_the_gate_says_so(
    digits: tuple[Registry, FederationRecord, Rows],
) -> None:
    registry, record, rows = digits
    learner = retraining(registry).prepare(record)
    candidate = learned(learner, rows, rounds=3, learning_rate=0.05)
    few = answered(learner, candidate, [rows.take(slice(start, 24, 3)) for start in range(3)])
    refused = learner.release(candidate, [ROUND], few)
    assert refused["released"] is None and "not better in the fleet beyond chance" in refused["reason"]
    assert "on 24 held-out rows of 3 devices" in refused["reason"] and "gate: not-worse" in refused["reason"]

    options = {"gate": "not-worse", "held_out": 0.0}
    lenient = retraining(registry).prepare(registry.federation(registry.request_federation("digits@1", options)))
    told = lenient.release(candidate, [dataclasses.replace(ROUND, held_out=50)], few)
    assert told["released"] == registry.find("digits").release, told["reason"]
    lineage = registry.bundle_of(registry.find("digits")).manifest.lineage
    assert lineage["gate"].startswith("not-worse: here ") and "learned from as well" in lineage["gate"]
    assert lineage["federation"].endswith("1 rounds of 2 devices and 200 rows, 50 more held out")
    with pytest.raises(UserError, match=r"held_out 0\.25: a device holds out 0, 0\.1"):
        registry.request_federation("digits", {"held_out": 0.25})


def test_a_family_is_fitted_over_the_fleet_and_comes_back_as_a_model(
    digits: tuple[Registry, FederationRecord, Rows],
) -> None:
    registry, _, rows = digits
    options = {"family": "LogisticRegression", "family_options": {"C": 0.1}}
    record = registry.federation(registry.request_federation("digits@1", options))
    learner = retraining(registry).prepare(record)
    assert learner.study is not None and learner.fitted is not None
    study, session = learner.study(), None
    while not study.done:
        task = study.task()
        session = Session(task.data)
        sums: dict[str, np.ndarray] = {}
        for start in range(3):
            share = rows.take(slice(start, None, 3))
            given = {**share.inputs, "target": share.target, **task.parameters}
            for name, value in session.run({spec.name: given[spec.name] for spec in session.inputs}).items():
                sums[name] = sums.get(name, np.float64(0)) + value.astype(np.float64)
        study = study.take(sums)
    model = learner.fitted(study.result())
    scores = learner.evaluate(model)
    assert scores["metric"] > learner.evaluate(learner.model)["metric"], "three agents hold more digits than the server"
    told = learner.release(model, [ROUND], {})
    assert told["released"] == registry.find("digits").release, told["reason"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"family": "Ridge"}, "none that learns classification exactly; choose of LogisticRegression"),
        ({"family": "RandomForestClassifier"}, "choose of LogisticRegression"),
        ({"family": "LogisticRegression", "family_options": {"c": 1}}, "unexpected keyword argument 'c'"),
        ({"family": "LogisticRegression", "mode": "async"}, "they cannot be asynchronous"),
        ({"family": "GaussianNB", "privacy": {"where": "server"}}, "sums that carry no noise"),
    ],
)
def test_a_family_that_cannot_be_is_refused_with_those_that_can(
    wine: Registry, options: dict[str, Any], says: str
) -> None:
    record = wine.federation(wine.request_federation("small", options))
    with pytest.raises((UserError, UnsupportedModel), match=says):
        prepare(record, retraining(wine))


def test_a_forest_says_what_can_be_federated_in_its_place(tmp_path: Path) -> None:
    text = "name: trees\ndata: {train: 'sklearn:wine'}\nsearch: {trials: 1, folds: 2, estimators: [forest]}\n"
    (tmp_path / "edgeml.yaml").write_text(text + "track: {mlflow: off}\n", encoding="utf-8")
    registry = Registry.open(tmp_path / "registry")
    build(read_project(tmp_path), registry)
    record = registry.federation(registry.request_federation("trees", {}))
    with pytest.raises(UnsupportedModel) as refused:
        prepare(record, retraining(registry))
    assert "HistGradientBoostingClassifier" in str(refused.value)
    assert "edgeml federate trees --family LogisticRegression" in str(refused.value)


def test_a_regressor_trains_in_the_units_of_its_target(tmp_path: Path) -> None:
    registry, record = released(tmp_path, "sklearn:diabetes")
    learner = retraining(registry).prepare(record)
    scale = graph.initializers(learner.model)["target.scale"]
    assert learner.loss == "mse" and learner.rate == pytest.approx(1 / float(scale) ** 2)
    start = spoiled(learner.model)
    again = Learner(start, learner.loss, learner.rate, learner.evaluate, learner.release)
    rows = read_subject(Path(registry.find("small").run_dir)).calibration
    assert rows is not None
    better = learned(again, rows, rounds=6, learning_rate=0.01)
    assert learner.evaluate(better)["loss"] < 0.5 * learner.evaluate(start)["loss"]


def test_rows_that_are_gone_are_said_to_be_gone(tmp_path: Path) -> None:
    registry, record = released(tmp_path, "sklearn:wine")
    for path in Path(registry.find("small").run_dir).glob("subject*"):
        path.unlink()
    with pytest.raises(NotFound, match="build the project again"):
        retraining(registry).prepare(record)


def test_the_gate_and_the_metrics_agree_on_what_is_worse() -> None:
    assert metrics.drop("rmse", 1.0, 2.0) > 0 > metrics.drop("accuracy", 0.5, 0.9)
