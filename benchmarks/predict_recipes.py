"""Does the emulated class model rank the recipes of a net as counting that whole net does, and what does SDOT decide?

    PYTHONPATH=. python benchmarks/predict_recipes.py

Truth is the whole net, in each recipe, run under emulation and its blocks costed (benchmarks/emulation/nets.json, made
by `python -m benchmarks.emulation.count`). The prediction is the sum over classes of operators that were fitted to
other graphs; of the reference nets that set it right, those of the same family are left out. Both are cycles of LLVM's
model of a core: this judges the class model, not the core's; no board was timed. FLOPs times one factor stands beside.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from scipy.stats import kendalltau, spearmanr

from benchmarks.emulation import nets
from edgeml.bench.predict.emulated import CYCLES_PER_MS, kernels_of, nodes_on_arm
from edgeml.bench.predict.fit import Kernels

RESULTS, TRUTH = Path(__file__).parent / "results", Path(__file__).parent / "emulation/nets.json"
CORES = ("cortex-a53", "cortex-a72", "cortex-a76")
ALIKE = 0.03  # two recipes whose counted cycles are closer than that are in no order


@dataclass(frozen=True)
class Ranking:
    """The recipes of one net on one core: cycles in millions, counted and predicted."""

    core: str
    net: str
    counted: Mapping[str, float]
    predicted: Mapping[str, float]
    macs: Mapping[str, float]

    def tau(self, guess: Mapping[str, float]) -> float:
        """Return Kendall's tau of `guess`, of the pairs that are further apart than ALIKE."""
        found = [
            1.0 if (self.counted[a] < self.counted[b]) == (guess[a] < guess[b]) else -1.0
            for a, b in combinations(self.counted, 2)
            if abs(self.counted[a] / self.counted[b] - 1) > ALIKE
        ]
        return statistics.mean(found) if found else 1.0

    def best(self, guess: Mapping[str, float]) -> bool:
        """Return whether the recipe that `guess` puts first is the best, or as good as that."""
        first = min(guess, key=lambda recipe: guess[recipe])
        return self.counted[first] <= min(self.counted.values()) * (1 + ALIKE)


def rankings() -> list[Ranking]:
    """Return every net on every core, from the stored counts."""
    truth = json.loads(TRUTH.read_text(encoding="utf-8"))
    made = []
    for net in nets.NETS:
        works = {recipe: nodes_on_arm(model) for recipe, model in nets.variants(net).items() if recipe != "fp16"}
        for core in CORES:
            model = without_family(kernels_of(core), net)
            counted = {recipe: truth[core][f"{net} {recipe}"]["cycles"] / 1e6 for recipe in works}
            predicted = {recipe: model.forecast(nodes).ms * CYCLES_PER_MS / 1e6 for recipe, nodes in works.items()}
            macs = {recipe: sum(work.macs for work in nodes) / 1e6 for recipe, nodes in works.items()}
            made.append(Ranking(core, net, counted, predicted, macs))
    return made


def without_family(model: Kernels, net: str) -> Kernels:
    """Return `model` without the reference nets of the family of `net`."""
    family = net[:6] if net in nets.SAME_FAMILY else " none"
    kept = tuple(one for one in model.calibration.references if not one.name.startswith(family))
    return Kernels(replace(model.calibration, references=kept))


def summary(found: Sequence[Ranking]) -> dict[str, Any]:
    """Return how well the rankings and the cycles agree, by core and over all."""
    return {core: _agreement([one for one in found if core in (one.core, "all")]) for core in (*CORES, "all")}


def _agreement(found: Sequence[Ranking]) -> dict[str, float]:
    errors = [one.predicted[recipe] / one.counted[recipe] - 1 for one in found for recipe in one.counted]
    several = [one for one in found if len(one.counted) > 2]
    return {
        "rankings": len(found),
        "kendall_tau": statistics.mean(one.tau(one.predicted) for one in found),
        "kendall_tau_all_pairs": statistics.mean(float(kendalltau(*_both(one)).statistic) for one in several),
        "spearman": statistics.mean(float(spearmanr(*_both(one)).statistic) for one in several),
        "first_right": statistics.mean(one.best(one.predicted) for one in found),
        "first_right_fp32": statistics.mean(one.best({"fp32": 0.0}) for one in found),
        "mape": statistics.mean(abs(error) for error in errors),
        "median_error": statistics.median(errors),
        "within_15": statistics.mean(abs(error) <= 0.15 for error in errors),
    }


def _both(one: Ranking) -> tuple[list[float], list[float]]:
    return [one.counted[recipe] for recipe in one.counted], [one.predicted[recipe] for recipe in one.counted]


def speedups(found: Iterable[Ranking]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return by net and core how much faster than fp32 the static int8 recipes are, and which of the two wins."""
    made: dict[str, dict[str, dict[str, Any]]] = {}
    for one in found:
        if "int8-static-u8s8" in one.counted:
            kinds = {"counted": one.counted, "predicted": one.predicted}
            made.setdefault(one.net, {})[one.core] = {
                f"{name} {kind[12:]}": cycles["fp32"] / cycles[kind]
                for name, cycles in kinds.items()
                for kind in ("int8-static-u8s8", "int8-static-s8s8")
            }
    return made


def tables(found: Sequence[Ranking], result: Mapping[str, Any]) -> list[str]:
    """Return agreement and speed-ups as Markdown."""
    lines = [
        "| core | nets | Kendall's tau | Spearman | best found | fp32 is best | error of cycles | within 15 % |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for core, one in result["agreement"].items():
        ranks = f"{one['kendall_tau']:.2f} | {one['spearman']:.2f} | {one['first_right']:.0%}"
        rest = f"{one['first_right_fp32']:.0%} | {one['mape']:.1%} | {one['within_15']:.0%}"
        lines.append(f"| {core} | {one['rankings']} | {ranks} | {rest} |")
    lines += [
        "",
        "Times as fast as fp32 in counted cycles (predicted in brackets), int8-static with u8s8 and s8s8 activations:",
        "",
        "| net | " + " | ".join(f"{core} u8s8 | s8s8" for core in CORES) + " |",
        "|---|" + "---:|" * 6,
    ]
    for net, cores in result["speedups"].items():
        cells = [
            f"{cores[core][f'counted {kind}']:.2f} ({cores[core][f'predicted {kind}']:.2f})"
            for core in CORES
            for kind in ("u8s8", "s8s8")
        ]
        lines.append(f"| {net} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    found = rankings()
    result: dict[str, Any] = {"agreement": summary(found), "speedups": speedups(found)}
    lines = tables(found, result)
    RESULTS.mkdir(exist_ok=True)
    whole = json.dumps({**result, "rankings": [asdict(one) for one in found]}, indent=1)
    (RESULTS / "predict_recipes.json").write_text(whole + "\n", encoding="utf-8")
    (RESULTS / "predict_recipes.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
