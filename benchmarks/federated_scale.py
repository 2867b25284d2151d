"""How a simulated federation grows: time and memory of a round with 100, 300 and 1,000 devices.

    PYTHONPATH=. python benchmarks/federated_scale.py [--rounds 20]

Every device has 40 rows of the digits and trains an MLP 64-64-10 for one epoch; one worker per core. Each size runs in
a process of its own. Memory is the peak of all processes together. Writes results/federated_scale.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from benchmarks.simulated import TEST_ROWS, network
from edgeml.artifacts import Rows
from edgeml.federated import Plan
from edgeml.simulation import Conditions, Fleet, RoundTold, simulate
from edgeml_runtime.measure import environment

RESULTS = Path(__file__).parent / "results"
SIZES, ROWS = (100, 300, 1000), 40


def a_fleet(devices: int) -> Fleet:
    """Return devices with 40 rows each, drawn from the digits with a little noise."""
    x, y = load_digits(return_X_y=True)
    x, y = (x / 16).astype(np.float32), y.astype(np.int64)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(y))
    test, pool = order[:TEST_ROWS], order[TEST_ROWS:]
    shares = []
    for _ in range(devices):
        chosen = rng.choice(pool, ROWS)
        noise = 0.02 * rng.normal(size=(ROWS, 64)).astype(np.float32)
        shares.append(Rows({"x": x[chosen] + noise}, y[chosen]))
    return Fleet(model=network((64, 64, 10), seed=0), shares=shares, valid=Rows({"x": x[test]}, y[test]))


def peak_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1e3


def children() -> list[int]:
    me = os.getpid()
    return [int(pid) for pid in Path(f"/proc/{me}/task/{me}/children").read_text(encoding="utf-8").split()]


def one(devices: int, rounds: int) -> dict[str, Any]:
    """Run one size in this process."""
    workers, peaks = len(os.sched_getaffinity(0)), list[float]()

    def tell(done: RoundTold) -> None:
        peaks[:] = [peak_mb(os.getpid()), *(peak_mb(pid) for pid in children())]

    fleet, began = a_fleet(devices), time.perf_counter()
    plan = Plan(rounds=rounds, min_devices=devices, learning_rate=0.05, momentum=0.9, min_rows=1)
    found = simulate(fleet, plan, Conditions(workers=workers), on_round=tell)
    seconds = [told.seconds for told in found.rounds]
    return {
        "devices": devices,
        "rounds": rounds,
        "workers": workers,
        "first_s": seconds[0],
        "round_s": statistics.median(seconds[1:]),
        "all_s": time.perf_counter() - began,
        "peak_mb": sum(peaks),
        "parent_mb": peaks[0],
        "bytes_up": found.rounds[-1].bytes_up,
        "accuracy": found.rounds[-1].metric,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one, given.rounds)))
        return
    found = []
    for size in SIZES:
        command = [sys.executable, __file__, "--one", str(size), "--rounds", str(given.rounds)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found.append(json.loads(said.splitlines()[-1]))
    lines = [
        f"MLP 64-64-10, {ROWS} rows a device, one local epoch, {given.rounds} rounds, {found[0]['workers']} workers.",
        "",
        "| devices | s a round | ms a device | first round s | peak MB, all processes | of it the server | accuracy |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one_size in found:
        each = 1e3 * one_size["round_s"] / one_size["devices"]
        lines.append(
            f"| {one_size['devices']:,} | {one_size['round_s']:.3f} | {each:.2f} | {one_size['first_s']:.2f} | "
            f"{one_size['peak_mb']:.0f} | {one_size['parent_mb']:.0f} | {one_size['accuracy']:.4f} |"
        )
    small, large = found[0], found[-1]
    times = large["devices"] / small["devices"]
    lines += [
        "",
        f"{times:.0f} times the devices take {large['round_s'] / small['round_s']:.1f} times as long a round and "
        f"{large['peak_mb'] / small['peak_mb']:.1f} times the memory.",
    ]
    RESULTS.mkdir(exist_ok=True)
    kept = {"environment": environment(), "sizes": found}
    (RESULTS / "federated_scale.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "federated_scale.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
