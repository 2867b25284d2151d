"""`edgeml federate --simulate`: what it prints, what programs read, what it leaves behind, how it ends."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from edgeml.registry import Heartbeat, Registry
from tests.cli.conftest import Command
from tests.server.agents import a_release

PROJECT = """\
name: wine
task: classification
data: {train: "sklearn:wine"}
search: {metric: accuracy, estimators: [mlp], trials: 1, folds: 2}
track: {mlflow: off}
federated: {rounds: 6}
"""


@pytest.fixture
def wine(tmp_path: Path) -> Path:
    folder = tmp_path / "wine"
    folder.mkdir()
    (folder / "edgeml.yaml").write_text(PROJECT, encoding="utf-8")
    return folder


def test_rounds_over_virtual_devices_and_their_report(edgeml: Command, wine: Path) -> None:
    words = ["--partition", "dirichlet:1", "--strategy", "ditto", "--held-out", "0.2"]
    words += ["--byzantine", "0.2", "--attack", "nan"]
    said = edgeml("federate", wine, "--simulate", 6, *words, "--json")
    assert said.code == 0, said.err
    told = said.json
    assert [done["round"] for done in told["rounds"]] == list(range(1, 7)) and told["devices"] == 6
    assert {"participants", "metric", "loss", "bytes_up", "bytes_down", "seconds"} <= told["rounds"][0].keys()
    assert told["after"] > told["before"] and told["centralized"] > 0.8 and told["released"] is None
    assert told["rounds"][0]["rows"] < sum(told["shares"]), "a fifth of every device's rows is held out"
    assert 0 <= told["personal"]["own"] <= 1 and 0 < told["skew"] < 1
    page = Path(told["report"])
    assert page.read_text(encoding="utf-8").lstrip().startswith("<!doctype html>")
    assert json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))["rounds"] == told["rounds"]
    assert said.err.count("round ") >= 6, "a line a round when piped"
    assert said.err.count("not taken: ") == 6 and all(len(done["participants"]) == 5 for done in told["rounds"])

    again = edgeml("federate", wine, "--simulate", 6, *words)
    assert again.code == 0 and "6 rounds of 6 devices" in again.out and str(page) in again.out
    assert f"{told['after']:.4f}" in again.out, "the same seed gives the same federation"


@pytest.mark.slow
def test_private_rounds_say_what_they_cost(edgeml: Command, wine: Path) -> None:
    words = ["--private", "server", "--clip-norm", "2", "--noise", "0.5", "--rounds", "3"]
    said = edgeml("federate", wine, "--simulate", 6, *words, "--json")
    assert said.code == 0, said.err
    spent = [done["epsilon"] for done in said.json["rounds"]]
    assert 5 < spent[0] < spent[1] < spent[2] and "epsilon" in said.err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--simulate", "4", "--partition", "dirichlet:x"], 1, "dirichlet:0.1"),
        (["--simulate", "4", "--strategy", "fedx"], 1, "unknown strategy 'fedx'"),
        (["--simulate", "4", "--compress", "zip"], 1, "zip"),
        (["--simulate", "4", "--strategy", "bulyan", "--byzantine", "0.5"], 1, "needs 11"),
        (["--simulate", "4000"], 1, "4000 devices and"),
        (["--simulate", "0"], 2, "0 is not in the range"),
        (["--simulate", "4", "--learning-rate", "0"], 2, "0.0 is not in the range x>0"),
        (["--simulate", "4", "--dropouts", "0.5"], 1, "dropouts die within secure aggregation: give secure"),
        (["--simulate", "4", "--noise", "1"], 2, "--noise is for --private server or device"),
        (["--simulate", "4", "--private", "server", "--noise", "0"], 1, "noise 0.0: choose a number above 0"),
        (["--simulate", "4", "--private", "device", "--compress", "sign"], 1, "exclude each other"),
        (["--partition", "iid"], 2, "--partition is for --simulate N"),
        (["--simulate", "4", "--async", "3", "--strategy", "scaffold"], 1, "exclude each other"),
        (["--speeds", "1"], 2, "--speeds is for --simulate N"),
        (["--simulate", "4", "--to", "all"], 2, "--to is for a fleet, not for --simulate"),
        (["--strategy", "fedbest"], 1, "unknown strategy 'fedbest'; known: fedavg"),
    ],
)
def test_what_cannot_be_is_one_line(edgeml: Command, wine: Path, words: list[str], code: int, message: str) -> None:
    said = edgeml("federate", wine, *words)
    assert said.code == code and message in said.error, said.err


def test_what_is_about_the_cohort_arrives_where_a_federation_wants_it(edgeml: Command, tmp_path: Path) -> None:
    path = tmp_path / "registry"
    registry = Registry.open(path)
    registry.add_release(a_release(), summary={}, run_dir="")
    registry.fleet.beat(Heartbeat(pid=os.getpid(), host="127.0.0.1", port=1883, time=time.time() + 60))
    words = ["--to", "board:pi", "--target", 5, "--spread", 3, "--async", 4, "--alone", "--max-abandoned", 2]
    said = edgeml("federate", "toy", *words, "--registry", path, "--json")
    assert said.code == 0, said.err
    options = registry.federation(said.json["federation"]).options
    assert (options.cohort.selector, options.cohort.target, options.patience.spread) == ("board:pi", 5, 3.0)
    assert (options.mode, options.buffer.size, options.ask_fleet, options.max_abandoned) == ("async", 4, False, 2)


def test_rows_are_dealt_by_a_column_before_anything_is_trained(edgeml: Command, tmp_path: Path) -> None:
    rows = "".join(f"{'abcdef'[i % 6]},{i % 7},{i % 5},{'uv'[i % 7 > 3]}\n" for i in range(120))
    (tmp_path / "rows.csv").write_text("site,size,weight,kind\n" + rows, encoding="utf-8")
    text = PROJECT.replace('"sklearn:wine"', "rows.csv, target: kind")
    (tmp_path / "edgeml.yaml").write_text(text, encoding="utf-8")
    said = edgeml("federate", tmp_path, "--simulate", 6, "--partition", "site", "--json")
    assert said.code == 0 and len(said.json["shares"]) == 6, "rows of every site are left to learn from"
    (tmp_path / "edgeml.yaml").write_text(text.replace("kind}", "kind, group: site}"), encoding="utf-8")
    apart = edgeml("federate", tmp_path, "--simulate", 6, "--partition", "site")
    assert apart.code == 1 and "left to learn from" in apart.error and "mlp" not in apart.err


def test_what_went_wrong_on_purpose_and_what_was_spent_is_told(edgeml: Command, wine: Path) -> None:
    words = ["--silent", "0.2", "--held-out", "0.2", "--private", "server", "--rounds", 2]
    said = edgeml("federate", wine, "--simulate", 5, *words)
    assert said.code == 0 and "with the shared" in said.out and "their own models" not in said.out, said.err
    page = Path(said.out.split("report  ")[1].strip())
    told = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert told["personal"]["own"] is None and f"epsilon {told['rounds'][-1]['epsilon']:.2f}" in said.out
    assert "20% do not answer" in page.read_text(encoding="utf-8")
