"""A cost model of a device's kernels: non-negative least squares by class, set right by the reference nets.

    time of a node = a + b MAC + c window + d bytes of activations + e bytes of weights + what no cache kept
                       + what is left over from whole vectors and from equal parts for the threads, by class
    time of a net  = scalar * (call + sum over its nodes)

The coefficients are not negative and minimize the relative error (Lawson and Hanson, Solving Least Squares Problems,
1974). A kind of convolution with too few samples takes its family's model, an operator nobody measured the one of all
that only move bytes, and counts as not covered.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from edgeml.bench.calibrate import Calibration, Reference
from edgeml.bench.calibrate.work import Work, in_turn

LEAST_SAMPLES = 3
ROUNDS = 4  # of reweighting
LEAST_NODE_SPREAD = 0.1  # of the logarithm, of any class
RESOLUTION_MS = 5e-4  # half a microsecond: below it relative errors are the profiler's
LEAST_SPREAD = 0.03  # of the logarithm: no five nets promise more
T95 = 2.13  # two-sided 90 % of Student's t with 4 degrees of freedom: five reference nets
MOVING = "* moving"  # the group of all that only move or map elements
HELD = 0.25  # how hard a class is held to the one that holds it: an eighth sample's worth of each coefficient
HUBER = 0.1  # relative errors above it count as disturbed
UNCOVERED_SPREAD = math.log(3.0)  # of an operator nobody measured


@dataclass(frozen=True)
class Model:
    """Coefficients of one class: milliseconds, then per unit of _row; `spread` of the logarithms' residuals.

    `scale` is what a unit of each coefficient is of a sample's time, in the mean.
    """

    coefficients: tuple[float, ...]
    spread: float
    samples: int
    scale: tuple[float, ...]

    def ms(self, work: Work) -> float:
        return sum(c * x for c, x in zip(self.coefficients, _row(work), strict=True))


@dataclass(frozen=True)
class Forecast:
    """Milliseconds of a net, its 90 % interval, and the share of the time that calibrated classes explain."""

    low: float
    ms: float
    high: float
    coverage: float
    unknown: tuple[str, ...]  # families without a model, the costliest first


class Kernels:
    """The cost model of one calibrated device."""

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration
        groups: dict[tuple[str, str], list[tuple[Work, float]]] = {}
        for work, ms in calibration.samples:
            for kind in _kinds(work.kind):
                groups.setdefault((work.family, kind), []).append((work, ms))
            groups.setdefault((_product(work), ""), []).append((work, ms))
        self.models: dict[tuple[str, str], Model] = {}
        for key in sorted(groups, key=lambda key: (not key[0].startswith("*"), len(key[1].split()))):
            self.models[key] = _fit(groups[key], self._wider(key, groups[key][0][0]))
        self.scalars = {int8: self._scalar(int8, calibration.references) for int8 in (False, True)}

    def _wider(self, key: tuple[str, str], work: Work) -> Model | None:
        """Return the model of the class that holds the one of this key, None for the widest."""
        family, kind = key
        if family.startswith("*"):
            return None
        return self.models[(family, " ".join(kind.split()[:-1])) if kind else (_product(work), "")]

    def node(self, work: Work) -> tuple[float, float, bool]:
        """Return the milliseconds of a node, the spread of their logarithm, and whether its class was measured."""
        for kind in _kinds(work.kind):
            model = self.models.get((work.family, kind))
            if model is not None and (model.samples >= LEAST_SAMPLES or not kind):
                return model.ms(work), model.spread, True
        other = self.models.get((_product(work), ""))
        other = other or self.models.get((MOVING, "")) or next(iter(self.models.values()))
        return other.ms(work), UNCOVERED_SPREAD, False

    def forecast(self, nodes: Sequence[Work]) -> Forecast:
        """Return what a net of `nodes` takes for one query."""
        raw, spread, unknown = self._sum(in_turn(nodes, self.calibration.caches()))
        scalar, between = self.scalars[_is_int8(nodes)]
        ms = scalar * raw
        missing = sum(unknown.values())
        sigma = math.hypot(spread, between) * (1.0 + missing / raw)
        factor = math.exp(T95 * sigma)
        largest = sorted(unknown, key=lambda family: -unknown[family])
        return Forecast(ms / factor, ms, ms * factor, 1.0 - missing / raw, tuple(largest))

    def left_out(self) -> dict[str, float]:
        """Return for every reference net what is predicted of it, set right by the other nets alone, by measured."""
        found = {}
        for index, one in enumerate(self.calibration.references):
            others = (*self.calibration.references[:index], *self.calibration.references[index + 1 :])
            scalar, _ = self._scalar(_is_int8(one.nodes), others)
            found[one.name] = scalar * self._sum(in_turn(one.nodes, self.calibration.caches()))[0] / one.ms
        return found

    def _sum(self, nodes: Iterable[Work]) -> tuple[float, float, dict[str, float]]:
        """Return the milliseconds of all nodes and the call, the spread of the sum, the uncovered part by family."""
        total, variance, unknown = self.calibration.call_ms, dict[tuple[str, str], float](), dict[str, float]()
        for work in nodes:
            ms, spread, known = self.node(work)
            total += ms
            key = (work.family, work.kind)
            variance[key] = variance.get(key, 0.0) + ms * spread  # errors of one class go together
            if not known:
                unknown[work.family] = unknown.get(work.family, 0.0) + ms
        return total, math.sqrt(sum(value**2 for value in variance.values())) / total, unknown

    def _scalar(self, int8: bool, references: Sequence[Reference]) -> tuple[float, float]:
        """Return what the reference nets say the sum must be multiplied by, and how far they disagree (log)."""
        ratios = [
            math.log(one.ms / self._sum(in_turn(one.nodes, self.calibration.caches()))[0])
            for one in references
            if _is_int8(one.nodes) == int8
        ]
        if not ratios:
            return 1.0, UNCOVERED_SPREAD
        middle = float(np.median(ratios))
        spread = math.sqrt(sum((ratio - middle) ** 2 for ratio in ratios) / max(1, len(ratios) - 1))
        return math.exp(middle), max(spread * math.sqrt(1 + 1 / len(ratios)), LEAST_SPREAD)


def _kinds(kind: str) -> list[str]:
    """Return `kind` and what is left of it without its last words, down to nothing."""
    words = kind.split()
    return [" ".join(words[:count]) for count in range(len(words), -1, -1)]


def _product(work: Work) -> str:
    """Return the name of the group of everything that multiplies in this element type, or that multiplies not."""
    return f"* {work.family.split()[1]}" if work.macs else MOVING


def _is_int8(nodes: Sequence[Work]) -> bool:
    return any("int8" in work.family and work.macs for work in nodes)


def _row(work: Work) -> tuple[float, ...]:
    near, far = work.stale, work.far
    return (
        *(1.0, near, work.wiped),
        *(work.macs, work.gathered),
        *(work.moved, work.aged, work.over, work.spilled),
        *(work.weights, near * work.weights, far * work.weights),
        *(work.ragged, work.odd, work.part),
    )


def _fit(samples: Sequence[tuple[Work, float]], wider: Model | None) -> Model:
    """Return the non-negative model of least relative error, held to the `wider` class's where samples say little.

    A coefficient is held by what it is of a sample's time here or in the wider class, whichever is more: small
    samples say nothing of what weights of a megabyte cost. Columns are scaled, for they differ by 10^9. Samples that
    lie far off weigh less (Huber).
    """
    times = np.array([ms for _, ms in samples])
    rows = np.array([_row(work) for work, _ in samples])
    weights = 1.0 / (times + RESOLUTION_MS)
    scale = (rows * weights[:, None]).mean(axis=0)
    # what no sample has is scaled as in the wider class, which alone decides it; where that has none either, it is 0
    scale = np.where(scale > 0, scale, 1.0 if wider is None else wider.scale)
    hold, held = np.zeros((0, len(scale))), np.zeros(0)
    if wider is not None:
        strength = HELD * np.maximum(1.0, np.array(wider.scale) / scale)
        hold, held = np.diag(strength), strength * scale * np.array(wider.coefficients)
    trust = np.ones(len(samples))
    for _ in range(ROUNDS):
        matrix = np.vstack([rows * (weights * trust)[:, None] / scale, hold])
        found, _ = nnls(matrix, np.concatenate([times * weights * trust, held]))
        off = np.abs(rows @ (found / scale) - times) * weights
        trust = np.sqrt(np.minimum(1.0, HUBER / np.maximum(off, 1e-12)))
    coefficients = found / scale
    residuals = np.log((rows @ coefficients + RESOLUTION_MS) / (times + RESOLUTION_MS))
    spread = float(np.sqrt(np.sum(residuals**2) / max(1.0, len(samples) - np.count_nonzero(found) / 2)))
    known, shares = (tuple(float(value) for value in array) for array in (coefficients, scale))
    return Model(known, max(spread, LEAST_NODE_SPREAD), len(samples), shares)


def errors(pairs: Mapping[str, tuple[Forecast, float]]) -> dict[str, float]:
    """Return MAPE, the share within 15 %, and the share of measured times inside their intervals."""
    apart = [abs(forecast.ms / measured - 1) for forecast, measured in pairs.values()]
    inside = [forecast.low <= measured <= forecast.high for forecast, measured in pairs.values()]
    return {
        "mape": float(np.mean(apart)),
        "within_15": float(np.mean([one <= 0.15 for one in apart])),
        "coverage": float(np.mean(inside)),
    }
