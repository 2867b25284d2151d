"""What a process that serves a model holds in memory, by the settings of its session.

    resident = runtime + session + nodes + copies of the weights + activations

Which copies there are is known: the file's own (on the heap, or mapped where the weights are external data), one in
onnxruntime's blocked layout (convolutions on x86-64), one packed for the products, floats out of int8 where the graph
is not fused. How large each is in bytes per byte was fitted by benchmarks/memory.py to this machine's processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgeml.artifacts import OnnxModel
from edgeml.graph import Cost, cost
from edgeml_runtime.session import DEFAULTS
from edgeml_runtime.wire.manifest import Settings

RUNTIME_MB = 52.0  # Python, onnxruntime, numpy, paho, with telemetry off
FILES_MB = 36.0  # of the resident, what files back: libraries, which a full memory can drop
BLOCKED_ON = ("x86_64", "AMD64")  # where convolutions get a layout of their own; aarch64 has none in 1.32
FUSING = ("extended", "all")  # graph levels at which int8 operators are made out of QDQ

# MB per unit of `amounts`: (resident after some runs, at its peak while loading)
PRICES: Mapping[str, tuple[float, float]] = {
    "session": (11.7, 12.2),
    "nodes": (0.0126, 0.0089),  # each
    "weights": (1.02, 1.06),  # this and the rest: MB per MB
    "blocked": (0.53, 0.55),
    "blocked, from the heap": (0.97, 1.02),
    "packed": (0.0, 0.10),
    "packed, from the heap": (0.60, 0.47),
    "int8 packed": (0.57, 0.51),
    "int8 not fused": (3.30, 3.27),
    "activations": (1.67, 1.66),
    "activations without arena": (2.60, 2.66),
}


@dataclass(frozen=True)
class Memory:
    """Megabytes (10^6) of a whole process. `anonymous_mb` is what a full memory cannot drop."""

    steady_mb: float
    peak_mb: float
    anonymous_mb: float


def memory(model: OnnxModel | Cost, settings: Settings = DEFAULTS, *, machine: str = "aarch64") -> Memory:
    """Return what a process holds that serves `model` with `settings`."""
    found = amounts(model, settings, machine=machine)
    steady, peak = (RUNTIME_MB + sum(PRICES[name][i] * amount for name, amount in found.items()) for i in (0, 1))
    return Memory(steady, max(steady, peak), max(steady - mapped(found, settings), 0.0))


def mapped(found: Mapping[str, float], settings: Settings) -> float:
    """Return the resident megabytes that files back: libraries, and weights beside the file that were not copied."""
    copied = found["blocked"] + found["packed"] + found["int8 packed"]
    return FILES_MB + (max(0.0, found["weights"] - copied) if settings.external_data else 0.0)


def memory_mb(
    model: OnnxModel, work: Cost | None = None, *, settings: Settings = DEFAULTS, machine: str = "aarch64"
) -> float:
    """Return the megabytes that a process serving `model` needs at its peak; `work` is its cost where that is known."""
    return memory(work or model, settings, machine=machine).peak_mb


def amounts(model: OnnxModel | Cost, settings: Settings = DEFAULTS, *, machine: str = "aarch64") -> dict[str, float]:
    """Return how much there is of everything that PRICES has a price for."""
    work = model if isinstance(model, Cost) else cost(model)
    convolutions, products, int8 = _weights(work)
    blocked = convolutions if settings.graph_level == "all" and machine in BLOCKED_ON else 0.0
    packed = products if settings.prepacking else 0.0
    fused = settings.graph_level in FUSING
    activations = work.activation_bytes / 1e6
    return {
        "session": 1.0,
        "nodes": float(work.nodes),
        "weights": work.weight_bytes / 1e6,
        "blocked": blocked,
        "blocked, from the heap": 0.0 if settings.external_data else blocked,
        "packed": packed,
        "packed, from the heap": 0.0 if settings.external_data else packed,
        "int8 packed": int8 if settings.prepacking and fused else 0.0,
        "int8 not fused": 0.0 if fused else int8,
        "activations": activations if settings.arena else 0.0,
        "activations without arena": 0.0 if settings.arena else activations,
    }


def _weights(work: Cost) -> tuple[float, float, float]:
    """Return the megabytes of weights of float convolutions, of float products, and of quantized operators."""
    convolutions = products = int8 = 0.0
    for name, size in work.weights_by_class.items():
        operator, _, types = name.partition(".")
        if types:
            int8 += size / 1e6
        elif operator in ("conv", "depthwise"):
            convolutions += size / 1e6
        else:
            products += size / 1e6
    return convolutions, products, int8
