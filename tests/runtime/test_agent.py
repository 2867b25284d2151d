"""A real agent process, a real broker and a small server side: deployments, serving, rounds, and faults."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from edgeml_runtime.session import Session
from edgeml_runtime.wire import blocks, signed, tensors, topics
from edgeml_runtime.wire.manifest import blob_of
from edgeml_runtime.wire.messages import Online, TaskOffer, encode
from edgeml_runtime.wire.plain import to_plain
from tests.runtime.agent_kit import (
    KEY,
    STRANGER,
    AgentProcess,
    Mosquitto,
    ServerSide,
    a_release,
    broker_in,
    needs_mosquitto,
    server_at,
    until,
)
from tests.runtime.conftest import FLOAT, INT64, mlp, model

pytestmark = [pytest.mark.broker, needs_mosquitto]
ROWS = np.random.default_rng(5).normal(size=(3, 64)).astype(np.float32)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with broker_in(tmp_path) as running:
        yield running


@pytest.fixture
def server(broker: Mosquitto) -> Iterator[ServerSide]:
    with server_at(broker.port) as running:
        yield running


@pytest.fixture
def agent(tmp_path: Path, broker: Mosquitto) -> Iterator[AgentProcess]:
    with AgentProcess(tmp_path, broker.port) as process:
        yield process.start()


def deploy(agent: AgentProcess, server: ServerSide, name: str, *, seq: int, **options: Any) -> None:
    server.assign(agent.device, a_release(name, **options), job=f"job-{name}", seq=seq)
    ended = server.until_ended(agent.device, f"job-{name}")
    assert ended.state == "SUCCEEDED", ended


def serves(agent: AgentProcess) -> str | None:
    running = agent.status()["running"]
    return running["release"] if running else None


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


@pytest.mark.fault
def test_an_agent_that_is_killed_while_downloading_goes_on_without_asking_twice(
    agent: AgentProcess, server: ServerSide
) -> None:
    release = a_release("big", padding=4 << 20)
    graph, count = blocks.digest_of(release.blobs[0]), blocks.count(len(release.blobs[0]))
    server.limit = 50
    server.assign("pi-1", release, job="j1", seq=1)
    until(lambda: server.limit == 0, "the server to fall silent")
    bitmap = agent.state / "blobs" / f"{graph}.bitmap"
    here = until(lambda: {i for i, byte in enumerate(_bits(bitmap)) if byte}, "blocks on the disk")
    agent.kill()
    here = {i for i, bit in enumerate(_bits(bitmap)) if bit}
    server.limit = None
    server.served.clear()
    agent.start()
    assert server.until_ended("pi-1", "j1").state == "SUCCEEDED"
    asked = {index for digest, index in server.served if digest == graph}
    assert len(here) >= 16 and not asked & here and asked | here == set(range(count))
    assert serves(agent) == "big"


def _bits(path: Path) -> list[int]:
    data = path.read_bytes() if path.exists() else b""
    return [byte >> bit & 1 for byte in data for bit in range(8)]


@pytest.mark.fault
@pytest.mark.parametrize("step", ["VERIFYING", "PROBING", "TRIAL", "SOAKING"])
def test_an_agent_that_is_killed_in_any_step_serves_old_or_new_and_finishes(
    agent: AgentProcess, server: ServerSide, step: str
) -> None:
    deploy(agent, server, "one", seq=1)
    server.assign("pi-1", a_release("two"), job="j2", seq=2, soak_s=1.0)
    until(lambda: any(s.step == step for s in server.status("pi-1", "j2")), step)
    agent.kill()
    agent.start()
    assert serves(agent) in ("one", "two")
    assert server.until_ended("pi-1", "j2").state == "SUCCEEDED"
    assert serves(agent) == "two"


@pytest.mark.fault
def test_a_release_under_which_the_agent_keeps_dying_is_given_up(agent: AgentProcess, server: ServerSide) -> None:
    deploy(agent, server, "one", seq=1)
    server.assign("pi-1", a_release("two"), job="j2", seq=2, soak_s=60.0)
    for _ in range(4):
        until(lambda: agent.status()["job"]["step"] == "SOAKING", "the soak")
        agent.kill()
        agent.start()
    ended = server.until_ended("pi-1", "j2")
    assert ended.state == "ROLLED_BACK" and "died again and again" in ended.detail
    assert serves(agent) == "one"


@pytest.mark.fault
def test_a_transfer_survives_the_death_of_the_broker(
    agent: AgentProcess, server: ServerSide, broker: Mosquitto
) -> None:
    release = a_release("big", padding=3 << 20)
    server.limit = 30
    server.assign("pi-1", release, job="j1", seq=1)
    until(lambda: server.limit == 0, "the server to fall silent")
    broker.kill()
    until(lambda: not agent.status()["broker"]["connected"], "the agent to notice")
    server.limit = None
    broker.start()
    assert server.until_ended("pi-1", "j1").state == "SUCCEEDED"
    twice = [key for key, count in server.served.items() if count > 1]
    assert len(twice) <= blocks.WINDOW_BLOCKS
    assert serves(agent) == "big"


@pytest.mark.fault
def test_a_full_disk_fails_the_job_with_the_numbers_and_the_old_release_answers(
    small_disk: Path, broker: Mosquitto, server: ServerSide
) -> None:
    with AgentProcess(small_disk, broker.port) as agent:
        agent.start()
        deploy(agent, server, "one", seq=1)
        server.assign("pi-1", a_release("big", padding=3 << 20), job="j2", seq=2)
        ended = server.until_ended("pi-1", "j2")
        assert (ended.state, ended.reason) == ("FAILED", "StorageFull")
        assert "bytes" in ended.detail and "free" in ended.detail
        assert serves(agent) == "one" and len(agent.predict(ROWS)["labels"]) == 3
        assert not list(agent.state.rglob("*.part")), "half a blob was left on the full disk"
        deploy(agent, server, "three", seq=3)
        assert serves(agent) == "three"


@pytest.mark.fault
def test_without_a_broker_the_agent_serves_and_says_so_once(tmp_path: Path) -> None:
    with broker_in(tmp_path) as broker, AgentProcess(tmp_path, broker.port) as agent:
        with server_at(broker.port) as server:
            agent.start()
            deploy(agent, server, "one", seq=1)
        agent.stop()
        broker.kill()
        agent.log.unlink()
        agent.start()
        assert len(agent.predict(ROWS)["labels"]) == 3
        until(lambda: "no broker answers" in agent.said(), "the line about the broker")
        until(lambda: not agent.status()["broker"]["connected"], "the status")
        broker.start()
        until(lambda: agent.status()["broker"]["connected"], "the connection")
        assert agent.said().count("no broker answers") == 1 and "Traceback" not in agent.said()


@pytest.mark.fault
def test_of_two_agents_with_one_id_the_older_yields_and_keeps_serving(tmp_path: Path, broker: Mosquitto) -> None:
    with server_at(broker.port) as server, AgentProcess(tmp_path, broker.port) as first:
        first.start()
        deploy(first, server, "one", seq=1)
        with AgentProcess(tmp_path, broker.port, state="twin") as second:
            second.start()
            until(lambda: first.status()["conflict"], "the older agent to yield")
            assert first.said().count("another agent uses the id pi-1: enroll one of them under another id") == 1
            assert len(first.predict(ROWS)["labels"]) == 3
            until(lambda: second.status()["broker"]["connected"], "the newer agent")
            assert second.status()["conflict"] == "" and not first.status()["broker"]["connected"]


@pytest.mark.fault
def test_a_second_agent_on_one_state_folder_is_refused(agent: AgentProcess) -> None:
    done = agent.command("run")
    assert done.returncode == 4
    assert "another agent (pid" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_nothing_that_arrives_can_end_the_agent(agent: AgentProcess, server: ServerSide) -> None:
    junk = [b"", b"{", b"\xff" * 100, b"[" * 5000, b"x" * 70_000, b'{"signed": {}, "signatures": []}', b"null"]
    names = (topics.desired("pi-1"), topics.block("pi-1"), topics.online("pi-1"), topics.task("r1"))
    for topic in names:
        for payload in junk:
            server.publish(topic, payload)
    deploy(agent, server, "one", seq=1)
    status = agent.status()
    assert status["malformed"]["count"] >= 20 and status["malformed"]["last"]
    assert "Traceback" not in agent.said()
    until(lambda: any(m.last_error for m in server.metrics["pi-1"]), "the report of it")


def test_the_agent_says_goodbye(agent: AgentProcess, server: ServerSide) -> None:
    until(lambda: server.online["pi-1"] and server.online["pi-1"][-1].online, "the announcement")
    assert agent.stop() == 0
    until(lambda: not server.online["pi-1"][-1].online, "the goodbye")
    assert not (agent.state / "http.json").exists()


@pytest.mark.fault
def test_the_broker_speaks_for_an_agent_that_is_killed(agent: AgentProcess, server: ServerSide) -> None:
    until(lambda: server.online["pi-1"], "the announcement")
    boot = server.online["pi-1"][-1].boot_id
    agent.kill()
    until(lambda: server.online["pi-1"][-1] == Online(online=False, boot_id=boot), "the will")


def test_a_late_will_of_an_older_boot_is_answered(agent: AgentProcess, server: ServerSide) -> None:
    until(lambda: server.online["pi-1"], "the announcement")
    old = server.online["pi-1"][-1].boot_id
    agent.stop()
    agent.start()
    new = until(lambda: next((o.boot_id for o in server.online["pi-1"] if o.boot_id != old), ""), "the new boot")
    server.publish(topics.online("pi-1"), encode(Online(online=False, boot_id=old)), retain=True)
    until(lambda: server.online["pi-1"][-1] == Online(online=True, boot_id=new), "the agent to speak up")
    assert agent.status()["conflict"] == ""


def test_nothing_is_written_under_home(agent: AgentProcess, server: ServerSide) -> None:
    deploy(agent, server, "one", seq=1)
    assert len(agent.predict(ROWS)["labels"]) == 3
    assert list(agent.home.rglob("*")) == []


def test_an_agent_that_serves_is_small(agent: AgentProcess, server: ServerSide) -> None:
    deploy(agent, server, "one", seq=1)
    for _ in range(50):
        agent.predict(ROWS[:1])
    assert agent.status()["rss_bytes"] <= 75 << 20


# ---- federated rounds


def softmax_regression(*, identity: bool = False) -> bytes:
    """Return one step of softmax regression over all rows; with `identity`, a task that would carry the rows out."""
    nodes = [
        helper.make_node("MatMul", ["numeric", "w"], ["z"]),
        helper.make_node("Softmax", ["z"], ["p"], axis=1),
        helper.make_node("OneHot", ["target", "depth", "values"], ["t"], axis=1),
        helper.make_node("Sub", ["t", "p"], ["d"]),
        helper.make_node("Transpose", ["numeric"], ["x"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "d"], ["g"]),
        helper.make_node("Mul", ["g", "lr"], ["delta.w"]),
        helper.make_node("Mul", ["d", "d"], ["dd"]),
        helper.make_node("ReduceMean", ["dd"], ["loss.before"], keepdims=0),
    ]
    outputs: list[Any] = [("delta.w", FLOAT, [64, 10]), ("loss.before", FLOAT, [])]
    if identity:
        nodes.append(helper.make_node("Identity", ["numeric"], ["copy"]))
        outputs.append(("copy", FLOAT, ["rows", 64]))
    return model(
        nodes,
        [
            ("numeric", FLOAT, ["rows", 64]),
            ("target", INT64, ["rows"]),
            ("lr", FLOAT, []),
            ("w", FLOAT, [64, 10]),
        ],
        outputs=outputs,
        weights={"depth": np.array([10], np.int64), "values": np.array([0, 1], np.float32)},
    )


def an_offer(
    server: ServerSide, *, graph: bytes | None = None, w: np.ndarray | None = None, **changes: Any
) -> TaskOffer:
    task = softmax_regression() if graph is None else graph
    parameters = tensors.pack({"w": np.zeros((64, 10), np.float32) if w is None else w})
    return TaskOffer(
        **{
            "round": "r1",
            "kind": "training",
            "model": "digits",
            "cohort": ("pi-1",),
            "graph": server.add(task),
            "graph_bytes": len(task),
            "parameters": server.add(parameters),
            "parameters_bytes": len(parameters),
            "scalars": {"lr": 0.1},
            "min_rows": 10,
            "max_update_bytes": 1 << 20,
            "deadline_s": 30.0,
            **changes,
        }
    )


def offer(server: ServerSide, task: TaskOffer, *, key: Any = KEY) -> None:
    server.publish(topics.task(task.round), signed.sign(to_plain(task), key))


@pytest.fixture
def learner(agent: AgentProcess, server: ServerSide) -> tuple[AgentProcess, np.ndarray, np.ndarray]:
    """Return an agent that serves digits and holds 40 labelled rows."""
    deploy(agent, server, "one", seq=1)
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(40, 64)).astype(np.float32), rng.integers(0, 10, 40)
    told = agent.call("/samples", {"rows": x.tolist(), "targets": [str(label) for label in y]})
    assert told["labelled"] == 40
    until(lambda: server.reports["pi-1"][-1].samples == 40, "the samples in the report")
    return agent, x, y


def test_a_round_trains_on_all_local_rows_and_sends_the_update_only(learner: Any, server: ServerSide) -> None:
    _, x, y = learner
    offer(server, an_offer(server))
    header, update = server.upload("pi-1")
    assert (header.refused, header.rows, header.round) == ("", 40, "r1")
    p = np.full((40, 10), 0.1)
    np.testing.assert_allclose(update["w"], 0.1 * x.T @ (np.eye(10)[y] - p), atol=1e-4)
    assert list(update) == ["w"] and header.metrics["loss.before"] > 0 and header.metrics["seconds"] > 0
    offer(server, an_offer(server))
    again, same = server.upload("pi-1")
    assert again.digest == header.digest
    np.testing.assert_array_equal(same["w"], update["w"])


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"min_rows": 41}, "40 labelled rows, and 41 are needed"),
        ({"model": "letters"}, "digits runs here"),
        ({"max_update_bytes": 100}, "outputs of 2,560 bytes"),
        ({"max_update_bytes": 1 << 30}, "owner's policy"),
        ({"w": np.full((64, 10), np.nan, np.float32)}, "diverged"),
        ({"graph": b"nonsense"}, "not a model"),
        ({"graph": softmax_regression(identity=True)}, "could carry rows away"),
        ({"scalars": {}}, "takes 'lr'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_must_not_be_trained_is_refused_with_its_reason(
    learner: Any, server: ServerSide, changes: dict[str, Any], why: str
) -> None:
    offer(server, an_offer(server, **changes))
    header, update = server.upload("pi-1")
    assert why in header.refused and update == {} and header.digest == ""


@pytest.mark.fault
def test_a_task_that_nobody_trusted_signed_is_not_even_fetched(learner: Any, server: ServerSide) -> None:
    agent, *_ = learner
    task = an_offer(server)
    offer(server, task, key=STRANGER)
    until(lambda: agent.status()["malformed"]["count"], "the count")
    assert agent.status()["round"] is None and (task.graph, 0) not in server.served


def test_serving_goes_on_while_a_round_is_trained(learner: Any, server: ServerSide) -> None:
    agent, *_ = learner
    offer(server, an_offer(server, graph=slow_task(), deadline_s=60.0))
    until(lambda: agent.status()["round"] and agent.status()["round"]["phase"] == "TRAINING", "the training")
    answered = 0
    while agent.status()["round"]["phase"] == "TRAINING" and answered < 20:
        assert len(agent.predict(ROWS)["labels"]) == 3
        answered += 1
    assert answered > 1
    assert server.upload("pi-1")[0].refused == ""


def slow_task() -> bytes:
    """Return the softmax regression behind a loop that multiplies matrices for a second or so."""
    proto = onnx.load_model_from_string(softmax_regression())
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["m", "m"], ["mm"]),
            helper.make_node("Mul", ["mm", "small"], ["out"]),
            helper.make_node("Identity", ["go"], ["going"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", INT64, []),
            helper.make_tensor_value_info("go", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("m", FLOAT, [300, 300]),
        ],
        [
            helper.make_tensor_value_info("going", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("out", FLOAT, [300, 300]),
        ],
        [onnx.numpy_helper.from_array(np.array(1e-3, np.float32), "small")],
    )
    constants = {
        "eye": np.eye(300, dtype=np.float32),
        "times": np.array(1500, np.int64),
        "true": np.array(True),
        "zero": np.array(0, np.float32),
    }
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    proto.graph.node.extend(
        [
            helper.make_node("Loop", ["times", "true", "eye"], ["end"], body=body),
            helper.make_node("ReduceMean", ["end"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "zero"], ["nought"]),
            helper.make_node("Add", ["loss.before", "nought"], ["loss.after"]),
        ]
    )
    proto.graph.output.append(helper.make_tensor_value_info("loss.after", FLOAT, []))
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString())
