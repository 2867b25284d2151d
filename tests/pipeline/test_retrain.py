"""What was learned on devices comes back by the front door: judged on the server's rows, then the usual gates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeml import autodiff, graph, metrics, tasks
from edgeml.artifacts import OnnxModel, Rows
from edgeml.demo.digits import deal
from edgeml.errors import NotFound
from edgeml.pipeline import build, retraining
from edgeml.pipeline.subject import read_subject
from edgeml.project import read_project
from edgeml.registry import FederationRecord, Registry, RoundRecord
from edgeml.server import Learner
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


def test_a_better_model_is_released_with_its_parent_in_the_lineage(tmp_path: Path) -> None:
    registry, record, rows = the_digits(tmp_path)
    learner = retraining(registry).prepare(record)
    first = registry.find("digits")
    told = learner.release(spoiled(learner.model), [ROUND], {})
    assert told["released"] is None and "not better" in told["reason"]
    assert [release.release for release in registry.releases("digits")] == [first.release]

    told = learner.release(learned(learner, rows, rounds=3, learning_rate=0.05), [ROUND], {})
    newest = registry.find("digits")
    assert told["released"] == newest.release != first.release
    assert told["after"] > told["before"]
    lineage = registry.bundle_of(newest).manifest.lineage
    assert lineage["parent"] == first.release and "fitted" not in lineage
    assert (Path(newest.run_dir) / "report.html").is_file()

    following = registry.federation(registry.request_federation("digits", {}))
    assert following.release == newest.release
    successor = retraining(registry).prepare(following)
    assert successor.evaluate(successor.model)["metric"] == pytest.approx(told["after"])


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
