"""Latency and memory of a graph on a board nobody has here: a prior, with its range.

time = call + nodes + sum over classes of max(MACs / reachable rate, weights / bandwidth) + bytes + trees
"""

from __future__ import annotations

from edgeml.artifacts import OnnxModel, Prediction
from edgeml.bench.predict import prior
from edgeml.devices import DeviceProfile
from edgeml.graph import Cost, cost

# benchmarks/prior_check.py: 24 of 25 published timings of these boards lie within this factor (0.72 to 2.27)
RANGE_FACTOR = 2.0


def predict(model: OnnxModel, board: DeviceProfile, threads: int = 1) -> Prediction:
    """Return the time and memory of one row of `model` on `board`, method "prior"."""
    work = cost(model)
    known, unknown = _seconds(work, board, threads)
    predicted = (known + unknown) * 1e3
    coverage = known / (known + unknown)
    factor = RANGE_FACTOR / coverage  # what no rule explains widens the range
    return Prediction(predicted / factor, predicted, predicted * factor, memory_mb(model, work), "prior", coverage)


def _seconds(work: Cost, board: DeviceProfile, threads: int) -> tuple[float, float]:
    """Return the seconds of known and of unknown operators."""
    kind, bandwidth = prior.kind_of(board), board.bandwidth_mb_s * 1e6
    rate = board.frequency_ghz * 1e9 * prior.INSTRUCTIONS_PER_CYCLE[kind]
    speedup = min(max(threads, 1), board.cores) ** prior.THREAD_EXPONENT
    cache = (board.l2_kb or 0) * 1024
    compute = 0.0
    for name, macs in work.macs_by_class.items():
        weights = work.weights_by_class.get(name, 0)
        streamed = weights / bandwidth if work.weight_bytes > cache else 0.0
        compute += max(macs / prior.macs_per_second(board, name) / speedup, streamed)
    moved = work.moved_bytes / bandwidth
    visits = work.tree_visits * prior.CYCLES_PER_VISIT[kind] / (board.frequency_ghz * 1e9)
    call = prior.INSTRUCTIONS_PER_CALL if work.inputs == 1 else prior.INSTRUCTIONS_PER_RUN
    odd = sum(work.unknown.values())
    overhead = (call + prior.INSTRUCTIONS_PER_NODE * (work.nodes - odd)) / rate
    return overhead + compute + moved + visits, odd * prior.INSTRUCTIONS_PER_UNKNOWN / rate


def memory_mb(model: OnnxModel, work: Cost | None = None) -> float:
    """Return the resident megabytes, at the peak while loading, of a process that serves `model`."""
    work = work or cost(model)
    weights = max(work.weight_bytes, len(model.data)) / 1e6
    activations = prior.ACTIVATION_FACTOR * work.activation_bytes / 1e6
    return prior.RUNTIME_MB + prior.SESSION_MB + prior.WEIGHT_FACTOR * weights + activations
