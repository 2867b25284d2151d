"""Count what onnxruntime's operators execute on emulated cores, and cost it: the data of edgeml.bench.predict.emulated.

    python -m tests.emulated.board_root | python -m benchmarks.emulation.count FOLDER        all of it: half an hour
    python -m tests.emulated.board_root | python -m benchmarks.emulation.count FOLDER --cores cortex-a76 --only nets

The first makes the emulated boards; qemu-user, gcc and llvm-19 are from apt. What is counted is kept in
FOLDER, so that an interrupted count goes on. Writes edgeml/bench/predict/cycles/CORE.json, and counts of whole nets, by
which predictions are judged, to benchmarks/emulation/nets.json. Instruction counts of products repeat within 1 %,
those of small moves within 3 %.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.emulation import nets
from benchmarks.emulation.emulator import Counted, Emulator, Job, instructions, node_of
from benchmarks.emulation.models import micro_models, references
from benchmarks.emulation.ports import MODELS, Ports, version
from edgeml.bench.calibrate.blocks import EVICTION
from edgeml.bench.calibrate.work import Work, works_of
from edgeml.bench.predict.emulated import COLUMNS, SCHEMA, sealed

ROOT = Path(__file__).resolve().parents[2]
CYCLES, TRUTH = ROOT / "edgeml/bench/predict/cycles", Path(__file__).parent / "nets.json"
BATCH = 100
Row = dict[str, Any]


def counted(emulator: Emulator, core: str, jobs: Sequence[Job]) -> list[Row]:
    """Return nodes, instructions and cycles of every job; what the folder has of them is not counted again."""
    ports, kept = Ports(core), {job: _kept(emulator.work / core, job) for job in jobs}
    new = [job for job in jobs if not kept[job].exists()]
    for start in range(0, len(new), BATCH):
        batch = [replace(job, nodes=_told(emulator.work, job)) for job in new[start : start + BATCH]]
        for job, one in zip(batch, emulator.count(core, batch), strict=True):
            _kept(emulator.work / core, job).write_text(json.dumps(_row(one, ports)), encoding="utf-8")
        print(f"{core}: {start + len(batch)} of {len(new)}, {batch[-1].name}", flush=True)
    return [_with_works(json.loads(kept[job].read_text(encoding="utf-8")), job) for job in jobs]


def _kept(folder: Path, job: Job) -> Path:
    return folder / f"{hashlib.sha256(job.name.encode() + job.model).hexdigest()[:24]}.json"


def _told(work: Path, job: Job) -> list[Row]:
    """Return the nodes of a job as another core told them, if one did."""
    found = next((path for core in MODELS if (path := _kept(work / core, job)).exists()), None)
    return [node["node"] for node in json.loads(found.read_text(encoding="utf-8"))["nodes"]] if found else []


def _with_works(row: Row, job: Job) -> Row:
    works = works_of([node_of(node["node"]) for node in row["nodes"]], job.model)
    return row | {"nodes": [node | {"work": work} for node, work in zip(row["nodes"], works, strict=True)]}


def _row(one: Counted, ports: Ports) -> Row:
    regions = [blocks for _, blocks in one.nodes]
    call, whole, *cycles = ports.cost([one.call, one.whole, *regions])
    nodes = [
        {"node": asdict(node), "cycles": cost, "instructions": instructions(blocks)}
        for (node, blocks), cost in zip(one.nodes, cycles, strict=True)
    ]
    sums = {"cycles": whole, "call": call, "instructions": instructions(one.whole)}
    return {"name": one.name, "onnxruntime": one.onnxruntime, "nodes": nodes, **sums}


def document(core: str, micro: Sequence[Row], whole: Sequence[Row]) -> Row:
    """Return the data of one core: distinct works, a sample of each in each micro-model, and the reference nets."""
    works: dict[Work, int] = {}

    def place(node: Row) -> int:
        return works.setdefault(node["work"], len(works))

    samples = {
        (place(node), round(node["instructions"]), round(node["cycles"]))
        for row in micro
        for node in row["nodes"]
        if not node["node"]["name"].startswith(EVICTION)
    }
    kept = [
        {
            "name": row["name"],
            **{name: round(row[name]) for name in ("instructions", "cycles")},
            "nodes": [place(node) for node in row["nodes"]],
        }
        for row in whole
    ]
    return {
        "schema": SCHEMA,
        "core": core,
        "made": made(),
        "call": round(min(row["call"] for row in micro)),
        "columns": list(COLUMNS),
        "works": [[_short(getattr(work, name)) for name in COLUMNS] for work in works],
        "samples": [list(sample) for sample in _thinned(sorted(samples))],
        "references": kept,
    }


def _short(value: str | float) -> str | float:
    """Return a whole number as such: it is written in fewer digits."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _thinned(samples: Iterable[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Return the middle one of the samples of each work: they differ by a few instructions."""
    by_work: dict[int, list[tuple[int, int, int]]] = {}
    for sample in samples:
        by_work.setdefault(sample[0], []).append(sample)
    return [sorted(found, key=lambda sample: sample[2])[len(found) // 2] for found in by_work.values()]


def made() -> Row:
    """Return by what the counts were made."""
    qemu = subprocess.run(["qemu-aarch64", "--version"], capture_output=True, text=True, check=True).stdout
    return {
        "by": "python -m benchmarks.emulation.count",
        "on": datetime.date.today().isoformat(),
        "qemu": qemu.split()[2],
        "llvm": version(),
        "models": dict(MODELS),
    }


def truth(core: str, rows: Sequence[Row]) -> Row:
    """Return instructions, cycles and node classes of whole nets."""
    return {
        row["name"]: {
            "instructions": round(row["instructions"]),
            "cycles": round(row["cycles"]),
            "classes": classes(node["work"] for node in row["nodes"]),
        }
        for row in rows
    }


def classes(works: Iterable[Work]) -> dict[str, int]:
    """Return how often each class of operator occurs."""
    found: dict[str, int] = {}
    for work in works:
        name = f"{work.family} {work.kind}".strip()
        found[name] = found.get(name, 0) + 1
    return dict(sorted(found.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("work", type=Path, help="a folder for what is in between")
    parser.add_argument("--cores", nargs="+", choices=sorted(MODELS), default=sorted(MODELS))
    parser.add_argument("--only", choices=("kernels", "nets"), help="one half of it")
    asked = parser.parse_args()
    version()
    asked.work.mkdir(parents=True, exist_ok=True)
    emulator = Emulator({core: Path(path) for core, path in map(str.split, sys.stdin)}, asked.work)
    jobs = [nets.job(name, recipe, model) for name in nets.NETS for recipe, model in nets.variants(name).items()]
    for core in asked.cores:
        if asked.only != "nets":
            micro, whole = counted(emulator, core, micro_models()), counted(emulator, core, references())
            body = document(core, micro, whole) | {"onnxruntime": micro[0]["onnxruntime"]}
            CYCLES.mkdir(exist_ok=True)
            (CYCLES / f"{core}.json").write_text(sealed(body), encoding="utf-8")
        if asked.only != "kernels":
            stored = json.loads(TRUTH.read_text(encoding="utf-8")) if TRUTH.exists() else {}
            stored |= {"made": made(), core: truth(core, counted(emulator, core, jobs))}
            TRUTH.write_text(json.dumps(stored, indent=0, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
