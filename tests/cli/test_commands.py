"""Commands on real data: what they print, what programs read, what a second build costs."""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.conftest import Command, anew, command_in
from tests.networks import an_mlp


def a_project(home: Path, real_data: Callable[[str], Path]) -> Path:
    """Return a project over real rows, categories and missing values, written by `edgeml init`."""
    table = home / "penguins.csv.gz"
    table.write_bytes(gzip.compress(real_data("penguins/penguins.csv").read_bytes()))
    said = command_in(home)("init", home / "penguins", "--from", table, "--target", "species")
    assert said.code == 0, said.err
    return home / "penguins"


@pytest.fixture
def penguins(real_data: Callable[[str], Path], tmp_path: Path) -> Path:
    """The project with half of its search."""
    project = a_project(tmp_path, real_data)
    file = project / "edgeml.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace("trials: 12", "trials: 6"), encoding="utf-8")
    return project


@dataclass(frozen=True)
class Built:
    """The penguins, built once for every test that goes on from there."""

    home: Path
    first: Any  # what the build said to programs

    @property
    def edgeml(self) -> Command:
        return command_in(self.home)

    @property
    def project(self) -> Path:
        return self.home / "penguins"

    @contextlib.contextmanager
    def changed(self, change: Callable[[str], str]) -> Iterator[None]:
        """Change the project's file for a while."""
        file = self.project / "edgeml.yaml"
        before = file.read_text(encoding="utf-8")
        assert change(before) != before
        file.write_text(change(before), encoding="utf-8")
        yield
        file.write_text(before, encoding="utf-8")


@pytest.fixture(scope="module")
def built(real_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Built:
    home = tmp_path_factory.mktemp("home")
    said = command_in(home, run=anew)("build", a_project(home, real_data), "--json")
    assert said.code == 0, said.err
    return Built(home, said.json)


def test_from_a_table_to_predictions(built: Built, real_data: Callable[[str], Path]) -> None:
    edgeml, summary = built.edgeml, built.first
    assert summary["metrics"]["test"]["accuracy"] > 0.93
    assert {"fp32"} <= {variant["name"] for variant in summary["variants"]}
    assert all(variant["parity"]["label_flips"] == 0 for variant in summary["variants"] if variant["name"] == "fp32")
    board = summary["devices"]["raspberry-pi-4"]
    assert board["fits"] and board["latency_ms"]["low"] < board["latency_ms"]["predicted"] < board["latency_ms"]["high"]
    assert all(Path(variant["path"]).read_bytes()[:1] == b"\x08" for variant in summary["variants"]), "not ONNX files"
    assert Path(summary["report"]).read_text(encoding="utf-8").lstrip().startswith("<!doctype html>")

    rows = real_data("penguins/penguins.csv")
    answers = edgeml("predict", summary["bundle"], rows, "--json").json
    truth = [row["species"] for row in csv.DictReader(rows.open(encoding="utf-8"))]
    right = np.mean([answer[0] == species for answer, species in zip(answers["rows"], truth, strict=True)])
    assert right > 0.93

    verdict = edgeml("verify", summary["bundle"], "--data", rows, "--json")
    assert verdict.code == 0 and verdict.json["verdict"] == "pass"
    assert verdict.json["variants"][0]["metrics"]["accuracy"] == pytest.approx(right)


def test_a_second_build_answers_from_the_first(built: Built) -> None:
    known = built.edgeml("registry", "list", "--json").json
    second = built.edgeml("build", built.project, "--json").json
    assert second.pop("cached") is True
    assert second == built.first
    assert built.edgeml("registry", "list", "--json").json == known
    assert built.first["release"] in [row["release"] for row in known]


def test_a_changed_option_makes_a_new_run_but_no_new_training(built: Built) -> None:
    with built.changed(lambda text: text.replace("max_accuracy_drop: 0.01", "max_accuracy_drop: 0.5")):
        second = built.edgeml("build", built.project, "--json").json
    assert second["run"] != built.first["run"]
    assert second["lineage"]["fitted"] == built.first["lineage"]["fitted"]
    assert second["timings_s"]["train"] < built.first["timings_s"]["train"]


def test_only_stops_after_the_stage(edgeml: Command, penguins: Path) -> None:
    said = edgeml("build", penguins, "--only", "convert", "--json")
    assert said.code == 0 and set(said.json["timings_s"]) == {"data", "train", "convert"}
    assert edgeml("registry", "list", "--json").json == []


def test_regression_from_scikit_learns_own_data(edgeml: Command, tmp_path: Path) -> None:
    text = (
        "name: diabetes\ndata: {train: 'sklearn:diabetes'}\nsearch: {trials: 4}\ndevices: [{board: raspberry-pi-5}]\n"
    )
    (tmp_path / "edgeml.yaml").write_text(text, encoding="utf-8")
    summary = edgeml("build", tmp_path, "--json").json
    assert summary["task"] == "regression" and summary["metric"] == "rmse"
    assert summary["metrics"]["test"]["rmse"] < 70
    assert "raspberry-pi-5" in summary["devices"]


def test_a_finished_scikit_learn_model_compiles(edgeml: Command, tmp_path: Path) -> None:
    import joblib
    from sklearn.datasets import load_digits
    from sklearn.ensemble import RandomForestClassifier

    pixels, digits = load_digits(return_X_y=True)
    forest = RandomForestClassifier(20, random_state=0).fit(pixels[:1200].astype(np.float32), digits[:1200])
    joblib.dump(forest, tmp_path / "forest.joblib")
    np.savez(tmp_path / "rows.npz", numeric=pixels[1200:].astype(np.float32), y=digits[1200:])
    words = ["--trust", "--labels", tmp_path / "rows.npz", "--device", "raspberry-pi-4", "--json"]
    said = edgeml("compile", tmp_path / "forest.joblib", "--calibration", tmp_path / "rows.npz", *words)
    assert said.code == 0, said.err
    (variant,) = said.json["variants"]
    assert variant["verdict"] == "pass" and variant["metrics"]["accuracy"] > 0.85
    assert "ships as fp32" in said.json["skipped"][0]["reason"]


def test_bench_and_devices_speak_to_programs(built: Built) -> None:
    edgeml, bundle = built.edgeml, built.first["bundle"]
    found = edgeml("bench", bundle, "--device", "raspberry-pi-zero-2w", "--seconds", "0.2", "--json").json
    assert found["board"] == "raspberry-pi-zero-2w"
    assert found["measured"]["p50_ms"] <= found["measured"]["p90_ms"] <= found["measured"]["p99_ms"]
    assert found["predicted"]["method"] in ("prior", "emulated", "combined")
    boards = {board["name"] for board in edgeml("devices", "list", "--json").json}
    assert boards >= {"raspberry-pi-zero-2w", "raspberry-pi-4", "raspberry-pi-5"}
    assert "raspberry-pi-5" in edgeml("devices").out and edgeml("fleet").code == 0
    shown = edgeml("devices", "show", "raspberry-pi-4").out
    assert "cortex-a72" in shown.lower() and "1.8 GHz" in shown and "not known: " in shown


def test_a_board_is_made_of_a_device_s_own_report_and_predicted_for(edgeml: Command, tmp_path: Path) -> None:
    agent = [sys.executable, "-m", "edgeml_runtime", "hardware"]
    report = subprocess.run(agent, capture_output=True, text=True, timeout=60, check=True).stdout
    (tmp_path / "report.json").write_text(report, encoding="utf-8")
    (tmp_path / "mlp.onnx").write_bytes(an_mlp().data)
    assert edgeml("devices", "add", "my-board").code == 2  # from where?
    added = edgeml("devices", "add", "my-board", "--from", tmp_path / "report.json", "--json").json
    assert added["board"]["cores"] == json.loads(report)["cores"]
    assert "my-board (yours)" in edgeml("devices").out
    predicted = edgeml("bench", tmp_path / "mlp.onnx", "--predict-only", "--json").json["results"]
    assert {"my-board", "raspberry-pi-4"} <= {one["board"] for one in predicted} and len(predicted) < 6
    assert "unknown of my-board: " in edgeml("bench", tmp_path / "mlp.onnx", "--predict-only").out
    every = edgeml("bench", tmp_path / "mlp.onnx", "--predict-only", "--device", "all", "--json").json["results"]
    assert len(every) >= 15


def test_people_get_a_table_and_the_verdict(built: Built) -> None:
    edgeml = built.edgeml
    said = edgeml("build", built.project)
    assert said.code == 0
    assert "raspberry-pi-4: " in said.out and "fp32" in said.out and "report" in said.out
    assert said.out.strip().splitlines()[-1].split()[-1].endswith("report.html")
    assert edgeml("report").out.strip().endswith("report.html")


def test_ctrl_c_leaves_nothing_half_written(edgeml: Command, penguins: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "EDGEML_REGISTRY": str(tmp_path / "registry")}
    child = subprocess.Popen(
        [sys.executable, "-m", "edgeml", "build", str(penguins)], stderr=subprocess.PIPE, env=environment, text=True
    )
    assert child.stderr is not None
    assert any("over the folds" in line for line in child.stderr), "no candidate was scored"
    child.send_signal(signal.SIGINT)
    said = child.stderr.read()
    assert child.wait(timeout=30) == 130 and "Traceback" not in said
    assert not list(penguins.glob("**/summary.json")) and not list(penguins.glob("**/.*.????????"))
    assert edgeml("build", penguins).code == 0


def test_a_board_calibrated_after_a_build_makes_the_next_one_choose_anew(built: Built, tmp_path: Path) -> None:
    board = next(iter(built.first["devices"]))
    (tmp_path / f"{board}.calibration.json").write_text('{"schema": 0}')  # what no build may swallow
    said = command_in(built.home, EDGEML_DEVICES=tmp_path)("build", built.project)
    assert said.code == 1
    assert "calibrate again" in said.err


def test_a_numpy_program_is_built_proven_and_run_like_any_variant(built: Built) -> None:
    edgeml = built.edgeml
    with built.changed(lambda text: f"{text}\ncompile: {{precisions: [fp32, numpy]}}\n"):
        said = edgeml("build", built.project, "--json")
    assert said.code == 0, said.err
    (program,) = [variant for variant in said.json["variants"] if variant["name"] == "numpy"]
    assert program["verdict"] == "pass" and program["parity"]["label_flips"] == 0
    assert program["path"].endswith("numpy.program") and Path(program["path"]).read_bytes().startswith(b"EDGEMLP")
    assert "numpy" not in {board["variant"] for board in said.json["devices"].values()}
    verified = edgeml("verify", said.json["bundle"], "--json").json
    assert {variant["name"] for variant in verified["variants"]} == {"fp32", "numpy"} and verified["verdict"] == "pass"
    found = edgeml("bench", said.json["bundle"], "--variant", "numpy", "--seconds", "0.1", "--json").json
    assert found["measured"]["p50_ms"] > 0 and found["predicted"] is None
