"""Latency by counted instructions: what a graph costs on a core that nobody has here, without a single timing.

    OnnxModel x DeviceProfile -emulate-> Prediction, method "emulated"

Under qemu-user every operator of calibration's micro-models was run with the core's instruction set, its executed
blocks counted, and costed with LLVM's scheduling model (benchmarks/emulation). Cycles per class of operator are fitted
as milliseconds are for a calibrated device, at one gigahertz. Caches, branch prediction and heat are not in it; what
must come from memory bounds each operator from below. It ranks the forms of one model on one board: SDOT or not
decides which int8 recipe wins. It is no measurement.
"""

from __future__ import annotations

import functools
import json
import math
import platform
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto

from edgeml import graph
from edgeml.artifacts import OnnxModel, Prediction
from edgeml.bench.calibrate import Calibration, Reference
from edgeml.bench.calibrate.calibration import seal_of
from edgeml.bench.calibrate.work import Caches, Work, in_turn
from edgeml.bench.predict import prior
from edgeml.bench.predict.calibrated import works_on
from edgeml.bench.predict.fit import Kernels
from edgeml.bench.predict.memory import BLOCKED_ON, memory_mb
from edgeml.devices import DeviceProfile
from edgeml.errors import DataError
from edgeml_runtime.session import VERSION

SCHEMA = 1
COLUMNS = ("family", "kind", "macs", "moved", "weights", "gathered")  # of a Work: what counts are kept by
AGAIN = "count again with `python -m benchmarks.emulation.count`"
CORES = {  # a board's core -> the emulated one that executes the same kernels with the nearest pipeline
    "Cortex-A53": "cortex-a53",
    "Cortex-A57": "cortex-a72",
    "Cortex-A72": "cortex-a72",
    "Cortex-A73": "cortex-a72",
    "Cortex-A76": "cortex-a76",
    "Cortex-A77": "cortex-a76",
    "Cortex-A78": "cortex-a76",
    "Cortex-A78AE": "cortex-a76",
    "Neoverse-N1": "cortex-a76",
}
LOW, HIGH = 0.7, 1.6  # of the prediction: judgement; no board was timed
OTHER_CORE = math.log(1.25)  # more of range where the core is only the nearest
OTHER_RUNTIME = math.log(1.25)  # where another onnxruntime runs than was counted
PER_THREADS = math.log(1.3)  # for each doubling of the threads: 1 to 4 threads is 14 to 19 % apart between models
LEAST_COVERAGE = 0.8
CYCLES_PER_MS = 1e6  # at one gigahertz
ENDLESS = 1 << 40  # bytes of cache: none is modelled


def emulate(
    model: OnnxModel, feeds: Mapping[str, np.ndarray] | None, board: DeviceProfile, *, threads: int = 1
) -> Prediction | None:
    """Return the time of one query `feeds` (random if None) of `model` on `board`, and its memory.

    None where nothing was counted: for cores that are not in CORES or have no clock, for half-precision operators
    unless this is an aarch64 machine, and where counted classes of operators explain less than 80 % of the time.
    """
    core = CORES.get(board.core or "")
    if core is None or board.frequency_ghz is None:
        return None
    if platform.machine() in BLOCKED_ON and _has_halves(model):
        return None
    nodes = nodes_on_arm(model, feeds)
    forecast = kernels_of(core).forecast(nodes)
    if forecast.coverage < LEAST_COVERAGE:
        return None
    notes, spread = _doubts(board, core, threads)
    spread = math.hypot(spread, math.log(forecast.high / forecast.ms))
    compute, waiting = forecast.ms / board.frequency_ghz, _waiting(nodes, board, core)
    ms = (compute + waiting) / min(max(threads, 1), board.cores or 1) ** prior.THREAD_EXPONENT
    low, high = (ms * math.exp(way * math.hypot(math.log(edge), spread)) for way, edge in ((-1, LOW), (1, HIGH)))
    return Prediction(low, ms, high, memory_mb(model, machine=board.arch), "emulated", forecast.coverage, notes)


def nodes_on_arm(model: OnnxModel, feeds: Mapping[str, np.ndarray] | None = None) -> list[Work]:
    """Return the work of the nodes that onnxruntime runs `model` as on aarch64, seen in a session here."""
    return works_on("aarch64", model, graph.random_rows(model, 1) if feeds is None else feeds)


@functools.cache
def kernels_of(core: str) -> Kernels:
    """Return the cost model of `core`, in milliseconds at one gigahertz."""
    file = resources.files("edgeml.bench.predict") / "cycles" / f"{core}.json"
    return Kernels(parse_cycles(file.read_text(encoding="utf-8"), core))


def parse_cycles(text: str, core: str) -> Calibration:
    """Return the counts of `core` in `text` as a calibration; raise DataError naming what is wrong with them."""
    try:
        body = json.loads(text)
        digest, schema = body.pop("digest"), body["schema"]
        if schema != SCHEMA:
            raise DataError(f"{core}: cycles of schema {schema!r}, this edgeml reads {SCHEMA}: {AGAIN}")
        if digest != seal_of(body):
            raise DataError(f"{core}: cycles that were changed or cut off since they were counted: {AGAIN}")
        if body["core"] != core:
            raise DataError(f"{core}: these are the cycles of {body['core']}: {AGAIN}")
        works = [Work(**dict(zip(body["columns"], row, strict=True))) for row in body["works"]]
        references = tuple(
            Reference(name=one["name"], ms=one["cycles"] / CYCLES_PER_MS, nodes=tuple(works[at] for at in one["nodes"]))
            for one in body["references"]
        )
        return Calibration(
            device=core,
            settings={},
            environment={"machine": "aarch64", "onnxruntime": body["onnxruntime"]},
            cache_bytes=ENDLESS,
            near_bytes=ENDLESS,
            call_ms=body["call"] / CYCLES_PER_MS,
            node_ms=0.0,
            samples=tuple((works[at], cycles / CYCLES_PER_MS) for at, _, cycles in body["samples"]),
            references=references,
        )
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise DataError(f"{core}: not counts of cycles ({type(error).__name__}: {error}): {AGAIN}") from error


def sealed(body: Mapping[str, Any]) -> str:
    """Return `body` as the document that `parse_cycles` reads, a row a line and its digest included."""
    whole = {**body, "digest": seal_of(body)}
    parts = [f"{json.dumps(key)}: {_rows(value)}" for key, value in whole.items()]
    return "{" + ",\n".join(parts) + "}\n"


def _rows(value: Any) -> str:
    if not isinstance(value, list):
        return json.dumps(value)
    return "[\n" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in value) + "]"


def _waiting(nodes: Sequence[Work], board: DeviceProfile, core: str) -> float:
    """Return the milliseconds by which memory is slower than the operators, each for itself."""
    if board.bandwidth_mb_s is None or board.frequency_ghz is None:
        return 0.0
    cache = (board.l3_kb or board.l2_kb or 0) * 1024
    kernels, total = kernels_of(core), 0.0
    for work in in_turn(nodes, Caches(max(cache, 1), max(cache, 1))):
        moved = work.far * work.weights + (work.moved if work.moved > cache else 0.0)
        total += max(0.0, moved / (board.bandwidth_mb_s * 1e3) - kernels.node(work)[0] / board.frequency_ghz)
    return total


def _has_halves(model: OnnxModel) -> bool:
    """Return whether there are half-precision weights, whose operators only aarch64 has: another graph than here."""
    return any(one.data_type == TensorProto.FLOAT16 for one in ModelProto.FromString(model.data).graph.initializer)


def _doubts(board: DeviceProfile, core: str, threads: int) -> tuple[tuple[str, ...], float]:
    """Return what widens the range, and by how much of the logarithm."""
    notes, spreads = [], [0.0]
    if board.core is None or board.core.lower() != core:
        notes.append(f"counted on a {core.capitalize()}, the nearest to {board.core}")
        spreads.append(OTHER_CORE)
    counted = str(kernels_of(core).calibration.environment["onnxruntime"])
    if counted != VERSION:
        notes.append(f"stale: onnxruntime {counted} was counted, {VERSION} will run: the range is wider")
        spreads.append(OTHER_RUNTIME)
    if threads > 1:
        notes.append(
            f"one thread was counted: {threads} are taken for {threads**prior.THREAD_EXPONENT:.2g} times as fast"
        )
        spreads.append(PER_THREADS * math.log2(threads))
    return tuple(notes), math.hypot(*spreads)
