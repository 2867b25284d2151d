"""Mixed precision: the operators that do the damage go back to float, and Ctrl-C keeps what was found."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeml import graph
from edgeml.artifacts import Rows, Skipped, Variant
from edgeml.quantize import Options, quantize
from edgeml.quantize.judge import Judge
from edgeml_runtime.session import Session
from tests import networks
from tests.quantize import graphs

ROOT = Path(__file__).resolve().parents[2]
SEARCH = """
import time
from edgeml.quantize import Options, quantize
from tests.quantize import graphs

stops = [{mark!r}]

def progress(message):
    print(message, flush=True)
    if stops and message.startswith(stops[0]):
        stops.clear()
        time.sleep(30)

model, rows = graphs.a_lopsided_mlp()
options = Options(task="classification", progress=progress)
for item in quantize(model, rows, ["fp32", "int8", "mixed", "fp16"], options):
    print("GOT", item.recipe, getattr(item, "reason", "made"), flush=True)
"""


def disagreement(model, rows, data) -> float:
    full, small = (Session(d).run(rows.inputs)["label"] for d in (model.data, data))
    return float(np.mean(full != small))


def test_the_layer_that_ruins_int8_goes_back_to_float():
    model, rows = graphs.a_lopsided_mlp()
    made = quantize(model, rows, ["int8-static-u8s8", "mixed"], Options(task="classification", max_drop=0.05))
    plain, *mixed = made[1:]
    assert disagreement(model, rows, plain.model.data) > 0.15
    assert [item.recipe for item in mixed] == ["mixed-u8s8", "mixed-s8s8"]
    for item in mixed:
        assert isinstance(item, Variant)
        assert disagreement(model, rows, item.model.data) <= 0.05
        macs = graph.cost(item.model).macs_by_class
        assert macs["gemv"] == 8 * 32
        assert macs[f"gemv.{item.recipe[-4:]}"] == 32 * 32 + 32 * 3


def test_the_metric_on_the_target_is_the_bound_when_there_is_one():
    model, rows = graphs.a_lopsided_mlp()
    rows = Rows(rows.inputs, Session(model.data).run(rows.inputs)["label"])
    said = []
    options = Options(task="classification", metric="accuracy", max_drop=0.02, progress=said.append)
    assert isinstance(quantize(model, rows, ["mixed"], options)[1], Variant)
    assert "2 of 3 operators in int8, accuracy worsens by" in said[-1]


def test_where_plain_int8_holds_the_bound_nothing_is_mixed():
    made = quantize(networks.an_mlp(), networks.some_rows(), ["mixed"], Options(max_drop=0.05))[1]
    assert isinstance(made, Skipped)
    assert "plain int8 holds the bound with all 2 operators" in made.reason


def test_a_bound_that_nothing_holds_says_by_how_much_it_is_missed():
    model, rows = graphs.a_lopsided_mlp()
    made = quantize(model, rows, ["mixed"], Options(task="classification", max_drop=-1.0))[1]
    assert isinstance(made, Skipped)
    assert "no mix of int8 and float holds the bound even with one operator in int8" in made.reason
    assert "-1 is allowed" in made.reason


def test_a_budget_that_is_over_ends_the_search_with_a_sentence():
    model, rows = graphs.a_lopsided_mlp()
    made = quantize(model, rows, ["mixed"], Options(task="classification", budget_s=0.0))[1]
    assert isinstance(made, Skipped)
    assert "before the budget ended" in made.reason


def test_a_tensor_model_is_judged_by_its_distance():
    model = graphs.an_attention()
    judge = Judge(model, Rows(graph.random_rows(model, 40)), Options())
    assert (judge.drop(model.data), judge.limit, judge.unit) == (0.0, 0.05, "agreement of the scores")


@pytest.mark.parametrize(
    ("mark", "kept"),
    [
        ("mixed: what", ["mixed no mix of int8 and float holds the bound", "fp16 stopped by Ctrl-C"]),
        ("mixed: 2 of 3", ["mixed-u8s8 made", "mixed-s8s8 made", "fp16 stopped by Ctrl-C"]),
    ],
)
def test_ctrl_c_ends_a_search_and_keeps_what_was_found(mark, kept):
    code, rest = interrupted_at(mark)
    assert code == 0
    assert "GOT fp32 made" in rest
    assert "GOT int8-static-u8s8 made" in rest
    for line in kept:
        assert f"GOT {line}" in rest, rest


def test_ctrl_c_where_nothing_is_searched_ends_all():
    code, rest = interrupted_at("int8-static-s8s8")
    assert code == -signal.SIGINT
    assert "GOT" not in rest


def interrupted_at(mark: str) -> tuple[int, str]:
    """Return how a process ends, and what it still says, that gets a Ctrl-C while it says `mark`."""
    code = SEARCH.replace("{mark!r}", repr(mark))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdout is not None
        try:
            while not (line := child.stdout.readline()).startswith(mark):
                assert line, "the search ended before it could be stopped"
            os.kill(child.pid, signal.SIGINT)
            rest = child.communicate(timeout=30)[0]
        finally:
            child.kill()
    return child.returncode, rest
