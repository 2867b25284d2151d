"""Commands on real data: what they print, what programs read, what a second build costs."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Command
from tests.networks import an_mlp


@pytest.fixture
def penguins(edgeml: Command, real_data: Callable[[str], Path], tmp_path: Path) -> Path:
    """A project over real rows, categories and missing values, written by `edgeml init`."""
    table = tmp_path / "penguins.csv.gz"
    table.write_bytes(gzip.compress(real_data("penguins/penguins.csv").read_bytes()))
    said = edgeml("init", tmp_path / "penguins", "--from", table, "--target", "species")
    assert said.code == 0, said.err
    return tmp_path / "penguins"


def test_from_a_table_to_predictions(edgeml: Command, penguins: Path, real_data: Callable[[str], Path]) -> None:
    built = edgeml("build", penguins, "--json")
    assert built.code == 0, built.err
    summary = built.json
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


def test_a_second_build_answers_from_the_first(edgeml: Command, penguins: Path) -> None:
    first, second = edgeml("build", penguins, "--json").json, edgeml("build", penguins, "--json").json
    assert second.pop("cached") is True
    assert second == first
    shown = edgeml("registry", "list", "--json").json
    assert [row["release"] for row in shown] == [first["release"]]


def test_a_changed_option_makes_a_new_run_but_no_new_training(edgeml: Command, penguins: Path) -> None:
    first = edgeml("build", penguins, "--json").json
    file = penguins / "edgeml.yaml"
    file.write_text(
        file.read_text(encoding="utf-8").replace("max_accuracy_drop: 0.01", "max_accuracy_drop: 0.5"), "utf-8"
    )
    second = edgeml("build", penguins, "--json").json
    assert second["run"] != first["run"]
    assert second["lineage"]["fitted"] == first["lineage"]["fitted"]
    assert second["timings_s"]["train"] < first["timings_s"]["train"]


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


def test_bench_and_devices_speak_to_programs(edgeml: Command, penguins: Path) -> None:
    bundle = edgeml("build", penguins, "--json").json["bundle"]
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


def test_people_get_a_table_and_the_verdict(edgeml: Command, penguins: Path) -> None:
    said = edgeml("build", penguins)
    assert said.code == 0
    assert "raspberry-pi-4: " in said.out and "fp32" in said.out and "report" in said.out
    assert said.out.strip().splitlines()[-1].split()[-1].endswith("report.html")
    assert edgeml("report").out.strip().endswith("report.html")


def test_ctrl_c_leaves_nothing_half_written(edgeml: Command, penguins: Path, tmp_path: Path) -> None:
    import os
    import signal
    import subprocess
    import sys
    import time

    environment = {**os.environ, "EDGEML_REGISTRY": str(tmp_path / "registry")}
    child = subprocess.Popen(
        [sys.executable, "-m", "edgeml", "build", str(penguins)], stderr=subprocess.PIPE, env=environment, text=True
    )
    time.sleep(4)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=30)
    assert child.returncode == 130 and "Traceback" not in said
    assert not list(penguins.glob("**/summary.json")) and not list(penguins.glob("**/.*.????????"))
    assert edgeml("build", penguins).code == 0


def test_a_board_calibrated_after_a_build_makes_the_next_one_choose_anew(
    edgeml: Command, penguins: Path, tmp_path: Path
) -> None:
    board = next(iter(edgeml("build", penguins, "--json").json["devices"]))
    (tmp_path / "own-devices").mkdir(exist_ok=True)
    (tmp_path / "own-devices" / f"{board}.calibration.json").write_text('{"schema": 0}')  # what no build may swallow
    said = edgeml("build", penguins)
    assert said.code == 1
    assert "calibrate again" in said.err


def test_a_numpy_program_is_built_proven_and_run_like_any_variant(edgeml: Command, penguins: Path) -> None:
    config = penguins / "edgeml.yaml"
    config.write_text(config.read_text() + "\ncompile: {precisions: [fp32, numpy]}\n", encoding="utf-8")
    built = edgeml("build", penguins, "--json")
    assert built.code == 0, built.err
    (program,) = [variant for variant in built.json["variants"] if variant["name"] == "numpy"]
    assert program["verdict"] == "pass" and program["parity"]["label_flips"] == 0
    assert program["path"].endswith("numpy.program") and Path(program["path"]).read_bytes().startswith(b"EDGEMLP")
    assert "numpy" not in {board["variant"] for board in built.json["devices"].values()}
    verified = edgeml("verify", built.json["bundle"], "--json").json
    assert {variant["name"] for variant in verified["variants"]} == {"fp32", "numpy"} and verified["verdict"] == "pass"
    found = edgeml("bench", built.json["bundle"], "--variant", "numpy", "--seconds", "0.1", "--json").json
    assert found["measured"]["p50_ms"] > 0 and found["predicted"] is None
