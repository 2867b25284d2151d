"""Models run on an emulated core and every executed block of instructions counted, operator by operator.

    pythons of emulated boards, core, jobs -count-> Counted per job

`python -m tests.emulated.board_root` makes the boards. onnxruntime picks kernels by the instruction set (SDOT or not)
and by the core's number in the board's cpuinfo.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeml_runtime.measure import OperatorTime

HERE = Path(__file__).parent
RUNTIME = HERE.parents[1] / "runtime"
QUIET = {"ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
# onnxruntime 1.32 reads the clock four times until the first node begins, twice for each, and then some more
BEFORE, AFTER = 4, (6, 7)  # regions
Block = tuple[str, ...]  # its instructions as words of hexadecimal digits
Blocks = dict[Block, float]  # -> how often it ran


class EmulationError(RuntimeError):
    """The emulator did not answer as it should; the message holds what it said."""


@dataclass(frozen=True, eq=False)
class Job:
    """One model to run, its inputs, and its nodes as plain values where another core told them."""

    name: str
    model: bytes
    feeds: Mapping[str, np.ndarray]
    nodes: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Counted:
    """What one query of a model executed: by node, in the call around them, and altogether."""

    name: str
    onnxruntime: str
    nodes: tuple[tuple[OperatorTime, Blocks], ...]
    call: Blocks
    whole: Blocks


@dataclass(frozen=True)
class Emulator:
    """Pythons of emulated boards by core, and a folder for what lies in between."""

    pythons: Mapping[str, Path]
    work: Path

    def count(self, core: str, jobs: Sequence[Job]) -> list[Counted]:
        """Return what each job executed on `core`; raise EmulationError when the guest failed."""
        folder = (self.work / core).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(_written(folder, index, job)) for index, job in enumerate(jobs)]
        (folder / "jobs").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        out, answers = folder / "blocks", folder / "answers"
        command = [str(self.pythons[core]), str(HERE / "guest.py"), str(folder / "jobs"), str(answers)]
        environment = {**os.environ, **QUIET, "PYTHONPATH": str(RUNTIME), "QEMU_PLUGIN": f"{self._plugin()},out={out}"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise EmulationError(f"{core}: the guest ended with {done.returncode}: {done.stderr[-2000:]}")
        answered = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
        recordings = _recordings(out)
        return [_counted(one, recordings[2 * i + 1], recordings[2 * i + 2]) for i, one in enumerate(answered)]

    def _plugin(self) -> Path:
        made, source = self.work.absolute() / "blocks.so", HERE / "blocks.c"
        if not made.exists() or made.stat().st_mtime < source.stat().st_mtime:
            subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", str(made), str(source)], check=True)
        return made


def _written(folder: Path, index: int, job: Job) -> dict[str, Any]:
    model, feeds = folder / f"{index}.onnx", folder / f"{index}.npz"
    model.write_bytes(job.model)
    arrays: dict[str, np.ndarray] = dict(job.feeds)
    np.savez(feeds, **arrays)  # type: ignore[arg-type]  # allow_pickle is no array
    return {"name": job.name, "model": str(model), "feeds": str(feeds), "nodes": list(job.nodes)}


def _recordings(path: Path) -> dict[int, list[Blocks]]:
    """Return the regions of each recording in the plugin's file."""
    words: dict[str, Block] = {}
    found: dict[int, list[Blocks]] = {}
    tag = 0
    with path.open(encoding="utf-8") as file:
        for line in file:
            kind, *rest = line.split()
            if kind == "B":
                words[rest[0]] = tuple(rest[1:])
            elif kind == "G":
                tag = int(rest[0])
                found[tag] = []
            else:
                pairs = (entry.split(":") for entry in rest)
                found[tag].append({words[block]: float(times) for block, times in pairs})
    return found


def _counted(answer: Mapping[str, Any], profiled: list[Blocks], plain: list[Blocks]) -> Counted:
    """Part the plain run by node, as the profiled run was, the profiler's own instructions left out.

    The profiler writes its event after the kernel and before it reads the clock, so that each node's region holds
    some 25,000 instructions of it. Every block is scaled by its count in the plain run over that in the profiled one:
    what only the profiler executes vanishes, and the sum over the regions is the plain run.
    """
    nodes = [node_of(one) for one in answer["nodes"]]
    if len(profiled) - (BEFORE + 2 * len(nodes) - 1) not in AFTER:
        raise EmulationError(
            f"{answer['name']}: {len(profiled) - 1} readings of the clock for {len(nodes)} nodes: "
            f"a graph within a graph, or another onnxruntime than 1.32, see BEFORE and AFTER"
        )
    whole, total = _sum(plain), _sum(profiled)
    shares = {block: min(1.0, whole.get(block, 0.0) / times) for block, times in total.items()}
    regions = [{b: times * shares[b] for b, times in region.items() if shares[b]} for region in profiled]
    every = [_sum(regions[BEFORE + 2 * i - 1 : BEFORE + 2 * i + 1]) for i in range(len(nodes))]
    rest = {block: times - shares.get(block, 0.0) * total.get(block, 0.0) for block, times in whole.items()}
    alone = {block: times for block, times in rest.items() if times > 0}  # what only `predict` does
    call = _sum([*regions[: BEFORE - 1], *regions[BEFORE + 2 * len(nodes) - 1 :], alone])
    parted = tuple(zip(nodes, every, strict=True))
    return Counted(str(answer["name"]), str(answer["onnxruntime"]), parted, call, whole)


def node_of(plain: Mapping[str, Any]) -> OperatorTime:
    """Return a node that was written as plain values."""
    shapes = tuple((kind, tuple(shape)) for kind, shape in plain["shapes"])
    return OperatorTime(**{**plain, "shapes": shapes})


def _sum(regions: Sequence[Blocks]) -> Blocks:
    total: Blocks = {}
    for region in regions:
        for block, times in region.items():
            total[block] = total.get(block, 0.0) + times
    return total


def instructions(blocks: Blocks) -> float:
    """Return how many instructions these are."""
    return sum(times * len(block) for block, times in blocks.items())
