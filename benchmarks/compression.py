"""Federated digits with compressed updates: bytes on the wire against accuracy.

    python benchmarks/compression.py [--seeds 3] [--rounds 30]

Ten devices train the MLP 64-64-10 (4,810 parameters) on scikit-learn's digits, 5 local epochs a round, through the
real task graph, the device's compression with its feedback, the bytes of the wire and the server's checks; only the
broker is not there. Two splits: every device the same digits, and two shards of sorted labels each. Writes
results/compression.json and .md next to this file.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

from edgeml.artifacts import Task
from edgeml.autodiff import SGD, training_step
from edgeml.federated import Federation, Plan, Update
from edgeml.tasks import training
from edgeml_runtime.feedback import Feedback
from edgeml_runtime.measure import environment
from edgeml_runtime.outgoing import packed
from edgeml_runtime.session import Session
from edgeml_runtime.wire import blocks, messages, tensors

RESULTS = Path(__file__).parent / "results"
METHODS = ("", "fp16", "int8", "int8:stochastic", "topk:0.05", "topk:0.01", "sign")
SPLITS = ("the same digits", "two label shards")
DEVICES, EPOCHS, BATCH, RATE, MOMENTUM, TRAIN, GOAL = 10, 5, 32, 0.1, 0.0, 1347, 0.95


@dataclass(frozen=True)
class Run:
    """One federation: accuracy on the server's rows after every round, bytes of one device in one round."""

    accuracy: list[float]
    bytes_up: float


@functools.cache
def rows(seed: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(y))
    return (x[order] / 16).astype(np.float32), y[order].astype(np.int64)


def shares(split: str, seed: int) -> list[np.ndarray]:
    """Return the training rows of every device."""
    rng, labels = np.random.default_rng(seed), rows(seed)[1][:TRAIN]
    if split == SPLITS[0]:
        return np.array_split(rng.permutation(TRAIN), DEVICES)
    shards = np.array_split(np.argsort(labels, kind="stable"), 2 * DEVICES)
    order = rng.permutation(2 * DEVICES)
    return [np.concatenate([shards[order[2 * k]], shards[order[2 * k + 1]]]) for k in range(DEVICES)]


def network(seed: int) -> bytes:
    """Return an untrained MLP 64-64-10 with He's initial weights."""
    rng = np.random.default_rng(seed)
    sizes = {"w1": (64, 64), "b1": (64,), "w2": (64, 10), "b2": (10,)}
    weights = {n: rng.normal(0, np.sqrt(2 / s[0]), s) if len(s) == 2 else np.zeros(s) for n, s in sizes.items()}
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["a"]),
        helper.make_node("Gemm", ["a", "w2", "b2"], ["z"]),
        helper.make_node("Softmax", ["z"], ["probabilities"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 64])]
    outputs = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", 10])]
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "digits", inputs, outputs, constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(proto.SerializeToString())


def accuracy(w: dict[str, np.ndarray], seed: int) -> float:
    x, y = rows(seed)
    scores = np.maximum(x[TRAIN:] @ w["w1"] + w["b1"], 0) @ w["w2"] + w["b2"]
    return float((scores.argmax(1) == y[TRAIN:]).mean())


def federate(spec: str, split: str, *, seed: int, rounds: int) -> Run:
    """Run one federation and return its curve."""
    task = training(training_step(network(seed), optimizer=SGD(MOMENTUM)), epochs=EPOCHS, batch_size=BATCH)
    plan = Plan(
        rounds=rounds, min_devices=DEVICES, learning_rate=RATE, compress=spec, local_epochs=EPOCHS, batch_size=BATCH
    )
    federation = Federation(f"bench-{seed}", plan, model="digits", parameters=task.parameters)
    session, held, curve, sent = Session(task.data), shares(split, seed), list[float](), list[int]()
    with tempfile.TemporaryDirectory() as folder:
        feedbacks = [Feedback(Path(folder) / str(k)) for k in range(DEVICES)]
        while not federation.finished:
            sent += a_round(federation, task, session, held=held, feedbacks=feedbacks, seed=seed)
            curve.append(accuracy(federation.parameters, seed))
    return Run(curve, statistics.mean(sent))


def a_round(
    federation: Federation,
    task: Task,
    session: Session,
    *,
    held: Sequence[np.ndarray],
    feedbacks: Sequence[Feedback],
    seed: int,
) -> list[int]:
    """Let every device answer one round; return the bytes that each of them sent."""
    x, y = rows(seed)
    machine = federation.begin({f"d{k}": len(own) for k, own in enumerate(held)}, now=0.0)
    assert machine is not None
    offer, blob = federation.offer(task)
    scalars = {"lr": np.array(offer.scalars["lr"], np.float32), "seed": np.array(int(offer.scalars["seed"]))}
    sent = []
    for k, own in enumerate(held):
        got = session.run({**tensors.unpack(blob), **scalars, "x": x[own], "target": y[own]})
        update = {name.removeprefix("delta."): value for name, value in got.items() if name.startswith("delta.")}
        body = packed(update, offer, feedbacks[k])
        header = messages.UpdateHeader(
            round=offer.round,
            device=f"d{k}",
            boot_id="0" * 16,
            rows=len(own),
            digest=blocks.digest_of(body),
            size=len(body),
        )
        parts = [blocks.encode(header.digest, i, part) for i, part in enumerate(blocks.split(body))]
        sent.append(len(messages.encode(header)) + sum(map(len, parts)))
        fault = machine.receive(f"d{k}", Update(f"d{k}", len(own), tensors.unpack(body), size=len(body)), 1.0)
        assert not fault, fault
    federation.conclude(now=1.0)
    return sent


def reached(curve: Sequence[float]) -> int | None:
    """Return the first round of at least GOAL."""
    return next((number for number, value in enumerate(curve, 1) if value >= GOAL), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    runs = {
        (split, spec): [federate(spec, split, seed=seed, rounds=options.rounds) for seed in range(options.seeds)]
        for split in SPLITS
        for spec in METHODS
    }
    table = [
        f"Digits, MLP 64-64-10 (4,810 parameters), {DEVICES} devices, {EPOCHS} local epochs, {options.rounds} rounds; "
        f"mean of {options.seeds} seeds. Bytes are of one device in one round: header, blocks and all.",
        "",
        f"| split | compress | bytes up | of plain | accuracy at the end | lowest seed | rounds to {GOAL:g} |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    result = []
    for (split, spec), found in runs.items():
        plain = runs[split, ""][0].bytes_up
        final = [run.accuracy[-1] for run in found]
        rounds = [reached(run.accuracy) for run in found]
        told = ", ".join("-" if number is None else str(number) for number in rounds)
        table.append(
            f"| {split} | {spec or 'none'} | {found[0].bytes_up:,.0f} | {found[0].bytes_up / plain:.3f} | "
            f"{statistics.mean(final):.4f} | {min(final):.4f} | {told} |"
        )
        result.append(
            {
                "split": split,
                "compress": spec,
                "bytes_up": found[0].bytes_up,
                "accuracy": [run.accuracy for run in found],
                "rounds_to_goal": rounds,
            }
        )
    RESULTS.mkdir(exist_ok=True)
    document = {"environment": environment(), "seeds": options.seeds, "goal": GOAL, "runs": result}
    (RESULTS / "compression.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "compression.md").write_text("\n".join(table) + "\n", encoding="utf-8")
    print("\n".join(table))


if __name__ == "__main__":
    main()
