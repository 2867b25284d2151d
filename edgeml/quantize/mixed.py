"""Mixed precision: int8 but for the operators that do the damage, as few as the accuracy bound allows.

As NNCF's quantize_with_accuracy_control: rank the operators by the damage each does alone, return the worst to float
until the drop on the calibration rows is within `max_drop` (bisection over the ranking), then try each float one in
8 bits again. Where equalizing the convolutions first does better, the search starts from there. Ranking by
signal-to-noise follows Lin et al. 2016, "Fixed point quantization of deep convolutional networks".
"""

from __future__ import annotations

import time
from collections.abc import Set
from dataclasses import dataclass, field

from onnx import ModelProto

from edgeml.artifacts import OnnxModel, Rows, Skipped, Variant
from edgeml.errors import UnsupportedModel
from edgeml.quantize.calibration import Range
from edgeml.quantize.equalize import evened
from edgeml.quantize.judge import Judge
from edgeml.quantize.prepare import prepared, require
from edgeml.quantize.qdq import Form, candidates, plan, write
from edgeml.quantize.recipe import Options, Stopped, enough
from edgeml.quantize.static import Static, measured, planned, written

NAME = "mixed"
FORMS = {"mixed-u8s8": Form("uint8"), "mixed-s8s8": Form("int8")}
SAFE = 0.5  # of the bound: what the gates' confidence interval may leave of it on other rows


def mixed(model: OnnxModel, rows: Rows, options: Options) -> list[Variant | Skipped]:
    """Return the variants with most operators in int8 that hold `options.max_drop` on the calibration rows.

    A second pair, "-safe", holds half of it. Skipped where plain int8 does so already, and where not even one operator
    may be int8. Ctrl-C and the end of `options.budget_s` end the search with the best so far.
    """
    require(model)
    enough(rows, NAME)
    search = _Search(model, rows, options)
    stopped = False
    try:
        search.run()
    except KeyboardInterrupt:
        stopped = True
    kept = search.variants()
    if stopped:
        raise Stopped(kept)
    return kept


@dataclass
class _State:
    """What the search knows: worsens by the set of operators left in float."""

    drops: dict[frozenset[str], float] = field(default_factory=dict)
    ranking: list[str] = field(default_factory=list)  # worst first
    over: bool = False


class _Search:
    def __init__(self, model: OnnxModel, rows: Rows, options: Options) -> None:
        self._model, self._options = model, options
        self._proto: ModelProto = prepared(model)
        self._names = candidates(self._proto)
        made = planned(self._proto)
        self._ranges: dict[str, Range] = dict(measured(self._proto, rows, (made, "minmax", options.threads)))
        self._rows = rows
        self._judge = Judge(model, rows, options)
        limit = self._judge.limit
        self._bounds = {"": limit, "-safe": limit - SAFE * abs(limit)}
        self._end = time.monotonic() + options.budget_s
        self._equalized = False
        self.state = _State()

    def run(self) -> None:
        """Rank, bisect, refine, for the bound and for half of it; each step looks at the clock."""
        plain = self._drop(frozenset())
        if plain > self._bounds["-safe"]:
            plain = self._equalize(plain)
        for bound in self._bounds.values():
            if plain > bound and not self._late():
                if not self.state.ranking:
                    self._rank()
                self._bisect(bound)
                self._refine(bound)

    def _equalize(self, plain: float) -> float:
        """Search on the equalized graph instead where int8 does better there; return its drop in plain int8."""
        other = evened(self._proto, self._rows)
        if other is None or self._late():
            return plain
        made = planned(other)
        found = measured(other, self._rows, (made, "minmax", self._options.threads))
        drop = self._judge.drop(write(other, made, found, form=Form()).SerializeToString())
        if drop < plain:
            told = f"{self._judge.unit} worsens by {drop:.4g} instead of {plain:.4g}"
            self._options.progress(f"{NAME}: equalized, {told}")
            self._proto, self._ranges, self._equalized = other, dict(found), True
            self.state = _State({frozenset(): drop})
        return min(drop, plain)

    def variants(self) -> list[Variant | Skipped]:
        """Return what was found: a variant per point and activation type, or why there is none."""
        if not self.state.drops:
            return [Skipped(NAME, "stopped before the first candidate was judged")]
        plain = self.state.drops[frozenset()]
        kept: dict[frozenset[str], str] = {}
        for suffix, bound in self._bounds.items():
            best = self._best(bound) if plain > bound or self._equalized else None
            if best is not None:
                kept.setdefault(best, suffix)
        made = [
            self._variant(f"{name}{suffix}", form, floats)
            for floats, suffix in kept.items()
            for name, form in FORMS.items()
        ]
        return made or [Skipped(NAME, self._why_none(plain))]

    def _why_none(self, plain: float) -> str:
        limit, total = self._judge.limit, len(self._names)
        if plain <= limit:
            return (
                f"plain int8 holds the bound with all {total} operators: {self._judge.unit} worsens by {plain:.4g}, "
                f"{limit:.4g} is allowed"
            )
        nearest = min(self.state.drops.values())
        why = "before the budget ended" if self.state.over else "even with one operator in int8"
        told = f"{self._judge.unit} worsens by {nearest:.4g} at best, {limit:.4g} is allowed"
        return f"no mix of int8 and float holds the bound {why}: {told}"

    def _variant(self, name: str, form: Form, floats: Set[str]) -> Variant | Skipped:
        made = planned(self._proto, floats)
        try:
            return written(self._proto, (made, self._ranges), how=Static(form), model=self._model, name=name)
        except UnsupportedModel as error:
            return Skipped(name, str(error))

    def _drop(self, floats: frozenset[str]) -> float:
        if floats not in self.state.drops:
            self.state.drops[floats] = self._judge.drop(self._written(floats))
            self._options.progress(
                f"{NAME}: {len(self._names) - len(floats)} of {len(self._names)} operators in int8, "
                f"{self._judge.unit} worsens by {self.state.drops[floats]:.4g}"
            )
        return self.state.drops[floats]

    def _written(self, floats: Set[str]) -> bytes:
        made = plan(self._proto, floats)
        missing = [name for name in made.tensors if name not in self._ranges]
        if missing:  # an operator in float shows tensors that were folded away before
            self._ranges |= measured(self._proto, self._rows, (made, "minmax", self._options.threads))
        data: bytes = write(self._proto, made, self._ranges, form=Form()).SerializeToString()
        return data

    def _rank(self) -> None:
        """Order the operators by the error that each, alone in int8, brings to the answers."""
        damage: dict[str, float] = {}
        for name in self._names:
            if self._late():
                break
            self._options.progress(f"{NAME}: what {name} alone costs ({len(damage) + 1} of {len(self._names)})")
            damage[name] = self._judge.distance(self._written(set(self._names) - {name}))
        unknown = [name for name in self._names if name not in damage]
        self.state.ranking = sorted(damage, key=lambda name: -damage[name]) + unknown

    def _bisect(self, bound: float) -> None:
        """Find the shortest head of the ranking whose return to float holds the bound."""
        low, high = 0, len(self.state.ranking)  # fails with `low` in float; with all in float it is fp32 itself
        while high - low > 1 and not self._late():
            middle = (low + high) // 2
            holds = self._drop(frozenset(self.state.ranking[:middle])) <= bound
            low, high = (low, middle) if holds else (middle, high)

    def _refine(self, bound: float) -> None:
        """Try each float operator in int8 again, the least harmful first."""
        best = self._best(bound)
        if best is None:
            best = frozenset(self.state.ranking)
        for name in reversed(self.state.ranking):
            if name in best and not self._late():
                fewer = best - {name}
                if len(fewer) < len(self._names) and self._drop(fewer) <= bound:
                    best = fewer

    def _best(self, bound: float) -> frozenset[str] | None:
        """Return the smallest set of float operators that holds the bound, the lower drop among equals."""
        holding = [floats for floats, drop in self.state.drops.items() if drop <= bound]
        return min(holding, key=lambda floats: (len(floats), self.state.drops[floats]), default=None)

    def _late(self) -> bool:
        self.state.over = self.state.over or time.monotonic() > self._end
        return self.state.over
