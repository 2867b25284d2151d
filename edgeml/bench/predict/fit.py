"""A cost model of a device's kernels: non-negative least squares by class, set right by the reference nets.

    time of a node = a + b MAC + c bytes of activations + d bytes of weights + e those from memory + f window, by class
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

from edgeml.bench.calibrate import Calibration
from edgeml.bench.calibrate.work import Work, with_cold

LEAST_SAMPLES = 3
RESOLUTION_MS = 5e-4  # half a microsecond: below it relative errors are the profiler's
LEAST_SPREAD = 0.03  # of the logarithm: no five nets promise more
T95 = 2.13  # two-sided 90 % of Student's t with 4 degrees of freedom: five reference nets
UNCOVERED_SPREAD = math.log(3.0)  # of an operator nobody measured


@dataclass(frozen=True)
class Model:
    """Coefficients of one class: milliseconds, then per unit of _row; `spread` of the logarithms' residuals."""

    coefficients: tuple[float, ...]
    spread: float
    samples: int

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
            if work.macs:
                groups.setdefault((_product(work), ""), []).append((work, ms))
        self.models = {key: _fit(found) for key, found in groups.items()}
        self._bytes = _fit([pair for pair in calibration.samples if not pair[0].macs])
        self.scalars = {int8: self._scalar(int8) for int8 in (False, True)}

    def node(self, work: Work) -> tuple[float, float, bool]:
        """Return the milliseconds of a node, the spread of their logarithm, and whether its class was measured."""
        for kind in _kinds(work.kind):
            model = self.models.get((work.family, kind))
            if model is not None and (model.samples >= LEAST_SAMPLES or not kind):
                return model.ms(work), model.spread, True
        other = self.models.get((_product(work), ""), self._bytes) if work.macs else self._bytes
        return other.ms(work), UNCOVERED_SPREAD, False

    def forecast(self, nodes: Sequence[Work]) -> Forecast:
        """Return what a net of `nodes` takes for one query."""
        raw, spread, unknown = self._sum(with_cold(nodes, self.calibration.cache_bytes))
        scalar, between = self.scalars[_is_int8(nodes)]
        ms = scalar * raw
        missing = sum(unknown.values())
        sigma = math.hypot(spread, between) * (1.0 + missing / raw)
        factor = math.exp(T95 * sigma)
        largest = sorted(unknown, key=lambda family: -unknown[family])
        return Forecast(ms / factor, ms, ms * factor, 1.0 - missing / raw, tuple(largest))

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

    def _scalar(self, int8: bool) -> tuple[float, float]:
        """Return what the reference nets say the sum must be multiplied by, and how far they disagree (log)."""
        ratios = [
            math.log(one.ms / self._sum(one.nodes)[0])
            for one in self.calibration.references
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
    """Return the name of the group of everything that multiplies in this element type."""
    return f"* {work.family.split()[1]}"


def _is_int8(nodes: Sequence[Work]) -> bool:
    return any("int8" in work.family and work.macs for work in nodes)


def _row(work: Work) -> tuple[float, ...]:
    return 1.0, work.macs, work.moved, work.weights, work.cold, work.gathered


def _fit(samples: Sequence[tuple[Work, float]]) -> Model:
    """Return the non-negative model of least relative error; columns are scaled, for they differ by 10^9."""
    times = np.array([ms for _, ms in samples])
    weights = 1.0 / (times + RESOLUTION_MS)
    matrix = np.array([_row(work) for work, _ in samples]) * weights[:, None]
    scale = np.maximum(np.abs(matrix).max(axis=0), 1e-30)
    found, _ = nnls(matrix / scale, times * weights)
    coefficients = found / scale
    guessed = np.array([_row(work) for work, _ in samples]) @ coefficients
    residuals = np.log((guessed + RESOLUTION_MS) / (times + RESOLUTION_MS))
    spread = float(np.sqrt(np.sum(residuals**2) / max(1, len(samples) - np.count_nonzero(found))))
    known = tuple(float(value) for value in coefficients)
    return Model(known, spread if len(samples) >= LEAST_SAMPLES else max(spread, 0.3), len(samples))


def errors(pairs: Mapping[str, tuple[Forecast, float]]) -> dict[str, float]:
    """Return MAPE, the share within 15 %, and the share of measured times inside their intervals."""
    apart = [abs(forecast.ms / measured - 1) for forecast, measured in pairs.values()]
    inside = [forecast.low <= measured <= forecast.high for forecast, measured in pairs.values()]
    return {
        "mape": float(np.mean(apart)),
        "within_15": float(np.mean([one <= 0.15 for one in apart])),
        "coverage": float(np.mean(inside)),
    }
