"""A device's own tensors: they answer where they are whole, fit, and serve it no worse; else the release does."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from edgeml_runtime import local, personal, serving
from edgeml_runtime import owner as owner_side
from edgeml_runtime.config import BLOBS, KEPT, PERSONAL, SAMPLES, Config, Policy, enroll
from edgeml_runtime.errors import MalformedMessage, ModelRefused
from edgeml_runtime.kept import Kept
from edgeml_runtime.metrics import Counters
from edgeml_runtime.owned import OwnTensors
from edgeml_runtime.personal import OwnModels
from edgeml_runtime.reports import Reports
from edgeml_runtime.samples import Samples
from edgeml_runtime.serving import Loaded, Serving
from edgeml_runtime.session import Session
from edgeml_runtime.slots import GOLDENS, Slot, Slots
from edgeml_runtime.wire import blocks, signed, tensors, topics
from edgeml_runtime.wire.messages import Metrics, RunOver, decode
from edgeml_runtime.wire.plain import to_plain
from tests.runtime.agent_kit import KEY, AgentProcess, Release, ServerSide, a_release, needs_mosquitto, until
from tests.runtime.graphs import FLOAT, mlp, model

RUN, MOST = "fed-1", 1 << 20
X = np.random.default_rng(1).normal(size=(60, 64)).astype(np.float32)
ORDER = np.roll(np.arange(10), 3)  # this device calls class i what others call ORDER[i]
Arrays = dict[str, np.ndarray]


def graph(**changes: Any) -> bytes:
    return mlp(seed=7, **changes)


def own_head() -> Arrays:
    """The last layer of `graph` with its classes in this device's order."""
    rng = np.random.default_rng(7)
    rng.normal(0, 64**-0.5, (64, 64)), rng.normal(0, 0.1, 64)
    w2 = rng.normal(0, 64**-0.5, (64, 10)).astype(np.float32)
    return {"w2": w2[:, ORDER], "b2": np.zeros(10, np.float32)}


def own_labels() -> np.ndarray:
    said: np.ndarray = Session(graph()).run({"numeric": X})["label"]
    return np.argsort(ORDER)[said]


def a_personal_release(name: str = "one", *, run: str = RUN, data: bytes | None = None, **options: Any) -> Release:
    """A release that came of the federation `run`."""
    made = a_release(name, graph() if data is None else data, **options)
    manifest = dataclasses.replace(made.manifest, lineage={"federation": f"{run}: 2 rounds of 2, 2 devices"})
    return dataclasses.replace(made, manifest=manifest, envelope=signed.sign(manifest.to_document(), KEY))


class Bench:
    """A state folder with a release in its slot, labelled rows and kept tensors, without an agent."""

    def __init__(self, state: Path) -> None:
        self.state, self.samples = state, Samples(state / SAMPLES)
        self.samples.add_many({"numeric": X}, targets=own_labels().tolist(), now=0.0)
        self.kept = Kept(state / KEPT, most=MOST)

    def keep(self, arrays: Arrays, run: str = RUN) -> None:
        self.kept.after(run, f"{run}-1", was={}, now=arrays)

    def install(self, release: Release, variant: str = "fp32") -> Slot:
        graphs = dict(zip([one.name for one in release.manifest.variants], release.blobs, strict=False))
        files = {"model.onnx": self.state / "graph", GOLDENS: self.state / "goldens"}
        files["model.onnx"].write_bytes(graphs[variant])
        files[GOLDENS].write_bytes(release.blobs[-1])
        (self.state / BLOBS).mkdir(exist_ok=True)
        slot = Slots(self.state / "slots").install(release.envelope, files, variant=variant)
        for path in files.values():
            path.unlink()
        return slot

    def load(self, slot: Slot, **policy: Any) -> Loaded:
        return OwnModels(self.state, Policy(**policy), self.samples).over(slot, serving.load(slot))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def refused(loaded: Loaded) -> str:
    """Return why the release serves in place of this device's own tensors."""
    assert loaded.personal is not None and not loaded.personal.serves and loaded.released is None
    said = loaded.session.run({"numeric": X})["label"]
    np.testing.assert_array_equal(said, Session(graph()).run({"numeric": X})["label"])
    return loaded.personal.reason


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


def refused_of(loaded: Loaded) -> str:
    assert loaded.personal is not None and not loaded.personal.serves
    return loaded.personal.reason


def test_an_agent_that_died_twice_over_them_leaves_them(bench: Bench) -> None:
    bench.keep(own_head())
    release = a_personal_release()
    slot = bench.install(release)
    tensors_here = OwnTensors(bench.state / PERSONAL, bench.kept, most=MOST)
    tensors_here.of(release.manifest)
    tensors_here.begin("digits")
    assert bench.load(slot).released is not None, "a power cut is no reason"
    tensors_here.begin("digits")
    tensors_here.begin("digits")
    assert "killed 2 times" in refused(bench.load(slot))


_DIES = """
import os, signal, sys
from pathlib import Path
from edgeml_runtime import personal, serving
from edgeml_runtime.config import Policy, SAMPLES
from edgeml_runtime.samples import Samples
from edgeml_runtime.slots import Slots
personal.Session = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
state = Path(sys.argv[1])
slot = Slots(state / "slots").current
personal.OwnModels(state, Policy(), Samples(state / SAMPLES)).over(slot, serving.load(slot))
"""


@pytest.mark.parametrize("swept_by", ["start", "forget", "expire"])
def test_no_copy_of_own_tensors_outlives_a_killed_agent(bench: Bench, swept_by: str) -> None:
    bench.keep(own_head())
    slots = Slots(bench.state / "slots")
    slots.activate(bench.install(a_personal_release()))
    died = subprocess.run([sys.executable, "-c", _DIES, str(bench.state)], check=False).returncode
    assert died == -signal.SIGKILL
    folder, held = bench.state / PERSONAL, "digits.safetensors"
    (copy,) = folder.glob("*.onnx")
    assert own_head()["w2"].tobytes() in copy.read_bytes()
    (folder / "digits.safetensors.new").write_bytes(b"half of it")
    if swept_by == "forget":
        assert owner_side.forget(bench.state, "digits", most=MOST) == ["digits"]
    elif swept_by == "expire":
        OwnTensors(folder, bench.kept, most=MOST).expire(time.time() + 91 * 86_400)
    else:
        OwnModels(bench.state, Policy(), bench.samples)
    left = {path.name for path in folder.iterdir()}
    assert left == ({held, "digits.trying"} if swept_by == "start" else set())


def test_forgetting_a_federation_takes_the_half_written_copy_along(bench: Bench) -> None:
    bench.keep(own_head())
    (bench.state / PERSONAL).mkdir()
    (bench.state / PERSONAL / "digits.safetensors.new").write_bytes(b"half of it")
    assert owner_side.forget(bench.state, RUN, most=MOST) == [RUN]
    assert not list((bench.state / PERSONAL).iterdir())


def test_own_tensors_expire_when_nobody_uses_them_and_the_log_says_so(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.keep(own_head())
    slot = bench.install(a_personal_release())
    loaded, path = bench.load(slot), bench.state / PERSONAL / "digits.safetensors"
    day, now = 86_400.0, time.time()
    os.utime(path, (now - 89 * day, now - 89 * day))
    assert bench.load(slot).released is not None and path.stat().st_mtime >= now, "a start uses them"
    os.utime(path, (now - 91 * day, now - 91 * day))
    own = OwnTensors(bench.state / PERSONAL, bench.kept, most=MOST)
    own.used("digits")
    own.expire()
    assert path.is_file(), "those of an agent that runs for years are in use"
    os.utime(path, (now + day, now + day))
    own.used("digits")
    assert path.stat().st_mtime > now + day / 2, "a clock that was set back makes nothing older"
    os.utime(path, (now - 91 * day, now - 91 * day))
    assert bench.load(slot).personal is None and not path.exists()
    assert "own tensors of digits: not used for 90 days, deleted" in caplog.text
    own.used("digits")
    assert loaded.released is not None and not path.exists()


def test_a_model_that_answers_is_noted_once_a_day_and_the_release_is_not(bench: Bench) -> None:
    bench.keep(own_head())
    slot = bench.install(a_personal_release())
    own = OwnModels(bench.state, Policy(), bench.samples)
    loaded, path = own.over(slot, serving.load(slot)), bench.state / PERSONAL / "digits.safetensors"
    release = serving.load(slot)
    turns = [(0, None, False), (1, release, False), (2, loaded, True), (86_000, loaded, False), (86_402, loaded, True)]
    for now, serves, noted in turns:
        os.utime(path, (5.0, 5.0))
        own.note_use(serves, now)
        assert (path.stat().st_mtime > 5.0) == noted, now


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


def _on_disk(state: Path) -> dict[str, tuple[bytes, int]]:
    found = {str(path.relative_to(state)): path for path in state.rglob("*") if path.is_file()}
    return {name: (path.read_bytes(), path.stat().st_mtime_ns) for name, path in found.items()}


def _ask_the_disk(bench: Bench) -> Any:
    before = _on_disk(bench.state)
    told = local.predict(bench.state, _csv(bench.state.parent))
    assert _on_disk(bench.state) == before, "asking changed, made or deleted something"
    return told


def test_predict_from_the_disk_only_reads(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    bench = Bench(tmp_path / "state")
    enroll(bench.state, Config(device="pi-1", host="h", port=1, trusted=(signed.public_hex(KEY),), board="b"))
    Slots(bench.state / "slots").activate(slot := bench.install(a_personal_release()))
    bench.samples.close()
    bench.keep(own_head())
    assert "personal" not in _ask_the_disk(bench), "what a federation kept is taken over by the agent alone"
    bench.samples = Samples(bench.state / SAMPLES)
    bench.load(slot)
    bench.samples.close()
    folder = bench.state / PERSONAL
    old = time.time() - 91 * 86_400
    os.utime(folder / "digits.safetensors", (old, old))
    (folder / "digits.trying").write_text('{"begun": 1}')
    (folder / "trial-1.onnx").write_bytes(b"of another process")
    told = _ask_the_disk(bench)
    assert told["personal"] is True and told["labels"] == [str(one) for one in own_labels()]
    (folder / "digits.trying").write_text('{"begun": 2}')
    assert "personal" not in _ask_the_disk(bench)
    (folder / "digits.trying").unlink()
    (bench.state / SAMPLES).unlink()
    assert "personal" not in _ask_the_disk(bench), "no rows to judge by"


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


# --- real agents


@pytest.fixture
def owner(agent: AgentProcess, server: ServerSide) -> AgentProcess:
    """An agent with labelled rows in this device's order, and a head that knows it."""
    server.assign(agent.device, a_release("zero", graph()), job="job-zero", seq=1)
    assert server.until_ended(agent.device, "job-zero").state == "SUCCEEDED"
    agent.call("/samples", {"rows": X.tolist(), "targets": [str(label) for label in own_labels()]})
    Kept(agent.state / KEPT, most=MOST).after(RUN, f"{RUN}-1", was={}, now=own_head())
    return agent


def ship(agent: AgentProcess, server: ServerSide, release: Release, *, seq: int) -> Any:
    server.assign(agent.device, release, job=f"job-{seq}", seq=seq)
    ended = server.until_ended(agent.device, f"job-{seq}")
    assert ended.state == "SUCCEEDED", ended
    return agent.status()["personal"]


def says(agent: AgentProcess) -> list[int]:
    return [int(label) for label in agent.predict(X)["labels"]]


@pytest.mark.broker
@needs_mosquitto
def test_an_agent_serves_its_own_model_through_death_and_restart_and_says_so(
    owner: AgentProcess, server: ServerSide
) -> None:
    over = signed.sign(to_plain(RunOver(run=RUN, release="one")), KEY)
    server.publish(topics.task(RUN), over)
    found = ship(owner, server, a_personal_release("one"), seq=2)
    assert found["serves"] and found["own"] == 1.0 and found["gain"] > 0.8 and says(owner) == own_labels().tolist()
    assert owner.predict(X[:1])["personal"] is True
    until(lambda: any(one.personal and (one.gain or 0) > 0.8 for one in server.metrics["pi-1"]), "telemetry of it")
    shown = owner.command("status").stdout
    assert f"yes: accuracy 1 with its own tensors, {found['released']:.4g} without, on 60 rows of its own" in shown
    assert "digits: " in owner.command("task-policy").stdout
    for end in (owner.kill, lambda: owner.stop(signal.SIGTERM)):
        end()
        assert owner.command("predict", _csv(owner.state)).stdout.split() == [str(one) for one in own_labels()]
        owner.start()
        assert owner.status()["personal"]["serves"] and says(owner) == own_labels().tolist()
    (path,) = (owner.state / PERSONAL).glob("*.safetensors")
    owner.kill()
    path.write_bytes(path.read_bytes()[:-400])
    owner.start()
    assert owner.status()["personal"]["serves"] is False and says(owner) != own_labels().tolist()
    assert "no: " in owner.command("status").stdout


def _csv(state: Path) -> str:
    path = state / "rows.csv"
    lines = [",".join(f"p{i}" for i in range(64)), *(",".join(map(repr, row)) for row in X.tolist())]
    path.write_text("\n".join(lines))
    return str(path)


@pytest.mark.slow
@pytest.mark.broker
@needs_mosquitto
def test_the_end_of_a_federation_without_a_release_leaves_nothing_and_the_owner_may_forbid_it(
    owner: AgentProcess, server: ServerSide
) -> None:
    server.publish(topics.task(RUN), signed.sign(to_plain(RunOver(run=RUN)), KEY))
    until(lambda: not list((owner.state / KEPT).glob("*")), "it to be forgotten")
    Kept(owner.state / KEPT, most=MOST).after(RUN, f"{RUN}-1", was={}, now=own_head())
    owner.stop()
    assert owner.command("task-policy", "--set", "personal=no").returncode == 0
    owner.start()
    found = ship(owner, server, a_personal_release("one"), seq=2)
    assert not found["serves"] and "owner's policy" in found["reason"]
    owner.stop()
    assert owner.command("task-policy", "--set", "personal=yes").returncode == 0
    owner.start()
    assert owner.status()["personal"]["serves"]
    assert owner.command("task-policy", "--forget", "digits").returncode == 0
    owner.kill()
    owner.start()
    assert owner.status()["personal"] is None


@pytest.mark.broker
@needs_mosquitto
def test_a_release_that_runs_is_deployed_again_for_the_float_graph_that_own_tensors_lack(
    owner: AgentProcess, server: ServerSide
) -> None:
    def deploy_again(seq: int) -> Any:
        return ship(owner, server, dataclasses.replace(release, manifest=manifest, envelope=envelope), seq=seq)

    kept = Kept(owner.state / KEPT, most=MOST)
    kept.forget(RUN)
    release = a_personal_release("one", others={"int8": graph(rows=1)})
    manifest = dataclasses.replace(release.manifest, boards={"raspberry-pi-4": "int8"})
    envelope, float_graph = signed.sign(manifest.to_document(), KEY), owner.state / BLOBS / blocks.digest_of(graph())
    before = Slots(owner.state / "slots").current
    assert deploy_again(2) is None and before is not None
    float_graph.unlink(missing_ok=True)  # also that of the release before
    kept.after(RUN, f"{RUN}-1", was={}, now=own_head())
    owner.kill()
    owner.start()
    assert "fp32 graph, which takes these tensors, is not here: deploy" in owner.status()["personal"]["reason"]
    assert deploy_again(3)["serves"] and says(owner) == own_labels().tolist() and float_graph.is_file()
    served = owner.status()["running"]
    assert (served["release"], served["variant"]) == ("one", "int8")
    slots = Slots(owner.state / "slots")
    assert slots.previous is not None and slots.previous.path == before.path, "the way back is as it was"
    assert slots.previous.manifest().release == "zero"
    owner.kill()
    float_graph.unlink()
    float_graph.write_bytes(b"damaged")
    owner.start()
    assert "not what the manifest promises: deploy" in owner.status()["personal"]["reason"]
    assert deploy_again(4)["serves"] and deploy_again(5)["serves"]


@pytest.mark.slow
@pytest.mark.broker
@needs_mosquitto
def test_an_agent_that_runs_8_bit_fetches_the_float_graph_for_its_own_tensors(
    owner: AgentProcess, server: ServerSide
) -> None:
    release = a_personal_release("one", others={"int8": graph(rows=1)})
    manifest = dataclasses.replace(release.manifest, boards={"raspberry-pi-4": "int8"})
    signed_anew = signed.sign(manifest.to_document(), KEY)
    found = ship(owner, server, dataclasses.replace(release, manifest=manifest, envelope=signed_anew), seq=2)
    assert found["serves"] and owner.status()["running"]["variant"] == "int8" and says(owner) == own_labels().tolist()
    assert (owner.state / BLOBS / blocks.digest_of(graph())).is_file()
    owner.kill()
    owner.start()
    assert owner.status()["personal"]["serves"]
