"""`edgeml bench`: what it prints and what programs read, on real files; no test depends on how fast they run."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeml.cli import edgeml as main
from edgeml.cli.bench_text import verdicts
from edgeml.errors import VerificationError
from edgeml.files import read_bundle, write_bundle
from edgeml.pipeline.benchmark import BenchOptions, bench_path
from edgeml.pipeline.versus import compare_paths
from edgeml.registry import Registry
from tests.cli.conftest import Command, Said
from tests.networks import a_conv_net, an_mlp
from tests.test_bundle import a_bundle

FAST = ("--seconds", "0.1")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Return a function that runs `edgeml` in this very process, where none of it is about processes."""
    monkeypatch.setenv("EDGEML_REGISTRY", str(tmp_path / "registry"))

    def run(*words: object, cwd: Path | None = None) -> Said:
        done = CliRunner().invoke(main, [str(word) for word in words])
        return Said(done.exit_code, done.stdout, done.stderr)

    return run


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
    table = ("95 % interval", "p99.9", "1 row a query", "anonymous", "time goes to", "raspberry-pi-4", "prior")
    sentences = ("the first answer", "rows a second", "the call itself", "energy")
    for words in (*table, *sentences):
        assert words in said.out


@pytest.mark.parametrize(("scenario", "rows"), [("multi-stream", 8), ("offline", 64), ("paced", 1)])
def test_scenarios_can_be_asked_for(here: Command, model: Path, scenario: str, rows: int) -> None:
    words = ("--scenario", scenario, "--rate", "200", "--measure", "--json")
    found = here("bench", model, *FAST, *words).json
    assert (found["measured"]["scenario"], found["measured"]["rows"]) == (scenario, rows)
    assert found["predicted"] is None


def test_a_sustained_run_shows_its_curve(here: Command, model: Path) -> None:
    said = here("bench", model, "--sustained", "0.5s", "--measure")
    assert "ms at the end" in said.out and any(bar in said.out for bar in "▁█")


def test_settings_are_searched_when_asked_and_kept_in_the_bundle(here: Command, tmp_path: Path) -> None:
    write_bundle(tmp_path / "run/bundle", a_bundle(), Ed25519PrivateKey.generate())
    (tmp_path / "run/summary.json").write_text('{"model": "digits"}')
    before = read_bundle(tmp_path / "run/bundle").manifest
    words = ("--variant", "fp32", "--measure", "--tune", "--keep", "--registry", tmp_path / "registry", "--json")
    found = here("bench", tmp_path / "run/bundle", "--seconds", "0.02", *words).json
    tuned = found["measured"]["tuned"]
    assert tuned["settings"].keys() >= {"threads", "graph_level", "arena", "prepacking", "external_data", "io_binding"}
    assert len(tuned["trials"]) >= 5
    after = read_bundle(tmp_path / "run/bundle").manifest
    assert asdict(after.variants[0].session) == tuned["settings"]
    assert after.release == found["release"] == json.loads((tmp_path / "run/summary.json").read_text())["release"]
    assert (after.release == before.release) is (after.variants[0].session == before.variants[0].session)
    with closing(Registry.open(tmp_path / "registry")) as registry:
        assert registry.find(f"{after.model}@{after.release[:8]}").release == after.release


def test_settings_are_kept_only_of_what_was_tuned_in_a_run(here: Command, model: Path) -> None:
    assert here("bench", model, "--keep").code == 2
    said = here("bench", model, *FAST, "--measure", "--tune", "--keep", "--seconds", "0.02")
    assert said.code == 1 and "only what `build` or `compile` made keeps settings" in said.err


def test_two_models_are_compared_in_turns(edgeml: Command, model: Path, tmp_path: Path) -> None:
    other = tmp_path / "conv.onnx"
    other.write_bytes(a_conv_net().data)
    found = edgeml("bench", "compare", model, other, *FAST, "--json").json
    low, high = found["ratio95"]
    assert low <= found["ratio"] <= high and found["pairs"] >= 30
    assert "is faster" in found["verdict"] or "no " in found["verdict"]


def told(**changes: object) -> dict[str, Any]:
    """Return what was measured of a variant, as far as the sentences need it."""
    usual: dict[str, Any] = {"p50_ms": 2.0, "ci95_ms": [1.98, 2.02], "p90_ms": 2.5, "rows_per_s": 490.0, "rows": 1}
    return usual | {"n": 5000, "valid": True, "unsure": (), "energy_mj": None, "overhead": None} | changes


def test_a_sentence_says_what_a_variant_is_worth() -> None:
    quick = told(p50_ms=1.0, ci95_ms=[0.99, 1.01], energy_mj=3.21)
    lines = verdicts({"fp32": told(), "int8": quick, "other": told(p50_ms=2.01, ci95_ms=[1.99, 2.03])})
    assert lines[0] == "fp32: 2 ms a query, 9 of 10 within 2.5 ms, 490 rows a second; energy not measured."
    assert "2x as fast as fp32; 3.21 mJ a query" in lines[1]
    assert "no difference to fp32 is proven" in lines[2]


def test_what_is_invalid_or_unsure_is_never_said_to_be_faster() -> None:
    quick = told(p50_ms=1.0, ci95_ms=[0.99, 1.01], valid=False, unsure=("p99", "p999"), n=120)
    lines = verdicts({"fp32": told(), "int8": quick})
    assert "no difference to fp32 is proven" in lines[1] and "Not to be relied on" in lines[1]
    assert lines[2].strip().startswith("120 queries are too few to be sure of p99 and p99.9")


def test_a_call_that_is_most_of_a_small_model_is_told_apart() -> None:
    calls = {"predict_ms": 0.0031, "loop_ms": 0.0001, "run_ms": 0.007}
    lines = verdicts({"fp32": told(p50_ms=0.0049, ci95_ms=[0.0048, 0.005], overhead=calls)})
    assert "of it 3.1 us are the call itself" in lines[1]


def test_interrupting_a_long_run_ends_it_at_once_with_nothing_written(model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgeml", "bench", str(model), "--sustained", "30m", "-o", str(tmp_path / "out")]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None and "at least 1800 s" in running.stderr.readline()
    time.sleep(2)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130 and not out and "Traceback" not in err
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def result() -> str:
    """The document of a real benchmark, taken once."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mlp.onnx"
        path.write_bytes(an_mlp().data)
        document = bench_path(path, BenchOptions(seconds=0.05, predict=False))
    document["measured"] |= {"valid": True, "why": ""}  # whatever this machine was doing
    return json.dumps(document)


@pytest.fixture
def results(result: str, tmp_path: Path) -> tuple[Path, Path]:
    """Two results of one model; the second may be changed by the test."""
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(result)
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
    results: tuple[Path, Path], change: dict[str, object], why: str
) -> None:
    document = json.loads(results[1].read_text())
    document["measured"] |= change
    results[1].write_text(json.dumps(document))
    with pytest.raises(VerificationError, match=re.escape(why)) as refused:
        compare_paths(*results, threads=1, seconds=0.1, progress=lambda stage, line: None)
    assert refused.value.exit_code == 3


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (("{model}", "--device", "raspbery-pi-4"), 1, "did you mean 'raspberry-pi-4'"),
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
