"""The example projects, by the commands their pages show, on the real data."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.cli.conftest import Command

EXAMPLES = Path(__file__).resolve().parents[2] / "docs/examples"
WISDM = "wisdm_v1_features/wisdm_transformed.csv.gz"


def shown(example: str) -> list[str]:
    """Return the shell blocks of an example's page."""
    page = (EXAMPLES / example / "README.md").read_text(encoding="utf-8")
    return re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL)


def test_activity_is_learned_across_the_phones_of_36_people(
    edgeml: Command, real_data: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEML_DATA", str(real_data(WISDM).parents[1]))
    shutil.copytree(EXAMPLES, tmp_path / "docs/examples", ignore=shutil.ignore_patterns(".edgeml"))
    (command,) = shown("activity")[0].splitlines()
    said = edgeml(*shlex.split(command)[1:])
    assert said.code == 0, said.err
    page = re.search(r"report  (.*\.html)", said.out)
    assert page, said.out
    told = json.loads((tmp_path / page[1]).with_suffix(".json").read_text(encoding="utf-8"))
    users = pd.read_csv(real_data(WISDM))["user"].nunique()
    assert len(told["shares"]) == users == 36 and len(told["rounds"]) == 60
    assert sum(told["shares"]) == told["rounds"][0]["rows"], "every training row lies on one device"
    assert 0.1 < told["skew"] < 0.5, "people differ in what they do"
    last = np.mean([done["metric"] for done in told["rounds"][-10:]])
    assert told["centralized"] > 0.78 and told["before"] < 0.4
    assert last > told["centralized"] - 0.02, "as near as benchmarks/federated_fields.py found, and rounds' noise"


def test_the_archive_of_activity_becomes_the_table_that_is_read(
    real_data: Callable[[str], Path], tmp_path: Path
) -> None:
    with gzip.open(real_data(WISDM), "rt", encoding="utf-8") as file:
        header, *rows = file.read().splitlines()[:50]
    attributes = [f'@attribute "{name}" numeric' for name in header.split(",")]
    attributes[1] = "@attribute user numeric"
    attributes[-1] = '@attribute "class" {"Walking", "Jogging"}'
    text = ["@relation activity", "", *attributes, "", "@data", *(re.sub(r",(\w+)$", r',"\1"', row) for row in rows)]
    (tmp_path / "WISDM_ar_v1.1_transformed.arff").write_text("\n".join(text) + "\n", encoding="utf-8")
    subprocess.run(["bash", "-ec", shown("activity")[1]], cwd=tmp_path, check=True)
    with gzip.open(tmp_path / WISDM, "rt", encoding="utf-8") as file:
        assert file.read().splitlines() == [header, *rows]
