"""Rooflines by kind of kernel, fitted to timings that others published for a board, its core, or its kind of core.

    time of a network = sum over kinds of kernels of cost * work (works.COLUMNS)

The costs are not negative, at least what the board's peak allows, and minimize the relative error (non-negative least
squares); each is held to its counted value (prior.py), as a pseudo-observation of weight HOLD, so that what a table
cannot tell stays where counting put it. A fit is made for each runtime, because one runtime is not another: their
spread on one board is part of the range, for onnxruntime is one more of them.
"""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
from scipy.optimize import nnls
from scipy.stats import norm
from scipy.stats import t as student

from edgeml.bench.predict import prior
from edgeml.bench.predict.machine import Machine
from edgeml.bench.predict.works import KINDS, Work, of_plain

HOLD = 0.002  # weight of the counted costs against a published row's 1: little, but it decides what no row tells
BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
WINOGRAD = 4.0  # multiplications saved at most: F(4 x 4, 3 x 3)
LEAST_MODELS = 5  # of a table that is fitted


@dataclass(frozen=True)
class Row:
    """One published timing of a network on a board."""

    board: str
    core: str
    runtime: str
    version: str
    threads: int  # 0: not stated, all cores
    precision: str
    model: str
    ms: float


@dataclass(frozen=True)
class Fit:
    """Costs of one runtime on one board: milliseconds per unit of each column, as multiples of the counted ones."""

    runtime: str
    factors: tuple[float, ...]
    spread: float  # of the logarithm, leaving out one model after another; Student's, so that few models promise less
    models: int


@functools.cache
def read_published() -> tuple[Row, ...]:
    """Return the published timings that ship with edgeml."""
    return tuple(
        Row(
            row["board"],
            row["core"],
            row["runtime"],
            row["version"],
            int(row["threads"]),
            row["precision"],
            row["model"],
            float(row["ms"]),
        )
        for row in _table("published.csv")
    )


@functools.cache
def read_works() -> Mapping[str, Work]:
    """Return the work of the published networks, by name."""
    return {row["model"]: of_plain(row) for row in _table("published_works.csv")}


def _table(name: str) -> list[dict[str, str]]:
    text = (resources.files("edgeml.bench.predict") / name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def counted(board: Machine, precision: str) -> np.ndarray:
    """Return the milliseconds per unit of each of COLUMNS on one thread, as counted instructions put them."""
    kind, hertz = prior.kind_of(board), board.frequency_ghz * 1e9
    types = ".s8s8" if precision == "int8" else ""
    lanes = 2.0 if precision == "fp16" else 1.0

    def per_million(operator: str) -> float:
        return 1e9 / (lanes * prior.macs_per_second(board, operator + types))

    conv, memory = per_million("conv"), BYTES[precision] * 1e3 / board.bandwidth_mb_s
    kinds = {  # 0.6, 0.9, 1.2, 0.4 and three nodes are where fits begin, assumed once; HOLD ties to them only weakly
        "pointwise": conv,
        "winograd": conv * (0.9 if precision == "int8" else 0.6),
        "dense": 1.2 * conv,
        "depthwise": 0.4 * per_million("depthwise"),
        "gemv": per_million("gemv"),
        "gemm": per_million("gemm"),
    }
    node = 3 * prior.INSTRUCTIONS_PER_NODE / (hertz * prior.INSTRUCTIONS_PER_CYCLE[kind]) * 1e3
    return np.array([*(kinds[name] for name in KINDS), memory / 2, memory, memory, node])


def floor(board: Machine, precision: str, threads: int) -> np.ndarray:
    """Return the least milliseconds per unit of each of COLUMNS: what the peak of the cores in use allows."""
    hertz = board.frequency_ghz * 1e9 * threads
    macs = board.int8_macs_per_cycle if precision == "int8" else board.fp32_flops_per_cycle / 2
    least = 1e9 / (hertz * macs * (2 if precision == "fp16" else 1))
    kinds = dict.fromkeys(KINDS, least) | {"winograd": least / WINOGRAD}
    return np.array([*(kinds[name] for name in KINDS), 0.0, 0.0, 0.0, 0.0])


def fit(
    works: np.ndarray, times: np.ndarray, start: np.ndarray, *, least: np.ndarray | None = None, hold: float = HOLD
) -> np.ndarray:
    """Return the costs per column that explain `times` (n,) of `works` (n, columns) best, held to `start`.

    `start` is first scaled to the table: how fast a runtime is as a whole is taken from its rows, not from counting.
    """
    start = start * float(np.median(times / (works @ start)))
    bound = np.zeros_like(start) if least is None else np.minimum(least, start)
    rows = np.vstack([works * start / times[:, None], math.sqrt(hold) * np.eye(len(start))])
    wanted = np.concatenate([np.ones(len(times)), np.full(len(start), math.sqrt(hold))]) - rows @ (bound / start)
    found, _ = nnls(rows, wanted)
    costs: np.ndarray = bound + start * found
    return costs


def left_out(works: np.ndarray, times: np.ndarray, start: np.ndarray, *, least: np.ndarray | None = None) -> np.ndarray:
    """Return each of `times` as it is predicted by a fit to the others."""
    keep = ~np.eye(len(times), dtype=bool)
    fitted = (fit(works[others], times[others], start, least=least) for others in keep)
    return np.array([work @ costs for work, costs in zip(works, fitted, strict=True)])


def table_of(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Return works and times of published rows."""
    works = read_works()
    return np.array([works[row.model].row() for row in rows]), np.array([row.ms for row in rows])


def fits(board: Machine, rows: Sequence[Row], precision: str, *, threads: int) -> tuple[Fit, ...]:
    """Return a fit for each runtime that `rows`, timings on `board`, tell enough of; of its versions the last."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.precision == precision and (row.threads or board.cores) == threads:
            groups.setdefault(row.runtime, []).append(row)
    found = []
    for _, group in sorted(groups.items()):
        newest = max(row.version for row in group)
        kept = [row for row in group if row.version == newest]
        if len(kept) >= LEAST_MODELS:
            found.append(_fit(board, kept, precision, threads=threads))
    return tuple(found)


def _fit(board: Machine, rows: Sequence[Row], precision: str, *, threads: int) -> Fit:
    works, times = table_of(rows)
    start, least = counted(board, precision), floor(board, precision, threads)
    apart = np.log(left_out(works, times, start, least=least) / times)
    factors = fit(works, times, start, least=least) / start
    return Fit(rows[0].runtime, tuple(float(value) for value in factors), spread_of(apart), len(rows))


def spread_of(apart: np.ndarray) -> float:
    """Return the standard deviation whose 90 % range is that of Student's t for these errors of logarithms."""
    return float(np.sqrt(np.mean(apart**2)) * student.ppf(0.95, max(len(apart) - 1, 1)) / norm.ppf(0.95))
