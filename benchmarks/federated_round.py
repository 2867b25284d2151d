"""A federated round over MQTT with real processes: how long it takes, and whether its numbers are right.

    python benchmarks/federated_round.py [--rounds 6]

Three agents hold uneven, label-skewed shares of scikit-learn's digits and train the MLP 64-64-10 that `edgeml build`
made. The same federation is computed beside it in numpy, in this process; the weights that the server offers at the
start of each round must be those of numpy. Writes results/federated_round.json and .md next to this file.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

import edgeml_runtime
from edgeml.data.sources import TARGET, read_source
from edgeml.demo.agents import Agent, Process, wait_until
from edgeml.pipeline.wait import wait_federation, wait_rollout
from edgeml.project import Read
from edgeml.registry import Registry, RoundRecord
from edgeml.registry.journals import Page, Upload
from edgeml.tasks import permutation
from edgeml.transport.broker import Broker, Choice, start_broker
from edgeml_runtime.measure import environment
from edgeml_runtime.session import Session
from edgeml_runtime.wire import signed, topics
from edgeml_runtime.wire.tensors import pack, unpack

RESULTS = Path(__file__).parent / "results"
PROJECT = """\
name: digits
data: {train: "sklearn:digits"}
search: {estimators: [mlp], trials: 1, folds: 2}
track: {mlflow: off}
"""
EPOCHS, BATCH, RATE, MOMENTUM = 2, 32, 0.02, 0.9
GOAL_S, GOAL_DIFFERENCE = 1.0, 1e-5
Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Run:
    """What happened on the wire: the offers as they were signed, the weights they started from, the rounds."""

    offers: list[dict[str, Any]]
    weights: list[Weights]  # at the start of each round
    rounds: list[RoundRecord]


def shares() -> list[tuple[np.ndarray, np.ndarray]]:
    """Return three uneven shares of the digits, each with its own digits nine times out of ten."""
    frame = read_source("sklearn:digits", Path(), Read()).frame
    digits = frame[TARGET].to_numpy().astype(np.int64)
    pixels = frame.drop(columns=TARGET).to_numpy(np.float32)
    rng = np.random.default_rng(0)
    owner = np.where(rng.random(len(digits)) < 0.9, np.minimum(digits // 4, 2), rng.integers(0, 3, len(digits)))
    return [(pixels[owner == k], digits[owner == k]) for k in range(3)]


@dataclass(frozen=True)
class Fleet:
    """A registry with the digits released, and agents that run them."""

    registry: Registry
    broker: Broker
    agents: list[Agent]
    processes: list[Process]
    doors: list[Any]  # what each agent's connection goes through, if anything


@contextlib.contextmanager
def a_fleet(
    folder: Path, *, agents: int, kind: Choice = "auto", door: Callable[[int], Any] | None = None
) -> Iterator[Fleet]:
    """Build the digits, start broker, server and agents, and roll out; everything started ends with the block.

    With `door`, every agent reaches the broker's port through the `port` of a door of its own.
    """
    compileall.compile_dir(Path(edgeml_runtime.__file__).parent, quiet=1)  # as pip does: compiling takes memory
    (folder / "project").mkdir(parents=True)
    (folder / "project/edgeml.yaml").write_text(PROJECT, encoding="utf-8")
    home = folder / "registry"
    build = [sys.executable, "-m", "edgeml", "build", str(folder / "project"), "--registry", str(home)]
    subprocess.run(build, check=True, capture_output=True)
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(start_broker(kind=kind))
        address, registry = f"{broker.host}:{broker.port}", Registry.open(home)
        stack.callback(registry.close)
        key, command = (
            registry.public_key_hex(),
            ["-m", "edgeml", "server", "--broker", address, "--registry", str(home)],
        )
        server = stack.enter_context(Process("server", command, folder / "server.log"))
        doors = [door(broker.port) for _ in range(agents)] if door else []
        ways = [f"{broker.host}:{one.port}" for one in doors] or [address] * agents
        started = [
            stack.enter_context(Agent(f"dev-{k}", "raspberry-pi-4", folder=folder, broker=way, key=key))
            for k, way in enumerate(ways)
        ]
        everyone = [server, *started]
        wait_until(lambda: sum(d.online for d in registry.devices()) == agents, everyone, what="the agents")
        wait_rollout(registry, registry.request_rollout("digits", None, "all"))
        yield Fleet(registry, broker, started, everyone, doors)


def federate(folder: Path, *, rounds: int, kind: Choice = "auto") -> Run:
    """Run `rounds` rounds over three agents and return what passed the broker."""
    with a_fleet(folder, agents=3, kind=kind) as fleet:
        registry = fleet.registry
        deal(fleet, shares())
        offers: list[bytes] = []
        with listening(fleet.broker.host, fleet.broker.port, offers):
            options: dict[str, Any] = {"rounds": rounds, "min_devices": 3, "local_epochs": EPOCHS, "batch_size": BATCH}
            options |= {"learning_rate": RATE, "momentum": MOMENTUM, "held_out": 0.0}  # numpy trains on all rows
            asked = registry.request_federation("digits", options)
            record = wait_federation(registry, asked)
        unique = {signed.unverified(offer)["round"]: signed.unverified(offer) for offer in offers}
        weights = [unpack(registry.blob(offer["parameters"])) for offer in unique.values()]
        return Run(list(unique.values()), weights, list(record.rounds))


def deal(fleet: Fleet, held: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Give every agent its rows, and wait until the server knows of them."""
    for agent, (pixels, digits) in zip(fleet.agents, held, strict=True):
        agent.call("/samples", {"rows": pixels.tolist(), "targets": [str(digit) for digit in digits]})
    counts = sorted(len(digits) for _, digits in held)
    wait_until(lambda: sorted(reported(fleet.registry)) == counts, fleet.processes, what="the samples")


def reported(registry: Registry) -> list[int]:
    return [device.reported.samples for device in registry.devices() if device.reported]


@contextlib.contextmanager
def listening(host: str, port: int, offers: list[bytes]) -> Any:
    """Collect every task offer that passes the broker."""
    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.on_message = lambda _client, _data, message: offers.extend(_offers(bytes(message.payload)))
    client.connect(host, port)
    client.subscribe(topics.task("+"), qos=1)
    client.loop_start()
    try:
        time.sleep(0.3)
        yield
    finally:
        client.disconnect()
        client.loop_stop()


def _offers(payload: bytes) -> list[bytes]:
    return [payload] if signed.unverified(payload).get("kind") == "training" else []


def first_layer_inputs(graph: bytes, pixels: np.ndarray) -> np.ndarray:
    """Return what the graph's own preprocessing makes of `pixels`."""
    model = onnx.load_from_string(graph)
    first = next(node for node in model.graph.node if node.op_type == "Gemm")
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(first.input[0], onnx.TensorProto.FLOAT, None))
    return next(iter(Session(model.SerializeToString()).run({"numeric": pixels}).values()))


def numpy_round(weights: Weights, data: list[tuple[np.ndarray, np.ndarray]], seed: int) -> Weights:
    """Return the weights after one round of federated averaging, in float32 like the devices."""
    local = [train(weights, x, y, seed=seed) for x, y in data]
    rows = np.array([len(y) for _, y in data], dtype=np.float64)
    return {
        name: (
            old + sum(n * (new[name] - old).astype(np.float64) for n, new in zip(rows, local, strict=True)) / rows.sum()
        ).astype(np.float32)
        for name, old in weights.items()
    }


def train(weights: Weights, x: np.ndarray, y: np.ndarray, *, seed: int) -> Weights:
    """Return the weights after EPOCHS of SGD with momentum on softmax cross-entropy."""
    now = {name: array.copy() for name, array in weights.items()}
    velocity = {name: np.zeros_like(array) for name, array in weights.items()}
    for epoch in range(EPOCHS):
        order = permutation(len(x), seed, epoch)
        for start in range(0, len(x), BATCH):
            batch = order[start : start + BATCH]
            for name, gradient in gradients(now, x[batch], y[batch]).items():
                velocity[name] = np.float32(MOMENTUM) * velocity[name] + gradient
                now[name] = now[name] - np.float32(RATE) * velocity[name]
    return now


def gradients(weights: Weights, x: np.ndarray, y: np.ndarray) -> Weights:
    w0, b0, w1, b1 = (weights[name] for name in ("layer0.weight", "layer0.bias", "layer1.weight", "layer1.bias"))
    hidden = np.maximum(x @ w0 + b0, 0)
    logits = hidden @ w1 + b1
    error = np.exp(logits - logits.max(axis=1, keepdims=True))
    error /= error.sum(axis=1, keepdims=True)
    error[np.arange(len(y)), y] -= 1
    error /= np.float32(len(y))
    back = (error @ w1.T) * (hidden > 0)
    return {
        "layer0.weight": x.T @ back,
        "layer0.bias": back.sum(axis=0),
        "layer1.weight": hidden.T @ error,
        "layer1.bias": error.sum(axis=0),
    }


def differences(run: Run, graph: bytes) -> list[float]:
    """Return, after each round but the last, the largest difference between the wire's weights and numpy's."""
    data = [(first_layer_inputs(graph, pixels), digits) for pixels, digits in shares()]
    weights, found = run.weights[0], []
    for offer, wire in zip(run.offers[:-1], run.weights[1:], strict=True):
        weights = numpy_round(weights, data, int(offer["scalars"]["seed"]))
        found.append(max(float(np.abs(weights[name] - wire[name]).max()) for name in weights))
    return found


def journaled(home: Path, run: Run, *, times: int = 50) -> float:
    """Return the median seconds that a round's journal takes: a page with the weights, then one update a device."""
    journals, arrays = Registry.open(home).journals, pack(run.weights[0])
    share = run.rounds[0].bytes_up // len(shares())
    facts = {"round": 1, "options": run.offers[0]}
    seconds = []
    for number in range(times):
        begun = time.perf_counter()
        journals.write("bench", Page(phase="rounds", facts=facts, arrays=arrays), anew=True)
        for device in range(len(shares())):
            upload = Upload(round=str(number), device=str(device), header=b"{}", body=os.urandom(share), took=0.1)
            journals.write("bench", Page(phase="rounds", facts=facts), [upload])
        seconds.append(time.perf_counter() - begun)
    journals.forget("bench")
    return statistics.median(seconds)


def fp32_graph(home: Path) -> bytes:
    registry = Registry.open(home)
    bundle = registry.bundle_of(registry.find("digits@1"))
    return next(bundle.blobs[v.graph.digest] for v in bundle.manifest.variants if v.name == "fp32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = federate(folder, rounds=parser.parse_args().rounds)
        found = differences(run, fp32_graph(folder / "registry"))
        journal_s = journaled(folder / "registry", run)
    seconds = [done.seconds for done in run.rounds]
    result = {
        "environment": environment(),
        "rounds": [{"seconds": done.seconds, "bytes_up": done.bytes_up, "metric": done.metric} for done in run.rounds],
        "median_s": statistics.median(seconds),
        "max_s": max(seconds),
        "journal_s": journal_s,
        "difference_to_numpy": found,
        "goals": {"max_s": GOAL_S, "difference": GOAL_DIFFERENCE},
    }
    table = [
        f"Three agents, MLP 64-64-10, {sum(len(y) for _, y in shares()):,} rows, {EPOCHS} local epochs, over MQTT.",
        "",
        "| round | seconds | accuracy | bytes up | largest difference to numpy |",
        "|---:|---:|---:|---:|---:|",
    ]
    for number, done in enumerate(run.rounds):
        gap = f"{found[number]:.1e}" if number < len(found) else "not offered again"
        table.append(f"| {number + 1} | {done.seconds:.3f} | {done.metric:.4f} | {done.bytes_up:,} | {gap} |")
    table += [
        "",
        f"Median {statistics.median(seconds):.3f} s a round, goal under {GOAL_S:g} s; "
        f"differences at most {max(found):.1e}, goal at most {GOAL_DIFFERENCE:g}.",
        "",
        f"The journal's writes of such a round, done again by themselves, take {journal_s * 1e3:.1f} ms: "
        f"the weights, then three updates, in four transactions.",
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "federated_round.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "federated_round.md").write_text("\n".join(table) + "\n", encoding="utf-8")
    print("\n".join(table))


if __name__ == "__main__":
    main()
