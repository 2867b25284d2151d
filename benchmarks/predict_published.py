"""Hold rooflines by kind of kernel against published timings of real boards: models left out, boards left out.

    PYTHONPATH=. python benchmarks/predict_published.py

Needs nothing but the tables that ship with edgeml. Each network of a table is predicted by a fit to the others, each
board by fits to the others, each runtime by those to the others, beside FLOPs times one factor and the network nearest
in FLOPs. The timings are other runtimes' than ours: this checks the method and the size of its error. onnxruntime's
own rows are four, on the Raspberry Pi 5, and no fit sees them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.published_report import report
from edgeml.bench.predict import prior
from edgeml.bench.predict.machine import Machine, known_machines
from edgeml.bench.predict.published import (
    Row,
    counted,
    fit,
    fits,
    floor,
    left_out,
    read_published,
    read_works,
    spread_of,
    table_of,
)
from edgeml.bench.predict.transfer import ms_of, scales_of

RESULTS = Path(__file__).parent / "results"
LEAST = 10  # networks of a table whose networks are left out one by one; int8 tables of ncnn have 6 or 7
FEW = 5
Z90 = 1.645
PAIRS = (  # source, target: by one scalar
    ("raspberry-pi-3b-plus", "raspberry-pi-zero-2w"),
    ("raspberry-pi-4", "raspberry-pi-3b-plus"),
    ("raspberry-pi-4", "raspberry-pi-5"),
)
Table = tuple[str, str, str, int]  # board, runtime, precision, threads


def tables() -> dict[Table, list[Row]]:
    """Return the published rows by table, of each runtime the last version; unstated threads are all cores."""
    found: dict[Table, list[Row]] = {}
    boards = known_machines()
    for row in read_published():
        if row.board in boards:
            threads = row.threads or boards[row.board].cores
            found.setdefault((row.board, row.runtime, row.precision, threads), []).append(row)
    for key, rows in found.items():
        newest = max(row.version for row in rows)
        found[key] = [row for row in rows if row.version == newest]
    return dict(sorted(found.items()))


def judge(key: Table, rows: Sequence[Row]) -> dict[str, Any]:
    """Return how well the networks of one table are predicted from its others."""
    board = known_machines()[key[0]]
    works, times = table_of(rows)
    start, least = counted(board, key[2]), floor(board, key[2], key[3])
    guessed = left_out(works, times, start, least=least)
    macs = works[:, :6].sum(axis=1)
    flops, nearest = (one_by_one(times, macs, rule) for rule in (_factor, _nearest))
    apart = np.log(guessed / times)
    others = [spread_of(np.delete(apart, i)) for i in range(len(apart))]
    return {
        "networks": len(rows),
        **{f"roofline_{name}": value for name, value in errors(guessed / times).items()},
        "flops_mape": errors(flops / times)["mape"],
        "nearest_mape": errors(nearest / times)["mape"],
        "coverage90": float(np.mean(np.abs(apart) <= Z90 * np.array(others))),
        "ratios": {row.model: round(float(ratio), 3) for row, ratio in zip(rows, guessed / times, strict=True)},
    }


def errors(ratios: np.ndarray) -> dict[str, float]:
    apart = np.abs(ratios - 1)
    return {
        "mape": float(apart.mean()),
        "median": float(np.median(apart)),
        "largest": float(apart.max()),
        "within_20": float((apart <= 0.2).mean()),
    }


Rule = Callable[[np.ndarray, np.ndarray, float], float]


def one_by_one(times: np.ndarray, macs: np.ndarray, rule: Rule) -> np.ndarray:
    """Return every time as `rule` tells it from the others'."""
    return np.array([rule(np.delete(times, i), np.delete(macs, i), float(macs[i])) for i in range(len(times))])


def _factor(times: np.ndarray, macs: np.ndarray, wanted: float) -> float:
    return float(np.median(times / macs)) * wanted


def _nearest(times: np.ndarray, macs: np.ndarray, wanted: float) -> float:
    index = int(np.argmin(np.abs(np.log(macs / wanted))))
    return float(times[index] / macs[index]) * wanted


def by_scalar(source: Sequence[Row], target: Sequence[Row]) -> dict[str, Any]:
    """Return how well one factor, the median of the others' ratios, carries times from one board to another."""
    ours, theirs = ({row.model: row.ms for row in rows} for rows in (source, target))
    names = sorted(ours.keys() & theirs.keys())
    ratios = np.array([theirs[name] / ours[name] for name in names])
    guessed = np.array([np.median(np.delete(ratios, i)) for i in range(len(ratios))])
    return {"networks": len(names), "factor": float(np.median(ratios)), **errors(guessed / ratios)}


def boards_left_out() -> list[dict[str, Any]]:
    """Return, for every table of one runtime, how the fits of that runtime to other boards predict it."""
    found, boards = [], known_machines()
    every = tables()
    for key, rows in every.items():
        name, runtime, precision, threads = key
        if len(rows) < LEAST:
            continue
        works, times = table_of(rows)
        for donor, other in every.items():
            if donor[0] == name or donor[1:3] != (runtime, precision) or (donor[3] > 1) != (threads > 1):
                continue
            level = _level(boards[name], boards[donor[0]])
            if level is None or len(other) < LEAST:
                continue
            factors = fits(boards[donor[0]], other, precision, threads=donor[3])[0].factors
            ratios = works @ (counted(boards[name], precision) * factors) / times
            spread = float(np.sqrt(np.mean(np.log(ratios) ** 2)))
            told = {"target": name, "source": donor[0], "precision": precision, "threads": threads, "level": level}
            found.append({**told, "spread": spread, **errors(ratios)})
    return found


def _level(board: Machine, donor: Machine) -> str | None:
    if board.core == donor.core:
        return "core"
    return "kind" if prior.kind_of(board) == prior.kind_of(donor) else None


def runtimes_left_out() -> list[dict[str, Any]]:
    """Return, for every board with several runtimes, how far each is from the middle of the others."""
    found = []
    every = tables()
    for key, rows in every.items():
        name, runtime, precision, threads = key
        board = known_machines()[name]
        others = [k for k in every if (k[0], k[2], k[3]) == (name, precision, threads) and k[1] != runtime]
        others = [k for k in others if len(every[k]) >= FEW]
        if not others or (len(rows) < FEW and runtime != "onnxruntime"):
            continue
        works, times = table_of(rows)
        costs = counted(board, precision)
        guesses = [
            np.log(works @ (costs * fits(board, every[k], precision, threads=threads)[0].factors)) for k in others
        ]
        ratios = np.exp(np.mean(guesses, axis=0)) / times
        told = {"board": name, "runtime": runtime, "precision": precision, "threads": threads}
        told |= {"by": [k[1] for k in others], "networks": len(rows), "bias": float(np.exp(np.mean(np.log(ratios))))}
        spread = float(np.sqrt(np.mean(np.log(ratios) ** 2)) / math.sqrt(1 + 1 / len(others)))
        found.append({**told, "spread": spread, **errors(ratios)})
    return found


def ranges() -> dict[str, dict[str, Any]]:
    """Return how many published times lie in the product's own 90 % range when what they tell is kept from it.

    "runtime": the fits of other runtimes to the same board. "core", "kind": those to other boards alone.
    """
    inside: dict[str, list[bool]] = {}
    widths: dict[str, list[float]] = {}
    for (name, runtime, precision, threads), rows in tables().items():
        board = known_machines()[name]
        if threads not in (1, board.cores):
            continue
        for level, kept in _kept(board, runtime).items():
            scales = scales_of(level if level != "runtime" else "board", kept, precision)
            if not (scales.one or scales.all):
                continue
            for row in rows:
                work = read_works()[row.model].row()
                ms, spread = ms_of(work, board, scales, precision=precision, threads=threads)
                inside.setdefault(level, []).append(abs(math.log(ms / row.ms)) <= Z90 * spread)
                widths.setdefault(level, []).append(math.exp(Z90 * spread))
    return {
        level: {"timings": len(found), "coverage90": float(np.mean(found)), "factor": float(np.median(widths[level]))}
        for level, found in inside.items()
    }


def counted_alone() -> dict[str, Any]:
    """Return how far counted costs are from published times of one thread, when nothing is fitted to any of them."""
    ratios = []
    for (name, _, precision, threads), rows in tables().items():
        if threads == 1:
            works, times = table_of(rows)
            ratios += list(works @ counted(known_machines()[name], precision) / times)
    apart = np.abs(np.log(ratios))
    return {
        "timings": len(ratios),
        "median_ratio": float(np.median(ratios)),
        "within_2": float((apart <= math.log(2)).mean()),
        "factor90": float(np.exp(np.quantile(apart, 0.9))),
    }


def _kept(board: Machine, runtime: str) -> dict[Any, list[Row]]:
    """Return the published rows that may speak for a runtime on a board, by what is left out."""
    boards = known_machines()
    others = [row for row in read_published() if row.board != board.name and row.board in boards]
    return {
        "runtime": [row for row in read_published() if row.board == board.name and row.runtime != runtime],
        "core": [row for row in others if boards[row.board].core == board.core],
        "kind": [row for row in others if _level(board, boards[row.board]) == "kind"],
    }


def pairs_of_precisions() -> dict[str, dict[str, float]]:
    """Return how the errors of int8 and float predictions of one network go together, fitted or counted."""
    errors_of: dict[str, list[tuple[float, float]]] = {"fitted": [], "counted": []}
    every = tables()
    for key, rows in every.items():
        twin_key = (key[0], key[1], "fp32", key[3])
        twin = every.get(twin_key, [])
        if key[2] != "int8" or len(rows) < FEW or len(twin) < FEW:
            continue
        small, full = judge(key, rows)["ratios"], judge(twin_key, twin)["ratios"]
        plain = [_counted_ratios(key, rows), _counted_ratios(twin_key, twin)]
        for name in sorted(small.keys() & full.keys()):
            errors_of["fitted"].append((math.log(small[name]), math.log(full[name])))
            if key[3] == 1:
                errors_of["counted"].append((math.log(plain[0][name]), math.log(plain[1][name])))
    return {way: _together(np.array(pairs)) for way, pairs in errors_of.items()}


def _counted_ratios(key: Table, rows: Sequence[Row]) -> dict[str, float]:
    works, times = table_of(rows)
    ratios = works @ counted(known_machines()[key[0]], key[2]) / times
    return {row.model: float(ratio) for row, ratio in zip(rows, ratios, strict=True)}


def _together(pairs: np.ndarray) -> dict[str, float]:
    int8, full = pairs.T
    return {
        "pairs": len(pairs),
        "correlation": float(np.corrcoef(int8, full)[0, 1]),
        "spread_of_ratio": float(np.sqrt(np.mean((int8 - full) ** 2))),
        "spread_int8": float(np.sqrt(np.mean(int8**2))),
        "spread_fp32": float(np.sqrt(np.mean(full**2))),
    }


def holds() -> dict[str, dict[str, float]]:
    """Return the mean error of float tables at other values of HOLD: what the choice of it is worth."""
    found: dict[str, dict[str, float]] = {}
    for key, rows in tables().items():
        if len(rows) < LEAST or key[2] == "fp16":
            continue
        board = known_machines()[key[0]]
        works, times = table_of(rows)
        start = counted(board, key[2])
        for value in (0.0003, 0.001, 0.003, 0.01, 0.03):
            guessed = [
                works[i] @ fit(np.delete(works, i, 0), np.delete(times, i), start, hold=value)
                for i in range(len(times))
            ]
            found.setdefault(f"{value:g}", {})[" ".join(map(str, key))] = errors(np.array(guessed) / times)["mape"]
    return found


def everything() -> dict[str, Any]:
    every = tables()
    judged = [{"table": list(key), **judge(key, rows)} for key, rows in every.items() if len(rows) >= FEW]
    scalars = []
    for source, target in PAIRS:
        for threads in (1, 4):
            ours, theirs = (_ncnn(every, name, threads) for name in (source, target))
            if ours and theirs:
                scalars.append({"source": source, "target": target, "threads": threads, **by_scalar(ours, theirs)})
    large = [one for one in judged if one["networks"] >= LEAST]
    single = [one for one in large if one["table"][3] == 1 and one["table"][2] == "fp32"]
    inside = sum(one["coverage90"] * one["networks"] for one in judged)
    networks = sum(one["networks"] for one in judged)
    summary = {
        "rows": len(read_published()),
        "works": len(read_works()),
        "one_thread_tables": len(single),
        "one_thread_mape": float(np.mean([one["roofline_mape"] for one in single])),
        "one_thread_flops": float(np.mean([one["flops_mape"] for one in single])),
        "one_thread_nearest": float(np.mean([one["nearest_mape"] for one in single])),
        "networks": networks,
        "coverage90": inside / networks,
    }
    return {
        "summary": summary,
        "networks_left_out": judged,
        "by_scalar": scalars,
        "boards_left_out": boards_left_out(),
        "runtimes_left_out": runtimes_left_out(),
        "ranges": ranges(),
        "counted": counted_alone(),
        "precisions": pairs_of_precisions(),
        "holds": holds(),
    }


def _ncnn(every: Mapping[Table, list[Row]], name: str, threads: int) -> list[Row]:
    """Return ncnn's rows of the networks as files of floats, whatever the core computes them in."""
    return every.get((name, "ncnn", "fp32", threads)) or every.get((name, "ncnn", "fp16", threads)) or []


def main() -> None:
    found = everything()
    lines = report(found)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "predict_published.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "predict_published.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
