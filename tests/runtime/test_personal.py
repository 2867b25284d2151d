"""A device's own tensors: they answer where they are whole, fit, and serve it no worse; else the release does."""

from __future__ import annotations

import dataclasses
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from edgeml_runtime import owner as owner_side
from edgeml_runtime import personal, serving
from edgeml_runtime.config import BLOBS, KEPT, PERSONAL, SAMPLES, Config, Policy
from edgeml_runtime.errors import MalformedMessage, ModelRefused
from edgeml_runtime.metrics import Counters
from edgeml_runtime.owned import OwnTensors
from edgeml_runtime.personal import OwnModels
from edgeml_runtime.reports import Reports
from edgeml_runtime.samples import Samples
from edgeml_runtime.serving import Serving
from edgeml_runtime.session import Session
from edgeml_runtime.wire import signed, tensors
from edgeml_runtime.wire.messages import Metrics, decode
from tests.runtime.graphs import FLOAT, model
from tests.runtime.personal_kit import (
    MOST,
    RUN,
    Arrays,
    Bench,
    X,
    a_personal_release,
    graph,
    own_head,
    own_labels,
    refused,
    refused_of,
)
from tests.runtime.personal_kit import bench as bench
from tests.runtime.releases import KEY


def test_own_tensors_answer_where_they_are_better_and_move_out_of_every_tasks_reach(bench: Bench) -> None:
    bench.keep({**own_head(), "seen": np.ones((), np.float32)})
    slot = bench.install(a_personal_release())
    for loaded in (bench.load(slot), bench.load(slot)):  # now, and after a restart
        found = loaded.personal
        assert found is not None and found.serves, found
        assert (found.run, found.metric, found.own, found.rows) == (RUN, "accuracy", 1.0, 60)
        assert found.released is not None and found.gain == found.own - found.released > 0.8
        np.testing.assert_array_equal(loaded.session.run({"numeric": X})["label"], own_labels())
        assert bench.kept.held() == [], "they are not where tasks are given what was kept"
    assert [path.name for path in (bench.state / PERSONAL).iterdir()] == ["digits.safetensors"]
    assert loaded.running == serving.load(slot).running


def test_a_second_model_of_dittos_takes_every_place(bench: Bench) -> None:
    whole = {f"personal.{name}": array for name, array in own_head().items()}
    bench.keep({**whole, "seen": np.ones((), np.float32), "variate.w1": np.ones((64, 64), np.float32)})
    loaded = bench.load(bench.install(a_personal_release()))
    assert loaded.personal is not None and loaded.personal.serves


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"w2": np.zeros((64, 9), np.float32)}, "shape (64, 9), and the model wants (64, 10)"),
        ({"w7": np.zeros((64, 10), np.float32)}, "have no place in it: 'w7'"),
        ({"w2": np.zeros((64, 10))}, "both must be float32"),
        ({"w2": np.full((64, 10), np.nan, np.float32)}, "1 of 1 tensors are not finite: 'w2'"),
        ({"w2": np.full((64, 10), 1e38, np.float32)}, "NaN or infinite"),
        ({"w2": np.zeros((64, 10), np.float32)}, "worse: accuracy"),
    ],
    ids=["shape", "name", "type", "nan", "overflow", "worse"],
)
def test_tensors_that_do_not_fit_or_do_not_serve_are_refused_and_the_release_answers(
    bench: Bench, arrays: Arrays, why: str
) -> None:
    bench.samples.add_many({"numeric": X}, targets=Session(graph()).run({"numeric": X})["label"].tolist(), now=0.0)
    bench.keep(arrays)
    assert why in refused(bench.load(bench.install(a_personal_release())))


@pytest.mark.parametrize("folder", [KEPT, PERSONAL])
@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"nonsense",
        b"\xff" * 64,
        tensors.pack({"w2": np.zeros((64, 10), np.float32)})[:-9],
        b"0" * (MOST + 1),
        tensors.pack({"deep:strings": np.frombuffer(b"[" * 9000, np.uint8)}),
    ],
    ids=["empty", "words", "bits", "cut off", "too large", "deep"],
)
def test_a_damaged_file_is_refused_and_the_release_answers(bench: Bench, folder: str, junk: bytes) -> None:
    bench.keep(own_head())
    slot = bench.install(a_personal_release())
    if folder == PERSONAL:
        bench.load(slot)
    (path,) = (bench.state / folder).glob("*.safetensors")
    path.write_bytes(junk)
    assert refused(bench.load(slot, max_kept_bytes=MOST))


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_bit_of_the_file_makes_the_device_fail(bench: Bench, data: st.DataObject) -> None:
    bench.keep(own_head())
    release = a_personal_release()
    owned = OwnTensors(bench.state / PERSONAL, bench.kept, most=MOST)
    owned.of(release.manifest)
    path = bench.state / PERSONAL / "digits.safetensors"
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, 400))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(bytes(whole))
    try:
        found = owned.of(release.manifest)
    except MalformedMessage:
        return
    assert found is not None


def test_the_owner_decides_and_few_rows_decide_nothing(bench: Bench) -> None:
    bench.keep(own_head())
    slot = bench.install(a_personal_release())
    assert "the owner's policy" in refused(bench.load(slot, personal=False))
    assert "60 labelled rows to judge it on, and 61 are needed" in refused(bench.load(slot, min_rows=61))
    assert bench.load(slot).released is not None


def test_judging_ends_when_its_time_is_over(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.keep(own_head())
    slot = bench.install(a_personal_release())
    monkeypatch.setattr(personal, "JUDGE_S", 0.0)
    found = bench.load(slot, min_rows=5).personal
    assert found is not None and found.serves and 5 <= found.rows <= personal.AT_ONCE
    assert "of 60 labelled rows were judged in 0 s, and 11 are needed" in refused(bench.load(slot, min_rows=11))


def test_rows_to_judge_by_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, wide = Samples(tmp_path / "s"), 16_384
    for i in range(8):
        made = np.random.default_rng(i).normal(size=(50, wide)).astype(np.float32)
        samples.add_many({"numeric": made}, targets=list(range(50 * i, 50 * i + 50)), now=0.0)
    seen = [target for _, targets in personal.batches(samples) for target in targets.tolist()]
    assert sorted(seen) == list(range(400)), "each row once"
    monkeypatch.setattr(personal, "PIECE_BYTES", 1 << 20)
    tracemalloc.start()
    seen = [target for _, targets in personal.batches(samples) for target in targets.tolist()]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(seen)) == len(seen) == 8 * (1 << 20) // (4 * wide)
    assert peak < 6 << 20 < 400 * 4 * wide // 4, "a piece with its copies, and never all rows (25 MB)"


def a_line(*weights: float) -> bytes:
    w = np.zeros((64, 1), np.float32)
    w[: len(weights), 0] = weights
    node = helper.make_node("MatMul", ["numeric", "w"], ["prediction"])
    answer = ("prediction", FLOAT, ["rows", 1])
    return model([node], [("numeric", FLOAT, ["rows", 64])], outputs=[answer], weights={"w": w})


@pytest.mark.parametrize("infinite", [False, True])
def test_numbers_are_judged_by_their_error_and_what_is_not_finite_is_none(tmp_path: Path, infinite: bool) -> None:
    bench = Bench(tmp_path)
    rows = X * np.float32(2)
    if infinite:  # 1e39 - 1e39 in float32: infinite or NaN
        rows[:, :2] = 1e38
    bench.samples.close()
    (tmp_path / SAMPLES).unlink()
    bench.samples = Samples(tmp_path / SAMPLES)
    bench.samples.add_many({"numeric": rows}, targets=[0.5 + float(one) for one in 10 * X[:, 2]], now=0.0)
    own = np.zeros((64, 1), np.float32)
    own[:3, 0] = (10, -10, 5) if infinite else (0, 0, 5)
    bench.keep({"w": own})
    made = a_personal_release(data=a_line(0.0, 0.0, 1.0))
    manifest = dataclasses.replace(made.manifest, task="regression", classes=())
    release = dataclasses.replace(made, manifest=manifest, envelope=signed.sign(manifest.to_document(), KEY))
    found = bench.load(bench.install(release)).personal
    assert found is not None and found.metric == "rmse" and found.serves is not infinite, found
    if infinite:
        assert (found.own, found.gain, found.rows) == (None, None, 60) and "worse: rmse" in found.reason
    else:
        assert found.own == pytest.approx(0.5, rel=1e-5) and found.gain == found.released - found.own


def test_they_outlive_a_release_of_the_same_shapes_and_sit_out_one_of_others(bench: Bench) -> None:
    bench.keep(own_head())
    bench.load(bench.install(a_personal_release()))
    again = bench.load(bench.install(a_personal_release("two", run="fed-2")))
    assert again.personal is not None and again.personal.serves and again.personal.run == RUN
    wide = bench.install(a_personal_release("three", run="fed-3", data=graph(hidden=32)))
    loaded = bench.load(wide)
    assert loaded.personal is not None and "the model wants (32, 10)" in loaded.personal.reason
    bench.keep({"w2": own_head()["w2"]}, run="fed-4")
    newer = bench.load(bench.install(a_personal_release("four", run="fed-4")))
    assert newer.personal is not None and newer.personal.run == "fed-4"


def test_nothing_of_its_own_is_nothing_to_tell(bench: Bench) -> None:
    assert bench.load(bench.install(a_personal_release())).personal is None
    bench.keep({"seen": np.ones((), np.float32), "variate.w2": np.zeros((64, 10), np.float32)})
    assert bench.load(bench.install(a_personal_release("two"))).personal is None


def test_an_8_bit_release_is_answered_by_its_float_graph_once_that_is_here(bench: Bench) -> None:
    bench.keep(own_head())
    release = a_personal_release(others={"int8": graph(rows=1)})
    slot = bench.install(release, "int8")
    assert "the fp32 graph, which takes these tensors, is not here" in refused_of(bench.load(slot))
    own = OwnModels(bench.state, Policy(), bench.samples)
    (wanted,) = own.wants(release.manifest, release.manifest.variants[1])
    assert own.wants(release.manifest, release.manifest.variants[0]) == ()
    assert own.lacks(slot)
    (bench.state / BLOBS / wanted.digest).write_bytes(graph()[:-1])
    assert "not what the manifest promises" in refused_of(bench.load(slot))
    assert own.lacks(slot), "what is damaged is fetched again"
    (bench.state / BLOBS / wanted.digest).write_bytes(graph())
    assert not own.lacks(slot)
    loaded = bench.load(slot)
    assert loaded.personal is not None and loaded.personal.serves


def test_own_tensors_that_fail_while_answering_make_room_for_the_release(bench: Bench) -> None:
    bench.keep(own_head())
    loaded = bench.load(bench.install(a_personal_release()))

    def fails(*_: Any) -> Any:
        raise ModelRefused("the model failed while running")

    serves = Serving(Counters("b"))
    loaded.session.run = loaded.session.predict = fails
    serves.swap(loaded)
    answer = serves.predict({"numeric": X})
    np.testing.assert_array_equal(answer.outputs["label"], Session(graph()).run({"numeric": X})["label"])
    assert not answer.personal and serves.trial() == (60, 0, "")
    assert serves.loaded is not None and "failed while answering" in refused(serves.loaded)


@pytest.mark.parametrize(
    ("policy", "gain", "told"),
    [
        ({}, 0.25, 0.25),
        ({"accept": ("training", "evaluation")}, -0.5, -0.5),
        ({"accept": ("training",)}, 0.25, None),
        ({"secure": True}, 0.25, None),
        ({"clip_norm": 1.0, "noise": 0.5}, 0.25, None),
        ({"clip_norm": 1.0}, 0.25, None),
        ({}, np.nan, None),
        ({}, np.inf, None),
    ],
)
def test_telemetry_tells_the_gain_only_where_evaluations_are_answered(
    bench: Bench, policy: dict[str, Any], gain: float, told: float | None
) -> None:
    trusted = (signed.public_hex(KEY),)
    config = Config(device="pi-1", host="h", port=1, trusted=trusted, board="b", policy=Policy(**policy))
    counters, sent = Counters("b"), list[Metrics]()
    serves = Serving(counters)
    verdict = serving.Personal(serves=True, reason="", gain=gain)
    serves.swap(dataclasses.replace(serving.load(bench.install(a_personal_release())), personal=verdict))
    reports = Reports(
        config,
        bench.state,
        counters=counters,
        serving=serves,
        samples=bench.samples,
        send=lambda _, payload, **__: sent.append(decode(Metrics, payload)),
    )
    reports.telemetry(0.0)
    assert [(one.personal, one.gain) for one in sent] == [(True, told)]
    words = "\n".join(owner_side.lines(bench.state, config))
    stays = told is None and np.isfinite(gain)
    assert ("whether it serves, and not how well" if stays else "how much better it is on the rows here") in words
