"""Federated rounds on a real agent: what it trains, what it sends, what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from edgeml_runtime.wire import blocks, signed, tensors, topics
from edgeml_runtime.wire.messages import RunOver, TaskOffer
from edgeml_runtime.wire.plain import to_plain
from tests.runtime.agent_kit import STRANGER, AgentProcess, ServerSide, deploy, needs_mosquitto, until
from tests.runtime.graphs import FLOAT, INT64, model
from tests.runtime.releases import KEY
from tests.runtime.test_task import second_moments

pytestmark = [pytest.mark.broker, needs_mosquitto]
ROWS = np.random.default_rng(5).normal(size=(3, 64)).astype(np.float32)


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
    np.testing.assert_allclose(update["delta.w"], 0.1 * x.T @ (np.eye(10)[y] - p), atol=1e-4)
    assert list(update) == ["delta.w"] and header.metrics["loss.before"] > 0 and header.metrics["seconds"] > 0
    offer(server, an_offer(server))
    again, same = server.upload("pi-1")
    assert again.digest == header.digest
    np.testing.assert_array_equal(same["delta.w"], update["delta.w"])


def test_an_evaluation_counts_over_labelled_rows(learner: Any, server: ServerSide) -> None:
    _, x, y = learner
    w = np.random.default_rng(2).normal(size=(64, 10)).astype(np.float32)
    offer(server, an_offer(server, graph=confusion(), kind="evaluation", w=w, scalars={}))
    header, counts = server.upload("pi-1")
    assert (header.refused, header.rows, list(counts)) == ("", 40, ["confusion"])
    expected = np.zeros((10, 10))
    np.add.at(expected, (y, (x @ w).argmax(axis=1)), 1)
    np.testing.assert_array_equal(counts["confusion"], expected)


def test_a_statistic_that_takes_no_targets_is_of_all_rows(learner: Any, server: ServerSide) -> None:
    agent, x, _ = learner
    agent.call("/predict", {"rows": ROWS.tolist(), "keep": True})
    offer(server, an_offer(server, graph=second_moments(64), kind="statistics", scalars={}))
    header, sums = server.upload("pi-1")
    assert (header.refused, header.rows) == ("", 43) and int(sums["rows"]) == 43
    wide = np.concatenate([x, ROWS]).astype(np.float64)
    np.testing.assert_allclose(sums["gram"], wide.T @ wide, rtol=1e-12, atol=1e-12)


REFUSED: dict[str, dict[str, Any]] = {  # what the refusal says -> what is wrong with the offer
    "40 labelled rows, and 41 are needed": {"min_rows": 41},
    "digits runs here": {"model": "letters"},
    "outputs of 2,560 bytes": {"max_update_bytes": 100},
    "owner's policy": {"max_update_bytes": 1 << 30},
    "diverged": {"w": np.full((64, 10), np.nan, np.float32)},
    "not a model": {"graph": b"nonsense"},
    "could carry rows away": {"graph": softmax_regression(identity=True)},
    "takes 'lr'": {"scalars": {}},
}


def test_what_must_not_be_trained_is_refused_with_its_reason(learner: Any, server: ServerSide) -> None:
    for number, (why, changes) in enumerate(REFUSED.items()):
        offer(server, an_offer(server, round=f"r{number}", **changes))
        header, update = server.upload("pi-1")
        assert why in header.refused and header.round == f"r{number}", header
        assert update == {} and header.digest == ""


def with_memory() -> bytes:
    """Return the softmax regression that also counts the rounds it ran here."""
    proto = onnx.load_model_from_string(softmax_regression())
    proto.graph.node.append(helper.make_node("Add", ["kept.rounds", "kept.step"], ["keep.rounds"]))
    proto.graph.node.append(helper.make_node("Identity", ["kept.step"], ["keep.step"]))
    proto.graph.node.append(helper.make_node("Mul", ["loss.before", "kept.rounds"], ["loss.after"]))
    for name in ("rounds", "step"):
        proto.graph.input.append(helper.make_tensor_value_info(f"kept.{name}", FLOAT, []))
        proto.graph.output.append(helper.make_tensor_value_info(f"keep.{name}", FLOAT, []))
    proto.graph.output.append(helper.make_tensor_value_info("loss.after", FLOAT, []))
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString())


def a_memory_offer(server: ServerSide, number: int) -> TaskOffer:
    parameters = tensors.pack({"w": np.zeros((64, 10), np.float32), "step": np.array(1, np.float32)})
    digest = server.add(parameters)
    return an_offer(
        server, graph=with_memory(), round=f"run-{number}", parameters=digest, parameters_bytes=len(parameters)
    )


@pytest.mark.fault
def test_what_a_task_keeps_comes_back_next_round_also_after_a_kill(learner: Any, server: ServerSide) -> None:
    agent, *_ = learner

    def rounds_before(number: int) -> int:
        """Return how many rounds the device remembers when it runs this one."""
        offer(server, a_memory_offer(server, number))
        header, update = server.upload("pi-1")
        assert header.refused == "" and list(update) == ["delta.w"]  # nothing that is kept has left
        return round(header.metrics["loss.after"] / header.metrics["loss.before"])

    assert [rounds_before(1), rounds_before(2)] == [0, 1]
    agent.kill()
    agent.start()
    until(lambda: agent.status()["broker"]["connected"], "the broker")
    assert [rounds_before(2), rounds_before(3)] == [1, 2]  # the second as it was, without running it again
    assert "run: " in agent.command("task-policy").stdout
    server.publish(topics.task("run"), signed.sign(to_plain(RunOver(run="run")), KEY))
    until(lambda: not list((agent.state / "kept").glob("*.safetensors")), "the end of the memory")
    assert rounds_before(4) == 0
    told = agent.command("task-policy", "--forget", "run")
    assert told.returncode == 0 and not list((agent.state / "kept").glob("*.safetensors"))
    assert [line.split()[4] for line in told.stdout.splitlines() if line.startswith("ran ")] == [
        "run-1", "run-2", "run-3", "run-4",
    ]  # fmt: skip


def restarted(agent: AgentProcess, *settings: str) -> None:
    """Give `agent` another policy."""
    agent.stop()
    done = agent.command("task-policy", *(word for setting in settings for word in ("--set", setting)))
    assert done.returncode == 0, done.stderr
    agent.start()
    until(lambda: agent.status()["broker"]["connected"], "the broker")


def test_only_pinned_graphs_run_and_only_so_many_a_day(learner: Any, server: ServerSide) -> None:
    agent, *_ = learner
    restarted(agent, f"templates={blocks.digest_of(softmax_regression())}", "tasks_per_day=1")
    offer(server, an_offer(server, graph=confusion(), kind="evaluation", round="r-1"))
    assert "is none of the 1 that the owner has pinned" in server.upload("pi-1")[0].refused
    offer(server, an_offer(server, round="r-2"))
    assert server.upload("pi-1")[0].refused == ""
    offer(server, an_offer(server, round="r-3"))
    assert "1 tasks ran here in 24 hours, and the owner's policy allows 1" in server.upload("pi-1")[0].refused


def test_tasks_may_need_a_key_of_their_own(learner: Any, server: ServerSide) -> None:
    agent, *_ = learner
    restarted(agent, f"task_keys={signed.public_hex(STRANGER)}")
    offer(server, an_offer(server, round="r-1"))
    until(lambda: "BadSignature" in agent.status()["malformed"]["last"], "the refusal")
    offer(server, an_offer(server, round="r-2"), key=STRANGER)
    assert server.upload("pi-1")[0].refused == ""


def test_a_task_that_takes_its_process_down_leaves_the_agent_serving(learner: Any, server: ServerSide) -> None:
    agent, *_ = learner
    restarted(agent, "max_task_s=2")
    offer(server, an_offer(server, graph=slow_task(turns=1_000_000), deadline_s=60.0))
    header, _ = server.upload("pi-1")
    assert "Timeout: not done within 2 s" in header.refused
    assert len(agent.predict(ROWS)["labels"]) == 3
    offer(server, an_offer(server, round="r-2"))
    assert server.upload("pi-1")[0].refused == ""


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


def confusion() -> bytes:
    """Return the evaluation of a linear classifier: how often which class was taken for which, (10, 10)."""
    nodes = [
        helper.make_node("MatMul", ["numeric", "w"], ["z"]),
        helper.make_node("ArgMax", ["z"], ["label"], axis=1, keepdims=0),
        helper.make_node("OneHot", ["target", "depth", "values"], ["true"], axis=0),
        helper.make_node("OneHot", ["label", "depth", "values"], ["taken"], axis=1),
        helper.make_node("MatMul", ["true", "taken"], ["confusion"]),
    ]
    return model(
        nodes,
        [("numeric", FLOAT, ["rows", 64]), ("target", INT64, ["rows"]), ("w", FLOAT, [64, 10])],
        outputs=[("confusion", FLOAT, [10, 10])],
        weights={"depth": np.array([10], np.int64), "values": np.array([0, 1], np.float32)},
    )


def slow_task(turns: int = 60) -> bytes:
    """Return the softmax regression behind a loop that multiplies matrices for a tenth of a second in every run."""
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
        "times": np.array(turns, np.int64),
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
