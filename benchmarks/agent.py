"""The agent while it serves: how much memory it holds, and what its local HTTP door adds.

    python benchmarks/agent.py [--requests 500]

A real agent process runs the digits MLP that `edgeml build` makes, enrolled at a real broker. Memory is what
/proc says of the process after the requests, the deployment a few seconds past. Writes results/agent.json and .md next
to this file.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.client_memory import resting
from benchmarks.federated_round import a_fleet
from edgeml_runtime.measure import environment

RESULTS = Path(__file__).parent / "results"
GOAL_MB = 75
SETTLE_S = 3.0  # the trial of the release ends, and the agent gives back what loading took
FIELDS = ("VmRSS", "RssAnon", "VmHWM")


def memory_mb(pid: int) -> dict[str, float]:
    """Return resident, anonymous and peak memory of the process, in MB of 10**6 bytes."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return {name: int(found[name].split()[0]) * 1024 / 1e6 for name in FIELDS}


def ask(port: int, requests: int) -> dict[str, list[float]]:
    """Return milliseconds per request over one kept connection, for JSON rows and raw float32 in turn."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    rows = np.random.default_rng(0).integers(0, 17, size=(64,)).astype("<f4")
    bodies = {
        "JSON": (json.dumps({"rows": [rows.tolist()]}).encode(), "application/json"),
        "raw float32": (rows.tobytes(), "application/octet-stream"),
    }
    times: dict[str, list[float]] = {name: [] for name in bodies}
    for _ in range(requests):
        for name, (body, kind) in bodies.items():
            began = time.perf_counter()
            connection.request("POST", "/predict", body, {"Content-Type": kind})
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise SystemExit(f"the agent answered {answer.status} to {name}")
            times[name].append((time.perf_counter() - began) * 1e3)
    connection.close()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500)
    with tempfile.TemporaryDirectory() as name, a_fleet(Path(name), agents=1) as fleet:
        agent = fleet.agents[0]
        time.sleep(SETTLE_S)
        times = ask(agent.port, parser.parse_args().requests)
        memory = {**memory_mb(agent.pid), "with its stem": resting([agent.pid])}
    result: dict[str, Any] = {
        "environment": environment(),
        "memory_mb": memory,
        "request_ms": times,
        "goal_mb": GOAL_MB,
    }
    table = [
        f"| after {2 * len(times['JSON']):,} requests | MB | goal |",
        "|---|---:|---:|",
        f"| resident | {memory['VmRSS']:.1f} | {GOAL_MB} |",
        f"| of it anonymous | {memory['RssAnon']:.1f} | |",
        f"| peak, while the model was loaded | {memory['VmHWM']:.1f} | |",
        f"| with its stem, proportional | {memory['with its stem']:.1f} | |",
        "",
        "| one row over local HTTP | median ms | p99 ms |",
        "|---|---:|---:|",
    ]
    for kind, found in times.items():
        table.append(f"| {kind} | {statistics.median(found):.3f} | {sorted(found)[int(0.99 * len(found))]:.3f} |")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "agent.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "agent.md").write_text("\n".join(table) + "\n", encoding="utf-8")
    print("\n".join(table))


if __name__ == "__main__":
    main()
