"""Releases that behave badly, tried in a child process: the parent always gets a typed answer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeml_runtime.children import SIGNALS
from edgeml_runtime.probe import ProbeResult, _outcome, probe
from edgeml_runtime.session import Session
from edgeml_runtime.slots import GOLDENS, GRAPH, Slot, Slots
from edgeml_runtime.wire import tensors
from edgeml_runtime.wire.manifest import Bounds, Manifest, ReleaseVariant, TensorSpec, blob_of
from edgeml_runtime.wire.signed import sign

ROWS = np.random.default_rng(5).normal(size=(20, 64)).astype(np.float32)
BOUNDS = Bounds(max_abs=1e-4, label_flips=0)


def a_slot(
    folder: Path, graph: bytes, answers: dict[str, np.ndarray], *, bounds: Bounds = BOUNDS, rows: np.ndarray = ROWS
) -> Slot:
    """Return an installed release of `graph`, which claims to have given `answers` for `rows`."""
    goldens = tensors.pack({"input.numeric": rows} | {f"fp32.{name}": array for name, array in answers.items()})
    (folder / "graph").write_bytes(graph)
    (folder / "goldens").write_bytes(goldens)
    manifest = Manifest(
        model="digits",
        release="r1",
        task="classification",
        created="2030-01-01T00:00:00Z",
        inputs=(TensorSpec(name="numeric", dtype="float32", shape=(-1, 64)),),
        outputs=(TensorSpec(name="label", dtype="int64", shape=(-1,)),),
        variants=(ReleaseVariant(name="fp32", graph=blob_of(graph), bounds=bounds),),
        default_variant="fp32",
        boards={},
        goldens=blob_of(goldens),
    )
    envelope = sign(manifest.to_document(), Ed25519PrivateKey.generate())
    return Slots(folder / "slots").install(envelope, {GRAPH: folder / "graph", GOLDENS: folder / "goldens"})


def endless(models: SimpleNamespace) -> bytes:
    """Return a model that counts to a billion before it answers."""
    body = "edgeml: count"
    helper, tensor = models.onnx.helper, models.onnx.TensorProto
    loop = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["sum", "sum"], ["double"]),
            helper.make_node("Tanh", ["double"], ["next"]),
        ],
        body,
        [
            helper.make_tensor_value_info("i", tensor.INT64, []),
            helper.make_tensor_value_info("go", tensor.BOOL, []),
            helper.make_tensor_value_info("sum", tensor.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", tensor.BOOL, []),
            helper.make_tensor_value_info("next", tensor.FLOAT, None),
        ],
    )
    nodes = [models.node("Loop", ["times", "", "numeric"], ["probabilities"], body=loop)]
    data: bytes = models.model(
        nodes,
        [("numeric", models.FLOAT, ["rows", 64])],
        outputs=[("probabilities", models.FLOAT, ["rows", 64])],
        weights={"times": np.array(10**9, np.int64)},
    )
    return data


def test_a_good_release_passes_with_its_numbers(models: SimpleNamespace, tmp_path: Path) -> None:
    graph = models.mlp()
    result = probe(a_slot(tmp_path, graph, Session(graph).run({"numeric": ROWS})))
    assert result.ok, result
    assert (result.reason, result.label_flips) == ("", 0)
    assert 0 <= result.max_abs <= BOUNDS.max_abs
    assert result.load_ms > 0
    assert result.p50_ms > 0


def test_a_graph_that_takes_one_row_is_replayed_row_by_row(models: SimpleNamespace, tmp_path: Path) -> None:
    expected = Session(models.mlp()).run({"numeric": ROWS})
    result = probe(a_slot(tmp_path, models.mlp(rows=1), expected))
    assert result.ok, result


def test_flipped_labels_are_counted(models: SimpleNamespace, tmp_path: Path) -> None:
    graph = models.mlp()
    answers = Session(graph).run({"numeric": ROWS})
    answers["label"][:3] = (answers["label"][:3] + 1) % 10
    result = probe(a_slot(tmp_path, graph, answers, bounds=Bounds(max_abs=1e-4, label_flips=2)))
    assert (result.ok, result.reason, result.label_flips) == (False, "LabelFlips", 3)
    assert result.detail == "3 labels differ from the recorded ones, 2 may"


def test_answers_that_drifted_are_measured(models: SimpleNamespace, tmp_path: Path) -> None:
    graph = models.mlp()
    answers = Session(graph).run({"numeric": ROWS})
    answers["probabilities"] = answers["probabilities"] + np.float32(0.01)
    result = probe(a_slot(tmp_path, graph, answers))
    assert (result.ok, result.reason) == (False, "OutOfBounds")
    assert result.max_abs == pytest.approx(0.01, rel=0.01)


def test_nan_where_a_number_was_recorded_is_refused(models: SimpleNamespace, tmp_path: Path) -> None:
    answers = Session(models.mlp()).run({"numeric": ROWS})
    result = probe(a_slot(tmp_path, models.mlp(scale=float("nan")), answers))
    assert (result.ok, result.reason) == (False, "NotFinite")
    assert "probabilities: 200 of 200 values are NaN or infinite here" in result.detail


def test_nan_where_nan_was_recorded_is_the_right_answer(models: SimpleNamespace, tmp_path: Path) -> None:
    rows = ROWS.copy()
    rows[0, 0] = np.nan
    graph = models.mlp()
    result = probe(a_slot(tmp_path, graph, Session(graph).run({"numeric": rows}), rows=rows))
    assert result.ok, result


def test_outputs_that_are_not_the_recorded_ones_are_refused(models: SimpleNamespace, tmp_path: Path) -> None:
    result = probe(a_slot(tmp_path, models.mlp(), {"embedding": np.zeros((20, 4), np.float32)}))
    assert (result.reason, result.detail) == ("OutputMismatch", "embedding is absent, recorded (20, 4)")


def test_a_release_without_recorded_answers_is_refused(models: SimpleNamespace, tmp_path: Path) -> None:
    result = probe(a_slot(tmp_path, models.mlp(), {}))
    assert (result.ok, result.reason) == (False, "NoGoldens")


def test_rows_that_do_not_fit_are_refused(models: SimpleNamespace, tmp_path: Path) -> None:
    result = probe(a_slot(tmp_path, models.mlp(features=32), {"label": np.zeros(20, np.int64)}))
    assert (result.ok, result.reason) == (False, "ShapeMismatch")
    assert "(rows, 32), got (20, 64)" in result.detail


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    result = probe(a_slot(tmp_path, b"\x00not a model" * 50, {"label": np.zeros(20, np.int64)}))
    assert (result.ok, result.reason) == (False, "ModelRefused")


def test_a_variant_nobody_published_is_refused(models: SimpleNamespace, tmp_path: Path) -> None:
    result = probe(a_slot(tmp_path, models.mlp(), {"label": np.zeros(20, np.int64)}), "int4")
    assert (result.reason, result.detail) == ("NoSuchVariant", "release r1 has no 'int4'")


def test_a_model_too_big_for_the_memory_is_refused(models: SimpleNamespace, tmp_path: Path) -> None:
    nodes = [models.node("Expand", ["numeric", "shape"], ["big"]), models.node("ReduceSum", ["big"], ["total"])]
    graph = models.model(
        nodes,
        [("numeric", models.FLOAT, ["rows", 64])],
        outputs=[("total", models.FLOAT, [1, 1, 1])],
        weights={"shape": np.array([1 << 20, 1, 1], np.int64)},
    )
    result = probe(a_slot(tmp_path, graph, {"total": np.zeros(1, np.float32)}), memory_bytes=512 << 20)
    assert (result.ok, result.reason) == (False, "OutOfMemory"), result


@pytest.mark.fault
def test_a_model_that_never_ends_is_stopped(models: SimpleNamespace, tmp_path: Path) -> None:
    slot = a_slot(tmp_path, endless(models), {"probabilities": np.zeros((20, 64), np.float32)})
    result = probe(slot, timeout_s=2)
    assert (result.ok, result.reason) == (False, "Timeout")
    assert children() == []


@pytest.mark.fault
@pytest.mark.parametrize("number", [signal.SIGILL, signal.SIGKILL, signal.SIGSEGV], ids=lambda s: s.name)
def test_a_child_that_dies_by_a_signal_is_explained(
    models: SimpleNamespace, tmp_path: Path, number: signal.Signals
) -> None:
    slot = a_slot(tmp_path, endless(models), {"probabilities": np.zeros((20, 64), np.float32)})
    results: list[ProbeResult] = []
    thread = threading.Thread(target=lambda: results.append(probe(slot, timeout_s=30)))
    thread.start()
    deadline = time.monotonic() + 20
    while not (found := children()) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    os.kill(found[0], number)
    thread.join(timeout=40)
    assert (results[0].ok, results[0].reason) == (False, SIGNALS[number][0])
    assert results[0].detail.startswith(number.name)


def children() -> list[int]:
    """Return the probes that this process has running."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            command = Path(f"/proc/{child}/cmdline")
            if command.exists() and b"edgeml_runtime.probe" in command.read_bytes():
                found.append(int(child))
    return found


@pytest.mark.parametrize(
    ("code", "output", "errors", "reason"),
    [
        (0, b"not json", b"", "ProbeFailed"),
        (0, b"", b"", "ProbeFailed"),
        (0, b"[1, 2]", b"", "ProbeFailed"),
        (1, b"", b"Traceback\nImportError: libonnxruntime", "ProbeFailed"),
        (1, b"", b"terminate: what(): std::bad_alloc", "OutOfMemory"),
        (-signal.SIGHUP, b"", b"", "SIGHUP"),
    ],
)
def test_every_end_of_the_child_has_a_reason(code: int, output: bytes, errors: bytes, reason: str) -> None:
    result = _outcome(code, output, errors)
    assert (result.ok, result.reason) == (False, reason)


def test_the_command_prints_one_line_of_json(models: SimpleNamespace, tmp_path: Path) -> None:
    graph = models.mlp()
    slot = a_slot(tmp_path, graph, Session(graph).run({"numeric": ROWS}))
    command = [sys.executable, "-m", "edgeml_runtime.probe", str(slot.path), "fp32"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    assert len(done.stdout.splitlines()) == 1
    assert json.loads(done.stdout)["ok"] is True
