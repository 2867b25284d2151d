"""A federation beside Flower's: seconds per round, bytes and memory per client, size to install, and equal weights.

    EDGEML_FLOWER_PYTHON=FLOWER/bin/python python benchmarks/flower_peers.py [--rounds 6] [--clients 2]

    python -m venv FLOWER && FLOWER/bin/pip install flwr==1.41.0 onnxruntime==1.32.0

The digits MLP 64-64-10 over mosquitto with real agents, and deployed with Flower's SuperLink and SuperNodes, all on
loopback. Flower's clients run edgeml's own task graph on stock onnxruntime, from the same weights, over the same rows
in the same order, so the weights after every round must be equal; what differs is everything around the training.
Bytes are counted by a proxy on the connection of every client, both ways. Memory is the sum over the processes of one
client (proportional set size): before the first round, and its median and its highest during them. Writes
results/flower_peers.json and .md.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import itertools
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.client_memory import Watch, resting
from benchmarks.federated_round import a_fleet, deal, fp32_graph, listening, shares
from edgeml.artifacts import OnnxModel
from edgeml.graph import set_initializers
from edgeml.pipeline.wait import wait_federation
from edgeml_runtime.measure import environment
from edgeml_runtime.session import Session
from edgeml_runtime.wire import signed
from edgeml_runtime.wire.tensors import unpack

HERE = Path(__file__).parent
EPOCHS, BATCH, RATE, MOMENTUM = 2, 32, 0.02, 0.9
REST_S, START_S, ROUND_S = 5.0, 120.0, 120.0
SHARED = ("numpy", "onnxruntime", "flatbuffers", "protobuf", "packaging", "pip", "setuptools", "wheel")
DISTRIBUTIONS = (
    "import importlib.metadata as m, json;"
    "print(json.dumps({d.metadata['Name'].lower(): sum(f.locate().stat().st_size for f in d.files or () "
    "if f.locate().is_file()) for d in m.distributions()}))"
)


@dataclass(frozen=True)
class Outcome:
    """What one side did: medians over the rounds after the first."""

    seconds: tuple[float, ...]  # per round
    bytes_up: float  # per client and round
    bytes_down: float
    rest_mb: float  # memory per client, proportional, before the rounds
    median_mb: float  # of the samples during the rounds
    memory_mb: float  # the highest of them
    processes: int  # per client, the most at one time
    install_mb: float  # beside numpy and onnxruntime

    @property
    def round_s(self) -> float:
        return statistics.median(self.seconds[1:] or self.seconds)


class Proxy:
    """Passes TCP connections on to `port` of this machine, and counts what goes up and down."""

    def __init__(self, port: int) -> None:
        self.up = self.down = 0
        self._target = port
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._door.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._door.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._door.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            threading.Thread(target=self._pump, args=(near, far, "up"), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, "down"), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                setattr(self, way, getattr(self, way) + len(data))
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def dealt(clients: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the rows of every client: the digits dealt out in turn, uneven by one row."""
    pixels, digits = (np.concatenate([share[i] for share in shares()]) for i in (0, 1))
    order = np.random.default_rng(1).permutation(len(digits))
    return [(pixels[order[k::clients]], digits[order[k::clients]]) for k in range(clients)]


def ours(
    folder: Path, held: Sequence[tuple[np.ndarray, np.ndarray]], rounds: int, *, compress: str = ""
) -> tuple[Outcome, list[Any]]:
    """Run the federation with agents; leave graph, weights, rows and offers in `folder` for the other side."""
    count = len(held)
    with a_fleet(folder / "ours", agents=count, kind="mosquitto", door=Proxy) as fleet:
        registry = fleet.registry
        deal(fleet, held)
        offers: list[bytes] = []
        time.sleep(REST_S)
        rest = resting([agent.pid for agent in fleet.agents])
        before = [(door.up, door.down) for door in fleet.doors]
        with (
            listening(fleet.broker.host, fleet.broker.port, offers),
            Watch([agent.pid for agent in fleet.agents]) as watch,
        ):
            options: dict[str, Any] = {
                "rounds": rounds,
                "min_devices": count,
                "local_epochs": EPOCHS,
                "batch_size": BATCH,
            }
            options |= {"learning_rate": RATE, "momentum": MOMENTUM, "compress": compress, "ask_fleet": False}
            options["held_out"] = 0.0  # Flower trains on all rows
            asked = registry.request_federation("digits", options)
            record = wait_federation(registry, asked)
        moved = [(door.up - up, door.down - down) for door, (up, down) in zip(fleet.doors, before, strict=True)]
        told = list({signed.unverified(offer)["round"]: signed.unverified(offer) for offer in offers}.values())
        weights = [unpack(registry.blob(offer["parameters"])) for offer in told]
        (folder / "task.onnx").write_bytes(registry.blob(told[0]["graph"]))
    names = list(weights[0])
    (folder / "offers.json").write_text(json.dumps([{**offer, "names": names} for offer in told]), encoding="utf-8")
    np.savez(folder / "weights.npz", **weights[0])  # type: ignore[arg-type]
    outcome = Outcome(
        tuple(done.seconds for done in record.rounds),
        sum(up for up, _ in moved) / count / rounds,
        sum(down for _, down in moved) / count / rounds,
        rest,
        watch.median,
        watch.highest,
        max(watch.most),
        installed([sys.executable], only="edgeml-runtime"),
    )
    return outcome, weights


def flower(folder: Path, held: Sequence[tuple[np.ndarray, np.ndarray]], rounds: int) -> tuple[Outcome, list[Any]]:
    """Run the same rounds with SuperLink and SuperNodes."""
    python = Path(os.environ["EDGEML_FLOWER_PYTHON"])
    for number, (pixels, digits) in enumerate(held):
        np.savez(folder / f"share-{number}.npz", pixels=pixels, digits=digits)
    app, home = folder / "app", folder / "home"
    shutil.copytree(HERE / "peers/flower", app)
    home.mkdir()
    link_port, free = a_port(), [a_port() for _ in held]
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{link_port}"\ninsecure = true\n',
        encoding="utf-8",
    )
    world = {**os.environ, "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "PYTHONPATH": ""}
    world["PATH"] = f"{python.parent}:{world['PATH']}"
    with contextlib.ExitStack() as stack:
        stay = ["--insecure", "--disable-runtime-dependency-installation", "--port", str(link_port)]
        start(stack, [python.parent / "flower-superlink", *stay], folder / "link.log", world)
        reached(link_port)
        doors = [Proxy(link_port) for _ in held]
        nodes = []
        for number, (door, port) in enumerate(zip(doors, free, strict=True)):
            stack.callback(door.close)
            node = ["--insecure", "--superlink", f"127.0.0.1:{door.port}", "--port", str(port)]
            node += ["--node-config", f"partition-id={number}"]
            nodes.append(
                start(stack, [python.parent / "flower-supernode", *node], folder / f"node-{number}.log", world)
            )
        time.sleep(REST_S)  # they register; the strategy waits for all of them in any case
        rest = resting(nodes)
        before = [(door.up, door.down) for door in doors]
        options = f'work="{folder}" rounds={rounds} clients={len(held)}'
        with Watch(nodes) as watch:
            run = [python.parent / "flwr", "run", str(app), "here", "--run-config", options]
            subprocess.run(list(map(str, run)), check=True, env=world, capture_output=True, timeout=START_S)
            times = finished(folder / "flower-times.json", rounds)
        moved = [(door.up - up, door.down - down) for door, (up, down) in zip(doors, before, strict=True)]
    weights = [dict(np.load(folder / f"flower-{number}.npz")) for number in range(rounds + 1)]
    outcome = Outcome(
        tuple(after - before for before, after in itertools.pairwise(times)),
        sum(up for up, _ in moved) / len(held) / rounds,
        sum(down for _, down in moved) / len(held) / rounds,
        rest,
        watch.median,
        watch.highest,
        max(watch.most),
        installed([str(python)]),
    )
    return outcome, weights


def start(stack: contextlib.ExitStack, command: Sequence[Any], log: Path, world: dict[str, str]) -> int:
    """Start a process that ends with the block, and all it started; return its id."""
    child = subprocess.Popen(
        [str(word) for word in command],
        stdout=log.open("wb"),
        stderr=subprocess.STDOUT,
        env=world,
        start_new_session=True,
    )

    def end() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, 9)
        child.wait()

    stack.callback(end)
    return child.pid


def finished(path: Path, rounds: int) -> list[float]:
    """Return the times of all rounds once they are there."""
    deadline = time.monotonic() + ROUND_S * rounds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError):
            if len(found := json.loads(path.read_text(encoding="utf-8"))) > rounds:
                return list(found)
        time.sleep(0.2)
    raise SystemExit(f"Flower did not end {rounds} rounds in {ROUND_S * rounds:.0f} s: look into {path.parent}")


def a_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as door:
        return int(door.getsockname()[1])


def reached(port: int) -> None:
    """Return once something listens there."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.1)
    raise SystemExit(f"nothing listens on port {port} after {START_S:.0f} s")


def installed(python: Sequence[str], only: str = "") -> float:
    """Return the MB of an environment's packages beside numpy and onnxruntime; `only` those that this one needs."""
    sizes = json.loads(subprocess.run([*python, "-c", DISTRIBUTIONS], check=True, capture_output=True).stdout)
    wanted = needs(only) if only else set(sizes)
    return float(sum(size for name, size in sizes.items() if name in wanted and name not in SHARED)) / 1e6


def needs(name: str) -> set[str]:
    """Return the distribution `name` and all that it requires, here."""
    found, queue = set(), [name]
    while queue:
        if (one := queue.pop().lower()) in found or one in SHARED:
            continue
        found.add(one)
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            for line in importlib.metadata.requires(one) or ():
                if "extra ==" not in line:
                    queue.append(re.split(r"[\s<>=!~;\[(]", line)[0])
    return found


def accuracies(graph: bytes, weights: Sequence[dict[str, np.ndarray]], held: Sequence[Any]) -> list[float]:
    """Return the share of right answers over all rows with each of these weights."""
    pixels, digits = (np.concatenate([share[i] for share in held]) for i in (0, 1))
    found = []
    for one in weights:
        session = Session(set_initializers(OnnxModel(graph, source="benchmark"), one).data)
        labels = np.asarray(session.run({"numeric": pixels})["label"]).ravel().astype(np.int64)
        found.append(float(np.mean(labels == digits)))
    return found


def table(results: dict[str, Outcome], rounds: int, clients: int) -> Iterator[str]:
    yield f"{clients} clients on one machine of {os.cpu_count()} cores, digits MLP 64-64-10, {rounds} rounds, loopback."
    yield ""
    yield "| | " + " | ".join(results) + " |"
    yield "|---|" + "---:|" * len(results)
    rows: tuple[tuple[str, str, Callable[[Outcome], float]], ...] = (
        ("seconds per round, median", "{:.3f}", lambda o: o.round_s),
        ("bytes up per client and round", "{:,.0f}", lambda o: o.bytes_up),
        ("bytes down per client and round", "{:,.0f}", lambda o: o.bytes_down),
        ("memory per client at rest (MB)", "{:.0f}", lambda o: o.rest_mb),
        ("memory per client during the rounds (MB, median)", "{:.0f}", lambda o: o.median_mb),
        ("memory per client (MB, highest)", "{:.0f}", lambda o: o.memory_mb),
        ("processes per client", "{}", lambda o: o.processes),
        ("to install beside numpy and onnxruntime (MB)", "{:.0f}", lambda o: o.install_mb),
    )
    for label, form, of in rows:
        yield f"| {label} | " + " | ".join(form.format(of(outcome)) for outcome in results.values()) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--clients", type=int, default=2)
    options = parser.parse_args()
    held = dealt(options.clients)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mine, weights = ours(folder, held, options.rounds)
        small, compressed = ours(folder / "int8", held, options.rounds, compress="int8")
        theirs, other = flower(folder, held, options.rounds)
        graph = fp32_graph(folder / "ours/registry")
        right = [accuracies(graph, side[: options.rounds], held) for side in (weights, compressed, other)]
    gaps = [
        max(float(np.abs(ours_[name] - theirs_[name]).max()) for name in ours_)
        for ours_, theirs_ in zip(weights, other, strict=False)
    ]
    results = {"edgeml": mine, "edgeml, int8": small, "Flower 1.41": theirs}
    lines = [*table(results, options.rounds, options.clients), ""]
    lines.append(
        "Accuracy at the start of each round: "
        + "; ".join(f"{side} {' '.join(f'{a:.4f}' for a in one)}" for side, one in zip(results, right, strict=True))
        + "."
    )
    lines.append(
        f"Ratios: {theirs.round_s / mine.round_s:.0f} times the time, {theirs.memory_mb / mine.memory_mb:.1f} times "
        f"the memory, {theirs.bytes_up / small.bytes_up:.1f} times the bytes up of int8. Largest difference between "
        f"the weights of edgeml and Flower at the start of a round: {max(gaps):.1e}."
    )
    found = {"environment": environment(), **{key: asdict(value) for key, value in results.items()}, "gaps": gaps}
    found["accuracy_at_round_start"] = dict(zip(results, right, strict=True))
    (HERE / "results/flower_peers.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (HERE / "results/flower_peers.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
