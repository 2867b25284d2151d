"""10 MB to one device over mosquitto on loopback: pulled in proven blocks, beside one message of mosquitto's own tools.

    python benchmarks/transfer.py [--rounds 15] [--megabytes 10]

Peer: `mosquitto_pub -f FILE` to a waiting `mosquitto_sub > FILE`: one message, nothing checked, nothing
synced, on a mosquitto without a packet limit. Ours: a device process with the agent's own hands (Pull,
MqttTransport) pulls from a coordinator in this process: 48 KiB blocks, each hashed, resumable, fdatasynced
and renamed. Both alternate, so that a busy machine slows both alike. Writes results/transfer.{json,md}.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeml.registry import FederationRecord, Registry
from edgeml.server import Coordinator, Learner
from edgeml.transport import ServerTransport, start_broker
from edgeml.transport.broker import find_mosquitto
from edgeml_runtime.measure import environment
from edgeml_runtime.wire import blocks

RESULTS = Path(__file__).parent / "results"
GOAL = 5.0  # times the peer's median, at most

DEVICE = """
import json, queue, sys, time
from pathlib import Path
from edgeml_runtime.pull import Pull, Want
from edgeml_runtime.transport import Incoming, MqttTransport, Will
from edgeml_runtime.wire import blocks, messages, topics

host, port = sys.argv[1], int(sys.argv[2])
inbox = queue.SimpleQueue()
gone = messages.encode(messages.Online(online=False, boot_id="bench"))
will, filters = Will(topics.online("bench"), gone), topics.for_device("bench")
transport = MqttTransport((host, port), "bench", will=will, filters=filters)
transport.open(inbox.put)
inbox.get()
print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    want = Want(digest=order["digest"], size=order["size"], hashes=tuple(order["hashes"]))
    pull = Pull(Path(order["folder"]), [want])
    while not pull.done:
        request = pull.request(time.monotonic())
        if request is not None:
            transport.send(topics.request("bench"), messages.encode(request))
        if not pull.done:
            try:
                event = inbox.get(timeout=0.5)
            except queue.Empty:
                continue
            if isinstance(event, Incoming):
                pull.take(blocks.decode(event.payload))
    print("done", flush=True)
transport.close()
"""


class NoFederations:
    """This server ships only."""

    def prepare(self, record: FederationRecord) -> Learner:
        raise RuntimeError(f"{record.id}: nothing is learned here")


@contextlib.contextmanager
def unlimited_mosquitto(folder: Path) -> Iterator[int]:
    """Run a mosquitto that takes a message of any size; yield its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    conf = folder / "peer.conf"
    conf.write_text(
        f"listener {port} 127.0.0.1\nuser {getpass.getuser()}\nallow_anonymous true\nset_tcp_nodelay true\n"
    )
    program = find_mosquitto()
    assert program is not None
    process = subprocess.Popen([program, "-c", str(conf)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(500):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.01)
        yield port
    finally:
        process.terminate()
        process.wait()


def peer(port: int, source: Path, target: Path) -> float:
    """Return the seconds of one file through mosquitto_pub and mosquitto_sub, to the end of both."""
    topic = f"bench/{time.monotonic_ns()}"
    publish = ["mosquitto_pub", "-p", str(port), "-t", topic]
    subprocess.run([*publish, "-r", "-m", "?"], check=True)  # retained: its arrival says that the subscription stands
    with target.open("wb") as file:
        subscriber = subprocess.Popen(["mosquitto_sub", "-p", str(port), "-t", topic, "-C", "2", "-N"], stdout=file)
        while not target.stat().st_size:
            time.sleep(0.005)
        began = time.perf_counter()
        subprocess.run([*publish, "-f", str(source)], check=True)
        subscriber.wait()
        seconds = time.perf_counter() - began
    assert target.read_bytes() == b"?" + source.read_bytes()
    return seconds


def ours(device: subprocess.Popen[str], data: bytes, folder: Path) -> float:
    """Return the seconds from the order to the device until it has the blob, proven and on disk."""
    digest = blocks.digest_of(data)
    hashes = [blocks.digest_of(block) for block in blocks.split(data)]
    order = json.dumps({"digest": digest, "size": len(data), "hashes": hashes, "folder": str(folder)})
    assert device.stdin is not None
    assert device.stdout is not None
    began = time.perf_counter()
    device.stdin.write(order + "\n")
    device.stdin.flush()
    assert device.stdout.readline().strip() == "done"
    seconds = time.perf_counter() - began
    assert (folder / digest).read_bytes() == data
    return seconds


def compare(rounds: int, size: int, folder: Path) -> dict[str, Any]:
    """Return the medians of both ways over `rounds`, alternating."""
    data = os.urandom(size)
    source = folder / "source"
    source.write_bytes(data)
    registry = Registry.open(folder / "registry")
    registry.put_blob(data)
    times: dict[str, list[float]] = {"mosquitto_pub | mosquitto_sub": [], "edgeml": []}
    stop = threading.Event()
    with (
        unlimited_mosquitto(folder) as port,
        start_broker(kind="mosquitto") as broker,
        ServerTransport(broker.host, broker.port) as transport,
    ):
        coordinator = Coordinator(registry, transport, retrain=NoFederations())
        server = threading.Thread(target=coordinator.run, args=(stop,))
        server.start()
        device = subprocess.Popen(
            [sys.executable, "-c", DEVICE, broker.host, str(broker.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert device.stdout is not None
        try:
            assert device.stdout.readline().strip() == "ready"
            for number in range(rounds):
                times["mosquitto_pub | mosquitto_sub"].append(peer(port, source, folder / "received"))
                times["edgeml"].append(ours(device, data, folder / f"device-{number}"))
                shutil.rmtree(folder / f"device-{number}")
        finally:
            device.send_signal(signal.SIGTERM)
            device.wait()
            stop.set()
            transport.wake()
            server.join()
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "bytes": size,
        "rounds": rounds,
        "median_s": medians,
        "min_s": {name: min(values) for name, values in times.items()},
        "max_s": {name: max(values) for name, values in times.items()},
        "ratio": medians["edgeml"] / medians["mosquitto_pub | mosquitto_sub"],
        "goal": GOAL,
        "environment": environment(),
    }


def table(figures: dict[str, Any]) -> str:
    """Return the figures as a Markdown table."""
    where = figures["environment"]
    lines = [
        f"{figures['bytes']:,} bytes to one device, {figures['rounds']} alternating rounds; "
        f"{where['cpu_model']}, {where['cores']} cores. The peer's time includes starting `mosquitto_pub`.",
        "",
        "| way | median s | min s | max s | MB/s |",
        "|---|---|---|---|---|",
    ]
    for name, median in figures["median_s"].items():
        low, high = figures["min_s"][name], figures["max_s"][name]
        lines.append(f"| {name} | {median:.3f} | {low:.3f} | {high:.3f} | {figures['bytes'] / median / 1e6:.0f} |")
    lines += ["", f"Ratio {figures['ratio']:.2f}, goal at most {figures['goal']:g}."]
    return "\n".join(lines).replace(" | mosquitto_sub", " \\| mosquitto_sub") + "\n"


def main() -> None:
    """Measure, print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--megabytes", type=float, default=10)
    options = parser.parse_args()
    if find_mosquitto() is None or shutil.which("mosquitto_pub") is None:
        sys.exit("this benchmark needs mosquitto and its clients: apt install mosquitto mosquitto-clients")
    with tempfile.TemporaryDirectory() as folder:
        figures = compare(options.rounds, int(options.megabytes * 1e6), Path(folder))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "transfer.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "transfer.md").write_text(table(figures), encoding="utf-8")
    print(table(figures))


if __name__ == "__main__":
    main()
