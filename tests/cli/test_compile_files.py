"""Every kind of model file compiles with the one command of the README and gives the JSON that programs rely on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import lightgbm
import numpy as np
import pytest
import skops.io
import xgboost
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier

from edgeml import convert
from edgeml.convert.sklearn import convert as to_graph
from edgeml.errors import MissingExtra
from tests.cli.conftest import Command

ROWS, TARGET = load_iris(return_X_y=True)
ROWS = ROWS.astype(np.float32)
KEYS = {"run", "model", "task", "release", "dataset", "metrics", "variants", "devices", "bundle", "report", "timings_s"}
OF_VARIANT = {"name", "bytes", "metrics", "accuracy_drop", "accuracy_drop_upper", "parity", "host_latency_ms", "path"}


def forest() -> RandomForestClassifier:
    return RandomForestClassifier(5, random_state=0).fit(ROWS, TARGET)


def network() -> Any:
    try:
        convert.open_room("keras")
    except MissingExtra as error:
        pytest.skip(str(error))
    keras = sys.modules["keras"]
    layers = [keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3, "softmax")]
    return keras.Sequential(layers)


def boosted(path: Path) -> None:
    if path.suffix == ".txt":
        lightgbm.LGBMClassifier(n_estimators=3, verbose=-1).fit(ROWS, TARGET).booster_.save_model(path)
    else:
        xgboost.XGBClassifier(n_estimators=3).fit(ROWS, TARGET).get_booster().save_model(path)


FILES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "model.onnx": (lambda path: path.write_bytes(to_graph(forest(), {"numeric": 4}, source="iris").data), ()),
    "model.keras": (lambda path: network().save(path), ()),
    "model.h5": (lambda path: network().save(path), ()),
    "saved_model": (lambda path: network().export(str(path), verbose=False), ()),
    "model.joblib": (lambda path: joblib.dump(forest(), path), ("--trust",)),
    "model.skops": (lambda path: skops.io.dump(forest(), path), ("--trust",)),
    "model.txt": (boosted, ()),
    "model.json": (boosted, ()),
    "model.ubj": (boosted, ()),
}


QUICK = ("model.onnx", "model.keras", "model.joblib")  # what the others hold is read in tests/convert, too


@pytest.mark.extras
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in FILES])
def test_each_kind_of_file_compiles_with_one_command(name: str, edgeml: Command, tmp_path: Path) -> None:
    save, words = FILES[name]
    save(tmp_path / name)
    said = edgeml("compile", name, *words, "--device", "raspberry-pi-4", "--json")
    assert said.code == 0, said.err
    found = said.json
    assert found.keys() >= KEYS
    assert found["variants"][0].keys() >= OF_VARIANT | {"verdict", "reason"}
    assert (found["variants"][0]["name"], found["variants"][0]["verdict"]) == ("fp32", "pass")
    assert found["devices"]["raspberry-pi-4"].keys() >= {"variant", "latency_ms", "memory_mb", "fits", "reason"}
    assert Path(found["variants"][0]["path"]).stat().st_size == found["variants"][0]["bytes"]
    assert Path(found["report"]).is_file() and Path(found["bundle"]).is_dir()
