"""A real agent process, a real broker and a small server side: deployments and serving."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from onnx import helper

from edgeml_runtime.session import Session
from edgeml_runtime.wire import blocks, signed
from edgeml_runtime.wire.manifest import blob_of
from edgeml_runtime.wire.plain import to_plain
from tests.runtime.agent_kit import STRANGER, AgentProcess, ServerSide, deploy, needs_mosquitto, serves, until
from tests.runtime.graphs import FLOAT, INT64, mlp, model
from tests.runtime.releases import KEY, a_release

pytestmark = [pytest.mark.broker, needs_mosquitto]
ROWS = np.random.default_rng(5).normal(size=(3, 64)).astype(np.float32)


def test_a_release_is_pulled_proven_and_served(agent: AgentProcess, server: ServerSide) -> None:
    release = a_release("one")
    server.assign("pi-1", release, job="j1", seq=1)
    ended = server.until_ended("pi-1", "j1")
    assert (ended.state, ended.reason, ended.progress) == ("SUCCEEDED", "", 1.0)
    steps = list(dict.fromkeys(status.step for status in server.status("pi-1", "j1")))
    assert steps == ["DOWNLOADING", "VERIFYING", "PROBING", "TRIAL", "SOAKING", ""]
    answer = agent.predict(ROWS)
    wanted = Session(release.blobs[0]).run({"numeric": ROWS})
    assert answer["labels"] == [str(label) for label in wanted["label"]]
    np.testing.assert_allclose(answer["probabilities"], wanted["probabilities"], rtol=1e-5)
    until(lambda: any(m.predictions == 3 for m in server.metrics["pi-1"]), "telemetry of three predictions")
    last = server.reports["pi-1"][-1]
    assert last.running is not None and last.running.graph == blocks.digest_of(release.blobs[0])
    assert last.board == "raspberry-pi-4" and last.free_bytes > 0 and "machine" in last.hardware


def test_predictions_never_stop_while_releases_are_swapped(agent: AgentProcess, server: ServerSide) -> None:
    deploy(agent, server, "one", seq=1)
    seen, stop, failures = set(), threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            try:
                seen.add(agent.predict(ROWS[:1])["release"])
            except Exception as error:
                failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    for seq, name in enumerate(("two", "three"), start=2):
        deploy(agent, server, name, seq=seq)
    stop.set()
    thread.join()
    assert failures == [] and seen >= {"one", "two"}


def test_a_retained_assignment_that_is_seen_again_changes_nothing(agent: AgentProcess, server: ServerSide) -> None:
    deploy(agent, server, "one", seq=1)
    before = server.served.total()
    agent.stop()
    reports = len(server.reports["pi-1"])
    agent.start()
    until(lambda: len(server.reports["pi-1"]) >= reports + 2, "the answer to the retained assignment")
    assert server.served.total() == before and serves(agent) == "one"
    assert server.reports["pi-1"][-1].job is not None and server.reports["pi-1"][-1].job.state == "SUCCEEDED"


def test_a_blob_that_is_here_is_not_asked_for_again(agent: AgentProcess, server: ServerSide) -> None:
    graph = mlp(seed=3)
    deploy(agent, server, "one", seq=1, graph=graph)
    server.served.clear()
    server.assign("pi-1", a_release("again", graph), job="j2", seq=2)
    assert server.until_ended("pi-1", "j2").state == "SUCCEEDED"
    assert (blocks.digest_of(graph), 0) not in server.served and serves(agent) == "again"


def test_success_waits_for_real_predictions(agent: AgentProcess, server: ServerSide) -> None:
    server.assign("pi-1", a_release("one"), job="j1", seq=1, soak_predictions=5)
    until(lambda: any(s.step == "SOAKING" for s in server.status("pi-1", "j1")), "the soak")
    agent.predict(ROWS)
    assert not [s for s in server.status("pi-1", "j1") if s.state == "SUCCEEDED"]
    agent.predict(ROWS)
    assert server.until_ended("pi-1", "j1").state == "SUCCEEDED"


def test_a_soak_that_nobody_feeds_times_out_and_the_old_release_is_back(
    agent: AgentProcess, server: ServerSide
) -> None:
    deploy(agent, server, "one", seq=1)
    server.assign("pi-1", a_release("two"), job="j2", seq=2, soak_predictions=5, deadline_s=4.0)
    ended = server.until_ended("pi-1", "j2")
    assert (ended.state, ended.reason) == ("TIMED_OUT", "TimedOut") and "soaking after 4 s" in ended.detail
    assert serves(agent) == "one"


def fails_on_large_rows() -> bytes:
    """Return a model that answers the goldens and fails for rows that are far away: a Gather out of range."""
    weights = {
        "table": np.arange(10, dtype=np.float32).reshape(10, 1),
        "one": np.array([1], np.int64),
        "shape": np.array([-1], np.int64),
    }
    nodes = [
        helper.make_node("ReduceMax", ["numeric", "one"], ["top"], keepdims=0),
        helper.make_node("Abs", ["top"], ["size"]),
        helper.make_node("Cast", ["size"], ["index"], to=INT64),
        helper.make_node("Gather", ["table", "index"], ["probabilities"], axis=0),
        helper.make_node("Reshape", ["index", "shape"], ["label"]),
    ]
    return model(
        nodes,
        [("numeric", FLOAT, ["rows", 64])],
        outputs=[("label", INT64, ["rows"]), ("probabilities", FLOAT, ["rows", 1])],
        weights=weights,
    )


def test_a_release_that_fails_while_soaking_is_taken_back(agent: AgentProcess, server: ServerSide) -> None:
    deploy(agent, server, "one", seq=1)
    server.assign("pi-1", a_release("two", fails_on_large_rows()), job="j2", seq=2, soak_predictions=5)
    until(lambda: serves(agent) == "two", "the trial")
    assert "out of data bounds" in agent.refused("/predict", {"rows": (ROWS * 1e3).tolist()})[1]
    ended = server.until_ended("pi-1", "j2")
    assert (ended.state, ended.reason) == (
        "ROLLED_BACK",
        "ModelRefused",
    ) and "1 of 1 predictions failed" in ended.detail
    assert serves(agent) == "one" and len(agent.predict(ROWS)["labels"]) == 3


@pytest.mark.fault
def test_a_model_that_does_not_match_its_goldens_is_refused_and_the_old_one_answers(
    agent: AgentProcess, server: ServerSide
) -> None:
    deploy(agent, server, "one", seq=1)
    server.assign("pi-1", a_release("bad", mlp(seed=1), goldens_of=mlp(seed=2)), job="j2", seq=2)
    ended = server.until_ended("pi-1", "j2")
    assert (ended.state, ended.reason) == ("REJECTED", "ModelRefused")
    assert "LabelFlips" in ended.detail and "may" in ended.detail
    assert serves(agent) == "one" and len(agent.predict(ROWS)["labels"]) == 3
    deploy(agent, server, "three", seq=3)


@pytest.mark.fault
def test_bytes_that_are_no_model_are_refused(agent: AgentProcess, server: ServerSide) -> None:
    release, data = a_release("bad"), b"this is not a model" * 10
    document = to_plain(release.manifest)
    document["variants"][0]["graph"] = to_plain(blob_of(data))
    envelope = signed.sign(document, KEY)
    server.add(data)
    server.assign("pi-1", release, job="j1", seq=1, manifest=server.add(envelope), manifest_bytes=len(envelope))
    ended = server.until_ended("pi-1", "j1")
    assert ended.state == "REJECTED" and "not a model" in ended.detail
    assert agent.refused("/predict", {"rows": ROWS.tolist()})[0] == 503


@pytest.mark.fault
def test_an_assignment_that_nobody_trusted_signed_is_rejected(agent: AgentProcess, server: ServerSide) -> None:
    deploy(agent, server, "one", seq=1)
    server.assign("pi-1", a_release("two"), job="j2", seq=2, key=STRANGER)
    ended = server.until_ended("pi-1", "j2")
    assert (ended.state, ended.reason) == ("REJECTED", "BadSignature") and "enroll" in ended.detail
    until(lambda: server.reports["pi-1"][-1].job.job == "job-one", "the device's own state")  # type: ignore[union-attr]
    assert serves(agent) == "one" and agent.status()["malformed"]["count"] == 1


@pytest.mark.fault
def test_a_manifest_that_nobody_trusted_signed_is_rejected(agent: AgentProcess, server: ServerSide) -> None:
    deploy(agent, server, "one", seq=1)
    server.assign("pi-1", a_release("two", key=STRANGER), job="j2", seq=2)
    ended = server.until_ended("pi-1", "j2")
    assert (ended.state, ended.reason) == ("REJECTED", "BadSignature")
    assert serves(agent) == "one"


def test_an_assignment_to_another_device_or_from_the_past_is_rejected(agent: AgentProcess, server: ServerSide) -> None:
    deploy(agent, server, "one", seq=5)
    server.assign("pi-1", a_release("two"), job="j2", seq=6, device="pi-2")
    assert "for pi-2" in server.until_ended("pi-1", "j2").detail
    server.assign("pi-1", a_release("two"), job="j3", seq=4)
    assert "not newer than 5" in server.until_ended("pi-1", "j3").detail
    assert serves(agent) == "one"


@pytest.mark.fault
@pytest.mark.parametrize("which", [0, 1])
def test_a_blob_with_a_flipped_bit_never_gets_in(agent: AgentProcess, server: ServerSide, which: int) -> None:
    deploy(agent, server, "one", seq=1)
    release = a_release("two")
    server.spoiled.add(blocks.digest_of(release.blobs[which]))
    server.assign("pi-1", release, job="j2", seq=2)
    ended = server.until_ended("pi-1", "j2")
    assert (ended.state, ended.reason) == ("FAILED", "BadDigest") and "damaged" in ended.detail
    assert serves(agent) == "one"
