"""Latency and memory of a graph on a board nobody has here: a prior, with its range.

time = call + nodes + convolutions + products + bytes moved + tree visits

Convolutions and what moves between them cost what published timings of such boards say (transfer.py); products of
matrices, calls, nodes and trees what counted instructions of onnxruntime say (prior.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edgeml.artifacts import OnnxModel, Prediction
from edgeml.bench.predict import prior
from edgeml.bench.predict.machine import Machine, machines_of, unknown_of
from edgeml.bench.predict.memory import memory_mb
from edgeml.bench.predict.transfer import COUNTED, ms_of, scales_for
from edgeml.bench.predict.works import Work, work_of
from edgeml.devices import DeviceProfile
from edgeml.graph import Cost, cost

Z90 = 1.645
PRODUCTS = ("gemm", "gemv")


@dataclass(frozen=True)
class Parts:
    """Milliseconds by what says them, and the spread of the logarithm of what was published."""

    published: float
    spread: float
    counted: float
    unknown: float

    @property
    def total(self) -> float:
        return self.published + self.counted + self.unknown

    @property
    def factor(self) -> float:
        """Return half the width of the range; the mistakes of one board go together."""
        spread = self.published * self.spread + self.counted * COUNTED
        return math.exp(Z90 * spread / (self.published + self.counted))


def predict(model: OnnxModel, board: DeviceProfile, threads: int = 1) -> Prediction:
    """Return the time and memory of one row of `model` on `board`, method "prior"."""
    work = cost(model)
    parts = [_parts(work, machine, threads) for machine in machines_of(board)]
    totals = [part.total for part in parts]
    predicted = math.exp(sum(map(math.log, totals)) / len(totals))
    coverage = min((part.published + part.counted) / part.total for part in parts)
    apart = max(max(totals) / predicted, predicted / min(totals))  # what nobody knows of the board
    factor = apart * max(part.factor for part in parts) / coverage  # what no rule explains widens the range
    low, high = predicted / factor, predicted * factor
    return Prediction(low, predicted, high, memory_mb(model, work), "prior", coverage, _notes(board, len(parts)))


def _notes(board: DeviceProfile, tried: int) -> tuple[str, ...]:
    unknown = unknown_of(board)
    count = f"each of the {tried} machines" if tried > 1 else "the one machine"
    return (f"unknown of {board.name}: {', '.join(unknown)}; as on {count} like it",) if unknown else ()


def _parts(work: Cost, board: Machine, threads: int) -> Parts:
    published, weighted = 0.0, 0.0
    for int8 in (False, True):
        row = _convolutions(work_of(work, int8=int8))
        if row.any():
            precision = "int8" if int8 else "fp32"
            scales = scales_for(board, precision)
            ms, spread = ms_of(row, board, scales, precision=precision, threads=threads)
            ms /= _activations(work, board) if int8 else 1.0
            published, weighted = published + ms, weighted + ms * spread
    counted, unknown = _counted(work, board, threads)
    return Parts(published, weighted / published if published else 0.0, counted * 1e3, unknown * 1e3)


def _convolutions(work: Work) -> np.ndarray:
    """Return the columns of `work` that published networks tell about, nothing where nothing is convolved."""
    row = Work({kind: macs for kind, macs in work.mmacs.items() if kind not in PRODUCTS}, work.melements)
    return row.row() if row.macs else np.zeros(len(row.row()))


def _activations(work: Cost, board: Machine) -> float:
    """Return the speed of the int8 convolutions' activation types, relative to the better one."""
    macs = {name.partition(".")[2]: count for name, count in work.macs_by_class.items() if "." in name}
    types = max(macs, key=lambda name: macs[name])
    return prior.ACTIVATIONS.get(types, prior.ACTIVATIONS["s8s8"])[prior.kind_of(board)]


def _counted(work: Cost, board: Machine, threads: int) -> tuple[float, float]:
    """Return the seconds of what counting knows, and of unknown operators."""
    kind, bandwidth = prior.kind_of(board), board.bandwidth_mb_s * 1e6
    rate = board.frequency_ghz * 1e9 * prior.INSTRUCTIONS_PER_CYCLE[kind]
    speedup = min(max(threads, 1), board.cores) ** prior.THREAD_EXPONENT
    cache = board.l2_kb * 1024
    compute = 0.0
    for name, macs in work.macs_by_class.items():
        weights = work.weights_by_class.get(name, 0)
        streamed = weights / bandwidth if work.weight_bytes > cache else 0.0
        products = name.partition(".")[0] in PRODUCTS
        compute += max(macs / prior.macs_per_second(board, name) / speedup if products else 0.0, streamed)
    moved = work.moved_bytes / bandwidth
    visits = work.tree_visits * prior.CYCLES_PER_VISIT[kind] / (board.frequency_ghz * 1e9)
    call = prior.INSTRUCTIONS_PER_CALL if work.inputs == 1 else prior.INSTRUCTIONS_PER_RUN
    odd = sum(work.unknown.values())
    overhead = (call + prior.INSTRUCTIONS_PER_NODE * (work.nodes - odd)) / rate
    return overhead + compute + moved + visits, odd * prior.INSTRUCTIONS_PER_UNKNOWN / rate
