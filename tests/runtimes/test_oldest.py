"""Whatever edgeml writes loads on the oldest onnxruntime it writes for, and answers there as it does here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
from onnx import helper
from sklearn import cluster, datasets, ensemble, linear_model, neighbors, neural_network, pipeline, preprocessing, svm

from edgeml import convert, graph
from edgeml.artifacts import OnnxModel, Rows, Skipped, Variant
from edgeml.graph import opsets
from edgeml.pipeline.runtimes import loadable
from edgeml.project import parse_project
from edgeml.quantize import RECIPES, Options, quantize
from edgeml.tasks.statistics import FAMILIES, begin
from edgeml_runtime.session import VERSION, Session
from tests import networks
from tests.quantize import graphs
from tests.tasks.fleet import split, sums
from tests.tasks.pooled import CASES

pytestmark = pytest.mark.runtimes
REPLAY = Path(__file__).with_name("replay.py")
PROJECT = parse_project(f"name: old\ndata: {{train: '-'}}\ncompile: {{runtime: '{opsets.OLDEST}'}}")
X, Y = datasets.load_iris(return_X_y=True)
X = X.astype(np.float32)  # as devices see them
GRAPHS = {
    "mlp": lambda: networks.an_mlp(hidden=256),
    "conv": networks.a_conv_net,
    "residual": graphs.a_residual_net,
    "lstm": graphs.an_lstm,
    "gru": lambda: graphs.an_lstm("GRU"),
    "attention": graphs.an_attention,
}
ESTIMATORS = {
    "forest": ensemble.RandomForestClassifier(10, random_state=0),
    "boosting": ensemble.HistGradientBoostingClassifier(max_iter=5),
    "isolation": ensemble.IsolationForest(n_estimators=10, random_state=0),
    "neighbours": neighbors.KNeighborsClassifier(),
    "svm": pipeline.make_pipeline(preprocessing.StandardScaler(), svm.SVC()),
    "logistic": pipeline.make_pipeline(preprocessing.PolynomialFeatures(), linear_model.LogisticRegression()),
    "network": neural_network.MLPClassifier(max_iter=20),
    "clusters": cluster.KMeans(3, n_init=1),
}


def keep(folder: Path, name: str, model: OnnxModel, rows: Rows) -> None:
    """Write `model` and what it answers here."""
    (folder / f"{name}.onnx").write_bytes(model.data)
    answers = Session(model.data).run(rows.inputs)
    arrays = {f"in.{key}": array for key, array in rows.inputs.items()}
    np.savez(folder / f"{name}.npz", **arrays, **{f"out.{key}": array for key, array in answers.items()})


def replayed(python: Path | str, folder: Path) -> dict:
    done = subprocess.run([str(python), str(REPLAY), str(folder)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_the_old_python_has_the_oldest_onnxruntime(old_python: Path, tmp_path: Path) -> None:
    assert replayed(old_python, tmp_path)["version"].startswith(opsets.OLDEST + ".")


@pytest.mark.parametrize("name", GRAPHS)
def test_every_variant_of_a_network_loads_and_answers_alike(name: str, old_python: Path, tmp_path: Path) -> None:
    model = convert.fit_runtimes(GRAPHS[name](), [opsets.OLDEST])
    rows = Rows(graph.random_rows(model, 64))
    made = loadable(quantize(model, rows, list(RECIPES), options=Options(budget_s=5)), PROJECT)
    variants = [item for item in made if isinstance(item, Variant) and not Session(item.model.data).plain]
    assert len(variants) > 3, [item.reason for item in made if isinstance(item, Skipped)]
    for variant in variants:
        keep(tmp_path, variant.recipe, variant.model, rows)
    found = replayed(old_python, tmp_path)["found"]
    assert found.keys() == {variant.recipe for variant in variants}
    wrong = {recipe: far for recipe, far in found.items() if isinstance(far, str)}
    assert not wrong
    assert found["fp32"] < 1e-5
    assert max(found.values()) < 0.05, found  # kernels of 8 bits round otherwise from version to version


@pytest.mark.parametrize("name", ESTIMATORS)
def test_what_scikit_learn_becomes_loads_and_answers_alike(name: str, old_python: Path, tmp_path: Path) -> None:
    joblib.dump(ESTIMATORS[name].fit(X, Y), tmp_path / "m.joblib")
    model = convert.read_model(tmp_path / "m.joblib", trust=True, runtimes=[opsets.OLDEST])
    keep(tmp_path, name, model, Rows({"numeric": X}))
    far = replayed(old_python, tmp_path)["found"][name]
    assert isinstance(far, float) and far < 1e-5


def gapped(operator: str, opset: int) -> bytes:
    """Return a graph around `operator` as it stands in `opset`."""
    node = helper.make_node
    weights = {"s": np.float32(0.1), "z": np.uint8(0), "w": np.ones((4, 2), np.uint8)}
    product = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node(operator, ["q", "s", "z", "w", "s", "z", "s", "z"], ["p"]),
        node("DequantizeLinear", ["p", "s", "z"], ["y"]),
    ]
    shapes = {"inputs": {"x": (1, ["n", 4])}, "outputs": {"y": (1, ["n", 2])}}
    return networks.a_graph(product, weights=weights, opset=opset, ir=9, **shapes).SerializeToString()


@pytest.mark.parametrize("opset", [17, 20, 21, 22])
def test_the_table_says_what_the_oldest_onnxruntime_does(opset: int, old_python: Path, tmp_path: Path) -> None:
    data = gapped("QLinearMatMul", opset)
    (tmp_path / "m.onnx").write_bytes(data)
    rows = Rows({"x": np.ones((2, 4), np.float32)})
    keep(tmp_path, "m", OnnxModel(data, ""), rows)
    said = replayed(old_python, tmp_path)["found"]["m"]
    assert isinstance(said, str) == bool(opsets.refusals(graph.load(data), opsets.OLDEST)), said


def test_the_replay_itself_finds_what_is_wrong(tmp_path: Path) -> None:
    rows = networks.some_rows(5)
    keep(tmp_path, "right", networks.an_mlp(), Rows(rows.inputs))
    keep(tmp_path, "wrong", networks.an_mlp(), Rows(rows.inputs))
    (tmp_path / "wrong.onnx").write_bytes(networks.an_mlp(seed=3).data)
    (tmp_path / "none.onnx").write_bytes(b"no model")
    said = replayed(sys.executable, tmp_path)
    assert said["version"] == VERSION
    assert said["found"]["right"] == 0 and said["found"]["wrong"] > 0.05 and isinstance(said["found"]["none"], str)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_round_of_a_study_answers_alike(name: str, old_python: Path, tmp_path: Path) -> None:
    case, target = CASES[name][0], FAMILIES[name].target
    study, fleet = begin(case.estimator, case.shape(target)), split(case.rows(target))
    rounds = 0
    while not study.done:
        task = study.task()
        wanted = {spec.name for spec in Session(task.data).inputs}
        for which, held in {"none": fleet[0], "one": fleet[1], "most": fleet[-1]}.items():
            rows = Rows({key: value for key, value in {**held, **task.parameters}.items() if key in wanted})
            keep(tmp_path, f"round{rounds}-{which}", OnnxModel(task.data, "study"), rows)
        study, rounds = study.take(sums(task, fleet)), rounds + 1
    found = replayed(old_python, tmp_path)["found"]
    assert len(found) == 3 * rounds and not [far for far in found.values() if isinstance(far, str) or far > 1e-12]
