"""What a real device measured is found again by the graph, and decides a build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeml.pipeline.measured import measurements_for
from edgeml.pipeline.run import CompileOptions, compile_model
from edgeml.registry import DeviceMeasurement, Registry
from tests.server.stand_ins import a_model

BOARD = "raspberry-pi-4"


def a_measurement(digest: str, **changes: Any) -> DeviceMeasurement:
    p50 = changes.pop("p50", 2.0)
    document = {
        "p50_ms": p50, "p90_ms": p50 * 1.1, "p99_ms": p50 * 1.2, "n": 100, "ci95_ms": [p50 * 0.99, p50 * 1.01],
        "valid": changes.pop("valid", True), "why": "", "settings": {"threads": changes.pop("threads", 1)},
        "environment": {"cores": 4}, "rows": changes.pop("rows", 1),
        "scenario": changes.pop("scenario", "single-stream"),
    }  # fmt: skip
    told = {"bench": "b1", "device": "pi-7", "board": BOARD, "model": "m", "variant": "fp32", "digest": digest}
    return DeviceMeasurement(**{**told, "time": 1.0, "agent": "0.1", "hardware": {}, "document": document, **changes})


def test_the_newest_valid_measurement_of_a_graph_counts_under_the_name_it_has_here(tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "registry")
    registry.benches.keep(
        [
            a_measurement("a", bench="b1", time=1.0, p50=1.0),
            a_measurement("a", bench="b2", time=2.0, p50=2.0),
            a_measurement("a", bench="b3", time=3.0, p50=3.0, valid=False),
            a_measurement("a", bench="b4", board="raspberry-pi-5", p50=0.5),
            a_measurement("b", bench="b5", variant="int8"),
        ]
    )
    found = measurements_for(registry, {"a": "mine"})
    assert {board: {name: one.p50 for name, one in here.items()} for board, here in found.items()} == {
        BOARD: {"mine": 2.0},
        "raspberry-pi-5": {"mine": 0.5},
    }
    assert found[BOARD]["mine"].environment == {"cores": 4, "device": "pi-7", "board": BOARD, "hardware": {}}
    assert set(measurements_for(registry, ["a", "b"], board=BOARD)[BOARD]) == {"fp32", "int8"}
    assert measurements_for(registry, ["c"]) == {}


def test_what_a_device_measured_decides_a_build_if_it_ran_as_many_threads(tmp_path: Path) -> None:
    registry, model = Registry.open(tmp_path / "registry"), tmp_path / "toy.onnx"
    model.write_bytes(a_model().data)
    options = CompileOptions(boards=(BOARD,), output=tmp_path / "out", precisions=("fp32",))
    first = compile_model(model, registry, options)
    assert first["devices"][BOARD]["latency_ms"]["method"] in ("prior", "emulated", "combined")
    digest = next(variant["digest"] for variant in first["variants"] if variant["name"] == "fp32")
    registry.benches.keep([a_measurement(digest, threads=4, bench="b1", p50=9.0)])
    assert compile_model(model, registry, options)["devices"][BOARD]["latency_ms"]["method"] in (
        "prior",
        "emulated",
        "combined",
    )
    registry.benches.keep([a_measurement(digest, threads=1, bench="b2", p50=7.0, time=2.0)])
    told = compile_model(model, registry, options)["devices"][BOARD]["latency_ms"]
    assert (told["method"], told["predicted"]) == ("measured", 7.0)


def test_what_was_asked_in_batches_is_not_compared_with_a_prediction_of_one_row(tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "registry")
    registry.benches.keep([a_measurement("a", scenario="offline", rows=64)])
    assert measurements_for(registry, ["a"])
    assert not measurements_for(registry, ["a"], threads=1)
