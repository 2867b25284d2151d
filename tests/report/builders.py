"""A realistic summary and a realistic story, as `edgeml build --json` and the demo write them."""

from __future__ import annotations

from typing import Any


def a_measurement(**changes: Any) -> dict[str, Any]:
    """What edgeml_runtime.measure.Benchmark.plain() says of one model."""
    environment = {"cpu_model": "Cortex-A72", "cores": 4, "machine": "aarch64", "onnxruntime": "1.32.0"}
    return {
        "p50_ms": 4.0,
        "p90_ms": 4.4,
        "p99_ms": 5.0,
        "p999_ms": 6.0,
        "mean_ms": 4.1,
        "min_ms": 3.8,
        "max_ms": 6.5,
        "n": 900,
        "ci95_ms": [3.95, 4.05],
        "cpu_ms": 4.0,
        "valid": True,
        "why": "",
        "energy_mj": None,
        "intervals_ms": {"p50": [3.95, 4.05], "p90": [4.3, 4.5], "p99": [4.8, 5.4], "p999": [5.5, 6.5]},
        "scenario": "single-stream",
        "rows": 1,
        "rows_per_s": 243.0,
        "warmup_s": 0.2,
        "samples_ms": [3.8 + 0.01 * k for k in range(60)],
        "series": [[0.2 * k, 4.0 + 0.02 * k, 4.4 + 0.03 * k] for k in range(8)],
        "environment": environment,
        "conditions": {"throttled": 0},
        "readings": [
            {
                "at_s": 0.2 * k,
                "running": 1 + k % 2,
                "throttled": 4 * (k > 6),
                "frequency_khz": 1_800_000 - 300_000 * (k > 5),
            }
            for k in range(9)
        ],
        "settings": {"threads": 1, "graph_level": "all", "spinning": False, "arena": True, "prepacking": True},
        "memory_mb": {"peak": 70.0, "steady": 66.0, "anonymous": 30.0, "bare": 52.0},
        "cold_start": {"process_ms": 40.0, "import_ms": 300.0, "session_ms": 25.0, "first_ms": 6.0, "starts": 3},
        "operators": [
            {"name": f"node {k}", "operator": kind, "ms": 1.0 / (k + 1), "parameter_bytes": 900 * k}
            for k, kind in enumerate(("Conv", "Conv", "Gemm", "Relu", "Add"))
        ],
    } | changes


WORK = {
    "macs_by_class": {"conv": 40_000_000, "gemv": 1_000_000},
    "weights_by_class": {"conv": 400_000, "gemv": 4_000_000},
    "nodes": 60,
    "weight_bytes": 4_400_000,
    "activation_bytes": 900_000,
    "moved_bytes": 800_000,
    "tree_visits": 0,
    "inputs": 1,
    "unknown": {},
    "macs": 41_000_000,
}
PROFILE = {
    "title": "Raspberry Pi 4",
    "core": "Cortex-A72",
    "cores": 4,
    "frequency_ghz": 1.8,
    "ram_mb": 1024,
    "fp32_flops_per_cycle": 8,
    "int8_macs_per_cycle": 8,
    "bandwidth_mb_s": 2240,
    "l2_kb": 1024,
}


def a_result(variant: str = "fp32", board: str = "raspberry-pi-4", **changes: Any) -> dict[str, Any]:
    """One entry of what `edgeml bench -o` writes."""
    prediction = {"low": 4.0, "predicted": 8.0, "high": 16.0, "method": "prior", "coverage": 1.0, "notes": []}
    return {
        "variant": variant,
        "board": board,
        "measured": a_measurement(),
        "predicted": prediction,
        "memory_mb": {"predicted": 68.0, "steady": 66.0},
        "environment": {},
    } | changes


def a_benchmark(*results: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """What `edgeml bench -o` writes."""
    found = list(results) or [a_result()]
    return {
        "model": "net.onnx",
        **found[0],
        "results": found,
        "command": "edgeml bench net.onnx",
        "variants": {one["variant"]: {"bytes": 4_400_000, "digest": "ef" * 32, "work": WORK} for one in found},
        "boards": {"raspberry-pi-4": PROFILE},
    } | changes


def a_variant(name: str, **changes: Any) -> dict[str, Any]:
    latency = {"p50": 0.004, "p90": 0.0043, "p99": 0.009, "n": 9000, "ci95": [0.0039, 0.0041], "valid": True, "why": ""}
    return {
        "name": name,
        "bytes": 25475,
        "metrics": {"accuracy": 0.9557, "f1": 0.9551},
        "accuracy_drop": 0.0,
        "accuracy_drop_upper": 0.0025,
        "parity": {"max_abs": 4.8e-7, "label_flips": 0, "ties": 1, "rows": 359},
        "host_latency_ms": {**latency, "samples": [0.0038 + 0.00001 * k for k in range(40)]},
        "measurement": a_measurement(),
        "work": WORK,
        "digest": "ab" * 32,
        "path": f"runs/0123456789ab/variants/{name}.onnx",
        "verdict": "pass",
        "reason": "passes: 0 label flips in 359 rows",
    } | changes


def a_board(variant: str, **changes: Any) -> dict[str, Any]:
    return {
        "variant": variant,
        "latency_ms": {"low": 0.01, "predicted": 0.02, "high": 0.04, "method": "prior", "coverage": 1.0},
        "memory_mb": 62.0,
        "fits": True,
        "reason": f"{variant} fits: 0.02 ms",
        "limits": {"latency_p90_ms": 5.0, "memory_mb": None},
        "predictions": {
            "fp32": {"low": 0.01, "predicted": 0.02, "high": 0.04, "memory_mb": 62.0},
            "int8-static-u8s8": {"low": 0.008, "predicted": 0.016, "high": 0.03, "memory_mb": 61.0},
        },
        "profile": PROFILE,
    } | changes


def a_summary(**changes: Any) -> dict[str, Any]:
    return {
        "run": "0123456789ab",
        "model": "digits",
        "task": "classification",
        "release": "911724b8ca5d",
        "metric": "accuracy",
        "created": "2026-11-24T04:14:16+00:00",
        "command": "edgeml build digits",
        "dataset": {
            "rows": 1797,
            "train": 1150,
            "valid": 288,
            "test": 359,
            "digest": "cd" * 32,
            "target": "target",
            "features": [{"name": "pixel_0_0", "kind": "numeric"}],
            "classes": ["zero", "one"],
            "notes": ["column 'id' left out: it counts the rows"],
        },
        "metrics": {"source": {"accuracy": 0.9557}, "test": {"accuracy": 0.9557}},
        "search": [
            {"estimator": "mlp", "parameters": {"alpha": 0.001}, "score": 0.97, "spread": 0.01, "seconds": 1.2},
            {"estimator": "linear", "parameters": {"C": 1.0}, "score": 0.96, "spread": 0.02, "seconds": 0.2},
        ],
        "variants": [a_variant("fp32"), a_variant("int8-static-u8s8", bytes=13610)],
        "skipped": [{"name": "int8-static-s8s8", "reason": "nothing to quantize"}],
        "devices": {"raspberry-pi-4": a_board("fp32")},
        "default_variant": "fp32",
        "confusion": {"labels": ["zero", "one"], "counts": [[170, 9], [7, 173]]},
        "notes": [],
        "bundle": "runs/0123456789ab/bundle",
        "report": "runs/0123456789ab/report.html",
        "timings_s": {"data": 0.3, "train": 6.1},
        "lineage": {"dataset": "cd" * 32, "onnx": "ab" * 32},
        "environment": {"onnxruntime": "1.32.0", "machine": "x86_64"},
    } | changes


def a_story(**changes: Any) -> dict[str, Any]:
    done = {
        "participants": ["pi-1", "pi-2"],
        "loss": 0.4,
        "bytes_up": 72504,
        "bytes_down": 126132,
        "seconds": 0.12,
    }
    return {
        "before": {"metric": "accuracy", "value": 0.895, "validation": 0.87, "release": "911724b8ca5d"},
        "after": {"metric": "accuracy", "value": 0.95, "release": "01b7a632", "released": True, "reason": "released"},
        "rounds": [{"round": k, "metric": 0.88 + 0.02 * k, **done} for k in (1, 2, 3)],
        "agents_alone": [{"device": "pi-1", "rows": 399, "labels": {"0": 95}, "accuracy": 0.875}],
        "devices": [
            {
                "id": "pi-1",
                "board": "raspberry-pi-4",
                "release": "01b7a632",
                "variant": "fp32",
                "predictions": 80,
                "errors": 0,
                "p50_ms": 1.0,
                "p90_ms": None,
                "labels": {"0": 7},
            }
        ],
        "rollouts": [{"release": "01b7a632", "state": "SUCCEEDED", "devices": {"pi-1": "SUCCEEDED"}, "seconds": 0.5}],
    } | changes


def a_federation(rounds: int = 4, **changes: Any) -> dict[str, Any]:
    """What `edgeml federate --simulate --json` prints."""
    done = {
        "state": "closed",
        "participants": [f"device-{i}" for i in range(8)],
        "asked": 10,
        "refused": {"device-8": "its update is not finite"},
        "rejected": {"device-8": {"nan": 1}},
        "silent": ["device-9"],
        "rows": 1150,
        "bytes_up": 267_680,
        "bytes_down": 290_000,
        "seconds": 0.031,
    }
    course = [
        {
            "round": k,
            "metric": 0.4 + 0.1 * k,
            "loss": 2.0 / k,
            "loss_before": 2.1 / k,
            "loss_after": 1.2 / k,
            **done,
            "epsilon": 0.8 * k**0.5,
        }
        for k in range(1, rounds + 1)
    ]
    return {
        "model": "digits",
        "simulated": True,
        "metric": "accuracy",
        "rounds": course,
        "before": 0.11,
        "after": 0.4 + 0.1 * rounds,
        "centralized": 0.95,
        "personal": {"own": 0.97, "shared": 0.9},
        "released": None,
        "reason": "simulated: nothing is released",
        "devices": 10,
        "partition": "dirichlet:0.1, 10 devices",
        "strategy": "ditto",
        "shares": [300, 210, 180, 120, 100, 80, 70, 50, 30, 10],
        "skew": 0.61,
        "created": "2026-11-26T13:06:59+00:00",
        "command": "edgeml federate digits --simulate 10",
    } | changes
