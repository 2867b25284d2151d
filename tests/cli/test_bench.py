"""`edgeml bench`: what it prints and what programs read, on real files; no test depends on how fast they run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.networks import a_conv_net, an_mlp

FAST = ("--seconds", "0.1")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "mlp.onnx"
    path.write_bytes(an_mlp().data)
    return path


def test_a_model_is_measured_with_all_that_a_decision_needs(edgeml: Command, model: Path) -> None:
    found = edgeml("bench", model, *FAST, "--json").json["measured"]
    assert found["p50_ms"] <= found["p90_ms"] <= found["p99_ms"]
    assert {*found["intervals_ms"], *found["unsure"]} == {"p50", "p90", "p99", "p999"}
    assert (found["p999_ms"] is None) is ("p999" in found["unsure"])
    assert found["overhead"]["predict_ms"] > 0
    assert found["memory_mb"]["peak"] > found["memory_mb"]["anonymous"]
    assert found["cold_start"]["import_ms"] > 0 and found["operators"]
    assert found["energy_mj"] is None or found["energy_mj"] > 0
    assert found["valid"] is (found["why"] == "")


def test_people_read_intervals_memory_and_where_time_goes(edgeml: Command, model: Path) -> None:
    said = edgeml("bench", model, *FAST, "--device", "raspberry-pi-4")
    assert said.code == 0, said.err
    for words in ("95 % interval", "p99.9", "1 row a query", "first answer", "time goes to", "raspberry-pi-4", "prior"):
        assert words in said.out


@pytest.mark.parametrize(("scenario", "rows"), [("multi-stream", 8), ("offline", 64), ("paced", 1)])
def test_scenarios_can_be_asked_for(edgeml: Command, model: Path, scenario: str, rows: int) -> None:
    words = ("--scenario", scenario, "--rate", "200", "--measure", "--json")
    found = edgeml("bench", model, *FAST, *words).json
    assert (found["measured"]["scenario"], found["measured"]["rows"]) == (scenario, rows)
    assert found["predicted"] is None


def test_a_sustained_run_shows_its_curve(edgeml: Command, model: Path) -> None:
    said = edgeml("bench", model, "--sustained", "0.5s", "--measure")
    assert "ms at the end" in said.out and any(bar in said.out for bar in "▁█")


def test_settings_are_searched_when_asked(edgeml: Command, model: Path) -> None:
    found = edgeml("bench", model, *FAST, "--measure", "--tune", "--json").json["measured"]["tuned"]
    assert found["settings"].keys() >= {"threads", "graph_level", "arena", "prepacking", "spinning"}
    assert len(found["trials"]) >= 3


def test_two_models_are_compared_in_turns(edgeml: Command, model: Path, tmp_path: Path) -> None:
    other = tmp_path / "conv.onnx"
    other.write_bytes(a_conv_net().data)
    found = edgeml("bench", "compare", model, other, *FAST, "--json").json
    low, high = found["ratio95"]
    assert low <= found["ratio"] <= high and found["pairs"] >= 30
    said = edgeml("bench", "compare", model, other, *FAST)
    assert "mlp.onnx" in said.out and ("is faster" in said.out or "no " in said.out)


@pytest.fixture
def results(edgeml: Command, model: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two results of one model; the second may be changed by the test."""
    for name in ("a.json", "b.json"):
        assert edgeml("bench", model, *FAST, "--measure", "-o", tmp_path / name).code == 0
        document = json.loads((tmp_path / name).read_text())
        document["measured"] |= {"valid": True, "why": ""}  # whatever this machine was doing
        (tmp_path / name).write_text(json.dumps(document))
    return tmp_path / "a.json", tmp_path / "b.json"


def test_results_of_alike_runs_are_compared(edgeml: Command, results: tuple[Path, Path]) -> None:
    said = edgeml("bench", "compare", *results)
    assert said.code == 0, said.err
    assert "measured apart" in said.out


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"scenario": "offline"}, "scenario: single-stream in a.json, offline in b.json"),
        ({"settings": {"threads": 4}}, "settings: "),
        ({"environment": {"onnxruntime": "1.19.2"}}, "cpu_model: "),
        ({"valid": False, "why": "throttled"}, "is INVALID (throttled): measure it again"),
    ],
)
def test_results_under_other_conditions_are_refused(
    edgeml: Command, results: tuple[Path, Path], change: dict[str, object], why: str
) -> None:
    document = json.loads(results[1].read_text())
    document["measured"] |= change
    results[1].write_text(json.dumps(document))
    said = edgeml("bench", "compare", *results)
    assert said.code == 3
    assert why in said.err and len(said.err.strip().splitlines()) <= 2


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (("{model}", "--device", "raspbery-pi-4"), 1, "did you mean 'raspberry-pi-4'?"),
        (("{model}", "--sustained", "4d"), 2, "write it like 90s, 30m or 1h"),
        (("{model}", "--sustained", "48h"), 2, "at most 24h"),
        (("{model}", "--measure", "--predict-only"), 2, "give one of them"),
        (("{model}", "--rate", "0"), 2, "--rate"),
        (("compare", "{model}", "{text}"), 1, "give two models, or two results"),
        (("compare", "{text}", "{text}"), 1, "is no result of `edgeml bench -o`"),
        (("compare", "{model}", "{model}.gone"), 1, "check the path"),
    ],
)
def test_bad_words_get_one_clear_line(
    edgeml: Command, model: Path, *, words: tuple[str, ...], code: int, why: str
) -> None:
    text = model.with_suffix(".json")
    text.write_text('{"measured": null}')
    said = edgeml("bench", *(word.format(model=model, text=text) for word in words))
    assert said.code == code, said.err
    assert why.lower() in said.err.lower()
    assert "Traceback" not in said.err
