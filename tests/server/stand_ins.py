"""A coordinator, and devices that speak the wire with the runtime's own hands but without its agent."""

from __future__ import annotations

import contextlib
import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import paho.mqtt.client as mqtt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from onnx import TensorProto, helper, numpy_helper
from paho.mqtt.enums import CallbackAPIVersion

from edgeml import convert, tasks
from edgeml.artifacts import Bundle, OnnxModel
from edgeml.registry import FederationRecord, Registry, RoundRecord
from edgeml.server import Coordinator, Findings, Learner
from edgeml.tasks.study import Study
from edgeml.transport import Broker, ServerTransport
from edgeml_runtime import outgoing
from edgeml_runtime.answered import Trained
from edgeml_runtime.config import Policy
from edgeml_runtime.download import Receiver, Window
from edgeml_runtime.feedback import Feedback
from edgeml_runtime.masker import Masker
from edgeml_runtime.session import Session
from edgeml_runtime.wire import blocks, messages, secure, signed, tensors, topics
from edgeml_runtime.wire.manifest import Bounds, Manifest, ReleaseVariant, TensorSpec, blob_of, read_manifest
from edgeml_runtime.wire.messages import (
    Assignment,
    BlockRequest,
    JobStatus,
    Online,
    Reported,
    Running,
    TaskOffer,
    UpdateHeader,
)
from edgeml_runtime.wire.updates import sign_update

PATIENCE_S = 30.0
FEATURES, CLASSES = 6, 3


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait, within bounds, until `condition` holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE_S:g} s for {what}"
        time.sleep(0.01)


class Device:
    """A device in this process: takes assignments, pulls blobs, trains on `rows`, and never tires.

    `on_block` is called with every block before it is looked at.
    """

    def __init__(self, broker: Broker, registry: Registry, folder: Path, *, name: str, board: str = "") -> None:
        self.name, self.board, self.trusted = name, board, [registry.public_key_hex()]
        self.folder, self.boot_id = folder / name, secrets.token_hex(4)
        self.key: Ed25519PrivateKey | None = Ed25519PrivateKey.generate()
        self.rows: dict[str, np.ndarray] = {}
        self.running: Running | None = None
        self.blocks_received = 0
        self.assignments: list[Assignment] = []
        self.on_block: Callable[[], None] = lambda: None
        self.on_offer: Callable[[TaskOffer], None] = lambda offer: None
        self.sent: list[tuple[str, bytes]] = []  # of rounds
        self.refuses = ""
        self.failure: BaseException | None = None
        self._stopping = threading.Event()
        self._seq = 0
        self._inbox: queue.SimpleQueue[tuple[str, bytes] | None] = queue.SimpleQueue()
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv311)
        client.reconnect_delay_set(1, 1)
        client.will_set(topics.online(name), self._presence(False), qos=1, retain=True)
        client.on_connect = self._connected
        client.on_message = lambda client, data, message: self._inbox.put((message.topic, bytes(message.payload)))
        self.client = client
        self.losses: dict[str, float] = {}
        self.on_ask: Callable[[str], None] = lambda phase: None
        self.masker: Masker | None = None
        if self.key is not None:
            self.masker = Masker(
                name,
                self.key,
                tuple(self.trusted),
                send=client.publish,
                upload=lambda offer, masked: self._upload(offer, masked.body),
            )
        client.connect(broker.host, broker.port, keepalive=5)
        client.loop_start()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def report(self, job: JobStatus | None = None) -> None:
        """Publish the whole state."""
        self._seq += 1
        reported = Reported(
            boot_id=self.boot_id,
            seq=self._seq,
            agent="test",
            board=self.board,
            samples=len(next(iter(self.rows.values()), ())),
            running=self.running,
            job=job,
            key=signed.public_hex(self.key) if self.key else "",
        )
        self.client.publish(topics.reported(self.name), messages.encode(reported), qos=1, retain=True)

    def vanish(self) -> None:
        """Drop the connection without a goodbye, so that the broker publishes the will; `come_back` reconnects."""
        self.client.loop_stop()
        sock = self.client.socket()
        if sock is not None:
            sock.close()

    def stop(self) -> None:
        self._stopping.set()
        self._inbox.put(None)
        self._thread.join(PATIENCE_S)
        self.client.disconnect()
        self.client.loop_stop()
        if self.failure is not None:
            raise self.failure

    def _presence(self, online: bool) -> bytes:
        return messages.encode(Online(online=online, boot_id=self.boot_id))

    def _connected(self, client: mqtt.Client, *_: Any) -> None:
        client.subscribe([(name, 1) for name in topics.for_device(self.name)])
        client.publish(topics.online(self.name), self._presence(True), qos=1, retain=True)
        self.report()

    def _work(self) -> None:
        try:
            while (item := self._inbox.get()) is not None:
                topic, payload = item
                if topic == topics.desired(self.name):
                    self._deploy(payload)
                elif (parsed := topics.parse(topic)).kind == "task":
                    self._learn(payload)
                elif parsed.kind == "ask" and self.masker is not None:
                    self.on_ask(secure.decode_ask(payload, tuple(self.trusted)).phase)
                    self.masker.asked(payload, parsed.detail, time.monotonic())
        except BaseException as error:
            self.failure = None if self._stopping.is_set() else error

    def _deploy(self, payload: bytes) -> None:
        assignment = messages.from_document(Assignment, signed.verify(payload, self.trusted))
        assert assignment.device == self.name
        self.assignments.append(assignment)
        self.report(JobStatus(job=assignment.job, state="IN_PROGRESS", step="DOWNLOADING"))
        if self.refuses:
            self.report(JobStatus(job=assignment.job, state="REJECTED", reason="ModelRefused", detail=self.refuses))
            return
        envelope = self.pull(assignment.manifest, assignment.manifest_bytes)
        manifest = read_manifest(signed.verify(envelope, self.trusted))
        for blob in manifest.blobs_for(self.board):
            self.pull(blob.digest, blob.size, blob.blocks)
        graph = manifest.variant_for(self.board).graph.digest
        self.running = Running(
            model=manifest.model, release=manifest.release, variant=manifest.default_variant, graph=graph
        )
        self.report(JobStatus(job=assignment.job, state="SUCCEEDED", progress=1.0))

    def _learn(self, payload: bytes) -> None:
        document = signed.verify(payload, self.trusted)
        if document["kind"] == "over":
            return
        offer = messages.from_document(TaskOffer, document)
        if self.name not in offer.cohort:
            return
        self.on_offer(offer)
        up = topics.update(self.name, offer.round)
        if self.refuses:
            header = self._header(offer, 0) | {"refused": self.refuses}
            self._say(up, UpdateHeader(**header))
            return
        graph = self.pull(offer.graph, offer.graph_bytes)
        parameters = tensors.unpack(self.pull(offer.parameters, offer.parameters_bytes))
        scalars = {name: np.asarray(value, np.float32) for name, value in offer.scalars.items()}
        if "seed" in scalars:
            scalars["seed"] = np.array(int(offer.scalars["seed"]), np.int64)
        session, given = Session(graph), {**self.rows, **parameters, **scalars}
        outputs = session.run({spec.name: given[spec.name] for spec in session.inputs})
        if offer.kind != "training":
            self._give(offer, outputs)
            return
        terms = outgoing.terms(offer, Policy())
        losses = {name: float(outputs[name]) for name in ("loss.before", "loss.after")}
        self.losses = outgoing.told(losses, offer, terms)
        update = {name.removeprefix("delta."): array for name, array in outputs.items() if name.startswith("delta.")}
        update = outgoing.bounded(update, terms)
        self._give(offer, update)

    def _give(self, offer: TaskOffer, update: Mapping[str, np.ndarray]) -> None:
        if offer.secure is not None and self.masker is not None:
            trained = Trained(tensors.pack(update), len(self.rows["target"]), self.losses)
            self.masker.ready(offer, trained, now=time.monotonic())
        else:
            self._upload(offer, outgoing.packed(update, offer, Feedback(self.folder / "feedback")))

    def _upload(self, offer: TaskOffer, data: bytes) -> None:
        header = self._header(offer, len(self.rows["target"])) | {
            "digest": blocks.digest_of(data),
            "size": len(data),
            "metrics": self.losses,
        }
        up = topics.update(self.name, offer.round)
        self._say(up, UpdateHeader(**header))
        for index, block in enumerate(blocks.split(data)):
            self.client.publish(up, blocks.encode(blocks.digest_of(data), index, block), qos=1)

    def _say(self, topic: str, header: UpdateHeader) -> None:
        signed_header = sign_update(header, self.key) if self.key else header
        self.sent.append((topic, messages.encode(signed_header)))
        self.client.publish(*self.sent[-1], qos=1)

    def _header(self, offer: TaskOffer, rows: int) -> dict[str, Any]:
        return {"round": offer.round, "device": self.name, "boot_id": self.boot_id, "rows": rows}

    def pull(self, digest: str, size: int, hashes: Sequence[str] = ()) -> bytes:
        """Return the blob, pulled as an agent does: a window of requests, asked again when nothing comes."""
        receiver = Receiver(self.folder, digest=digest, size=size, hashes=hashes)
        window, waiting = Window(receiver.count), []
        deadline = time.monotonic() + PATIENCE_S
        while receiver.missing:
            assert not self._stopping.is_set(), "stopped in the middle of a transfer"
            assert time.monotonic() < deadline, (
                f"{self.name}: {len(receiver.missing)} blocks of {digest[:12]} never came"
            )
            if ranges := window.ask(receiver.missing, time.monotonic()):
                request = messages.encode(BlockRequest(digest=digest, ranges=ranges))
                self.client.publish(topics.request(self.name), request)
            with contextlib.suppress(queue.Empty):
                item = self._inbox.get(timeout=0.2)
                if item is not None and item[0] == topics.block(self.name):
                    self.blocks_received += 1
                    self.on_block()
                    block = blocks.decode(item[1])
                    receiver.accept(block)
                    window.arrived(block.index)
                else:
                    waiting.append(item)
        for item in waiting:
            self._inbox.put(item)
        return receiver.finish().read_bytes()


class Server:
    """A coordinator in a thread of this process."""

    def __init__(self, registry: Registry, broker: Broker, retrain: Any) -> None:
        self._stop = threading.Event()
        self.transport = ServerTransport(broker.host, broker.port)
        self.coordinator = Coordinator(registry, self.transport, retrain=retrain)
        self._thread = threading.Thread(target=self.coordinator.run, args=(self._stop,), daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        self._stop.set()
        self.transport.wake()
        self._thread.join(PATIENCE_S)
        self.transport.close()


def a_model(seed: int = 0) -> OnnxModel:
    """An MLP over `numeric` with softmax probabilities and a label, as the converters write it."""
    rng = np.random.default_rng(seed)
    weights = {
        "w0": rng.normal(0, 0.5, (FEATURES, 8)),
        "b0": np.zeros(8),
        "w1": rng.normal(0, 0.5, (8, CLASSES)),
        "b1": np.zeros(CLASSES),
    }
    nodes = [
        helper.make_node("Gemm", ["numeric", "w0", "b0"], ["h0"]),
        helper.make_node("Relu", ["h0"], ["h1"]),
        helper.make_node("Gemm", ["h1", "w1", "b1"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("numeric", TensorProto.FLOAT, ["rows", FEATURES])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["rows"]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", CLASSES]),
        ],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto)
    return OnnxModel(proto.SerializeToString(), "test")


def rows_of(seed: int, count: int = 60) -> dict[str, np.ndarray]:
    """Rows that a linear rule labels: learnable, and different for every seed."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(count, FEATURES)).astype(np.float32)
    rule = np.random.default_rng(99).normal(size=(FEATURES, CLASSES))
    return {"numeric": inputs, "target": (inputs @ rule).argmax(axis=1).astype(np.int64)}


class InMemoryRetrain:
    """Judges by accuracy on its own rows, and keeps what it was asked to release."""

    def __init__(self) -> None:
        self.released: list[OnnxModel] = []
        self.findings: list[Findings] = []
        self.asks = False

    def prepare(self, record: FederationRecord) -> Learner:
        return Learner(
            a_model(),
            "softmax_cross_entropy",
            1.0,
            self.evaluate,
            self.release,
            surveys=self.surveys,
            study=lambda: tasks.study(record.options.family, features=FEATURES, classes=(0, 1, 2), name="numeric"),
            fitted=lambda found: convert.from_sklearn(found, {"numeric": FEATURES}, source="test"),
        )

    def surveys(self, candidate: OnnxModel) -> Mapping[str, Study]:
        return {"evaluation": tasks.evaluation(candidate, "classification", before=a_model())} if self.asks else {}

    def evaluate(self, model: OnnxModel) -> dict[str, float]:
        rows = rows_of(1000, 200)
        answers = Session(model.data).run({"numeric": rows["numeric"]})
        right = answers["probabilities"][np.arange(200), rows["target"]]
        return {"metric": float(np.mean(answers["label"] == rows["target"])), "loss": float(-np.log(right).mean())}

    def release(self, model: OnnxModel, rounds: Sequence[RoundRecord], findings: Findings) -> Mapping[str, Any]:
        self.released.append(model)
        self.findings.append(findings)
        return {
            "after": self.evaluate(model),
            "released": "new-release",
            "reason": f"better after {len(rounds)} rounds",
        }


def a_bundle(graph: bytes, release: str = "ab12ab12ab12") -> Bundle:
    manifest = Manifest(
        model="toy",
        release=release,
        task="classification",
        created="2026-01-02T03:04:05Z",
        inputs=(TensorSpec(name="numeric", dtype="float32", shape=(-1, FEATURES)),),
        outputs=(TensorSpec(name="label", dtype="int64", shape=(-1,)),),
        variants=(ReleaseVariant(name="fp32", graph=blob_of(graph), bounds=Bounds(max_abs=1e-4, label_flips=0)),),
        default_variant="fp32",
        boards={},
        goldens=blob_of(b"goldens"),
    )
    return Bundle(manifest, {blob_of(graph).digest: graph, blob_of(b"goldens").digest: b"goldens"})
