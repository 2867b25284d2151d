"""Gradient boosting as a study: edges, then one question per level of every tree, then a fitted estimator.

    begin(HistGradientBoosting*(), columns) -> [2 to 4 rounds for the edges] -> base -> depth x trees -> the estimator

Trees grow level by level to `max_depth`; from the same edges scikit-learn grows the same with `max_leaf_nodes=None`.
Gradients are whole multiples of a unit that all devices share, so devices and one pooled table sum to the same bits.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgeml.artifacts import Task
from edgeml.errors import DataError, UnsupportedModel, UserError
from edgeml.tasks import binning
from edgeml.tasks.boosting.estimator import Found, fill
from edgeml.tasks.boosting.grow import Histograms, Rule, Splits, Trees, best_splits, read
from edgeml.tasks.boosting.program import (
    BASE,
    EDGES,
    GROWN,
    LEAVES,
    LOSS,
    SCALE,
    SLOTS,
    SPLITS,
    TREES,
    Level,
    Loss,
    level_task,
)
from edgeml.tasks.program import ROWS, Columns, Program
from edgeml.tasks.study import Answer, Inquiry, Question, Sums

CLASSIFIER, REGRESSOR = "HistGradientBoostingClassifier", "HistGradientBoostingRegressor"
KINDS = (CLASSIFIER, REGRESSOR)
DEFAULT_DEPTH, MAX_DEPTH = 5, 10  # 2^5 leaves are scikit-learn's 31, give or take one
HONOURED = {
    "learning_rate",
    "max_iter",
    "max_depth",
    "max_leaf_nodes",
    "min_samples_leaf",
    "l2_regularization",
    "max_bins",
}
IGNORED = {"random_state", "verbose", "scoring", "validation_fraction", "n_iter_no_change", "tol", "early_stopping"}
MIN_TURNS, MAX_TURNS = 2, 4  # rounds for the edges
MANTISSA = 52  # bits in which a float64 sum of whole numbers is exact
MAX_UNIT = 40  # 2^-40 of a gradient is below what float32 sums elsewhere resolve
_EPS = float(np.finfo(np.float64).eps)
Next = Question | Answer


def begin(estimator: Any, columns: Columns, *, edges: Sequence[np.ndarray] | None = None) -> Inquiry:
    """Return the study that fits `estimator`, an unfitted HistGradientBoostingClassifier or -Regressor.

    `edges` are the agreed bin edges of each feature, sorted; without them two to four rounds find edges with equal
    counts between them. Numbers are binned as float32, NaN has a bin of its own. Raises UserError when an option is not
    federated or edges do not suit, UnsupportedModel for other estimators.
    """
    return Inquiry("statistics", question(estimator, columns, edges=edges))


def question(estimator: Any, columns: Columns, *, edges: Sequence[np.ndarray] | None = None) -> Question:
    """Return the first question of that study."""
    options = checked(estimator, columns)
    if edges is not None:
        return _base(options, _agreed(edges, options))
    return _edges(options, binning.universal_edges(columns.features), 1)


@dataclass(frozen=True)
class _Options:
    """The checked wishes."""

    estimator: Any
    columns: Columns
    loss: Loss
    depth: int

    @property
    def trees(self) -> int:
        return int(self.estimator.max_iter)

    @property
    def outputs(self) -> int:
        classes = len(self.columns.classes)
        return classes if self.loss == "log_loss" and classes > 2 else 1


@dataclass(frozen=True)
class _Forest:
    """Everything that is known between two trees."""

    options: _Options
    edges: np.ndarray  # padded
    rule: Rule
    base: np.ndarray  # (outputs,)
    scale: float  # units per 1.0 of a gradient
    trees: Trees
    curve: tuple[float, ...] = ()  # mean loss before each tree


@dataclass(frozen=True)
class _Tree:
    """The tree under way: its levels and the histograms of the last one's nodes."""

    levels: tuple[Splits, ...] = ()
    above: Histograms | None = None


def checked(estimator: Any, columns: Columns) -> _Options:
    """Return what a study needs of `estimator`; raise UserError or UnsupportedModel for what is not federated."""
    name = type(estimator).__name__
    if name not in KINDS:
        raise UnsupportedModel(f"{name} is no histogram boosting: pass {CLASSIFIER} or {REGRESSOR}")
    default = type(estimator)().get_params(deep=False)
    for option, value in estimator.get_params(deep=False).items():
        if option not in HONOURED | IGNORED and repr(value) != repr(default[option]):
            raise UserError(f"{name}({option}={value!r}) is not federated: leave it at {default[option]!r}")
    if estimator.max_leaf_nodes not in (None, default["max_leaf_nodes"]):
        raise UserError(f"max_leaf_nodes={estimator.max_leaf_nodes}: trees grow by levels; pass None and a max_depth")
    depth = DEFAULT_DEPTH if estimator.max_depth is None else int(estimator.max_depth)
    if not 1 <= depth <= MAX_DEPTH or estimator.max_iter < 1:
        raise UserError(f"max_depth {depth}, max_iter {estimator.max_iter}: give 1 to {MAX_DEPTH}, and at least 1")
    if name == CLASSIFIER and len(columns.classes) < 2:
        raise UserError(f"{name} tells classes apart: name at least two, columns have {len(columns.classes)}")
    return _Options(copy.deepcopy(estimator), columns, "log_loss" if name == CLASSIFIER else "squared_error", depth)


def _agreed(edges: Sequence[np.ndarray], options: _Options) -> list[np.ndarray]:
    found = [binning.float32_down(np.asarray(one, np.float64)) for one in edges]
    most = options.estimator.max_bins - 1
    if len(found) != options.columns.features or not all(np.isfinite(one).all() for one in found):
        raise UserError(f"edges of {len(found)} features, and there are {options.columns.features}, all finite")
    if (longest := max(len(one) for one in found)) > most:
        raise UserError(f"{longest} edges of one feature, and max_bins={most + 1} allows {most}")
    return found


def _edges(options: _Options, edges: np.ndarray, turn: int) -> Question:
    """Ask where numbers are, between `edges` at first and closer ones then, until some have equal counts between."""

    def then(sums: Sums) -> Next:
        _some_rows(sums)
        counts, bins = sums["counts"], options.estimator.max_bins
        if turn < MAX_TURNS and (turn < MIN_TURNS or binning.too_wide(edges, counts, bins=bins)):
            return _edges(options, binning.refined(edges, counts), turn + 1)
        return _base(options, binning.equal_counts(edges, counts, bins=bins))

    return Question(_count_task(options, edges), then)


def _count_task(options: _Options, edges: np.ndarray) -> Task:
    program = Program(options.columns, target=_target(options), missing=True)
    name = program.parameter(EDGES, edges)
    bins = binning.emit_bins(program.e, program.x, name, shape=edges.shape)
    features, size = edges.shape[0], edges.shape[1] + 2
    program.output("counts", binning.emit_counts(program.e, bins, features=features, size=size), (features, size))
    return program.task("statistics", f"boosting.edges.{options.loss}")


def _target(options: _Options) -> Any:
    return "values" if options.loss == "squared_error" else "classes"


def _base(options: _Options, edges: list[np.ndarray]) -> Question:
    """Ask for the sums of the target that the first answer and the unit of gradients are made of."""
    program = Program(options.columns, target=_target(options), missing=True)
    e = program.e
    if options.loss == "squared_error":
        program.output("target.sum", e.op("ReduceSum", program.y, keepdims=0), ())
        program.output("target.square", e.op("ReduceSumSquare", program.y, keepdims=0), ())
    else:
        classes = len(options.columns.classes)
        program.output("classes", program.total(program.one_hot(program.y, classes)), (classes,))

    def then(sums: Sums) -> Next:
        rows = _some_rows(sums)
        if options.loss == "squared_error":
            base, bound = _mean(rows, float(sums["target.sum"]), float(sums["target.square"]))
        else:
            base, bound = _log_odds(sums["classes"] / rows), rows
        scale = 2.0 ** min(math.floor(MANTISSA - math.log2(max(bound, _EPS))), MAX_UNIT)
        return _next_level(_forest(options, edges, (base, scale)), _Tree())

    return Question(program.task("statistics", f"boosting.base.{options.loss}"), then)


def _some_rows(sums: Sums) -> float:
    rows = float(sums[ROWS])
    if rows < 1:
        raise DataError("no device has a row with a target of this study: label rows, or name their classes")
    return rows


def _mean(rows: float, total: float, squares: float) -> tuple[np.ndarray, float]:
    """Return the mean target, rounded far below its spread, and a bound on any sum of residuals.

    No sum of residuals exceeds sqrt(rows x sum of squares) (Cauchy-Schwarz), and boosting only lowers the latter.
    """
    mean = total / rows
    scatter = max(squares - rows * mean * mean, squares * _EPS, _EPS)
    unit = 2.0 ** (math.floor(math.log2(math.sqrt(scatter / rows))) - 20)
    return np.array([round(mean / unit) * unit]), 2 * math.sqrt(rows * scatter)


def _log_odds(share: np.ndarray) -> np.ndarray:
    """Return what scikit-learn starts from: the log odds of the second class, or centred logarithms of many."""
    clipped = np.clip(share, _EPS, 1 - _EPS)
    if len(share) == 2:
        return np.array([math.log(clipped[1] / (1 - clipped[1]))])
    logs = np.log(clipped)
    return np.asarray(logs - logs.mean())


def _forest(options: _Options, edges: list[np.ndarray], start: tuple[np.ndarray, float]) -> _Forest:
    estimator = options.estimator
    rule = Rule(
        learning_rate=float(estimator.learning_rate),
        l2=float(estimator.l2_regularization),
        min_rows=int(estimator.min_samples_leaf),
        bins=np.array([len(one) + 1 for one in edges]),
        missing=np.zeros(len(edges), bool),  # known after the first root
    )
    base, scale = start
    trees = Trees.none(outputs=options.outputs, depth=options.depth)
    return _Forest(options, binning.padded(edges), rule, base, scale, trees)


def _next_level(forest: _Forest, tree: _Tree) -> Question:
    options, level = forest.options, len(tree.levels)
    room = 1 << max(len(forest.trees) - 1, 0).bit_length()
    slots = tree.levels[-1].slots if tree.levels else np.zeros((1, 1), np.int32)
    nodes = 1 << int(slots.max()).bit_length()  # few sizes, so that devices fetch few graphs
    shape = Level(options.columns, forest.edges.shape, options.loss, options.depth, level, room, nodes)
    trees = forest.trees.padded(room)
    parameters = {
        EDGES: forest.edges,
        BASE: forest.base[np.newaxis],
        SCALE: np.array([forest.scale]),
        TREES: np.array([len(forest.trees)], np.int64),
        SPLITS: trees.split,
        LEAVES: trees.leaf,
    }
    if level:
        parameters[GROWN] = np.concatenate([splits.code for splits in tree.levels], axis=1)
        parameters[SLOTS] = slots
    return Question(replace(level_task(shape), parameters=parameters), lambda sums: _grow(forest, tree, sums))


def _grow(forest: _Forest, tree: _Tree, sums: Sums) -> Next:
    above = (tree.above, tree.levels[-1].slots) if tree.above is not None else None
    found = read(sums, forest.scale, above)
    if not tree.levels:
        rows = _some_rows(sums)
        missing = found.count[0, 0, :, -1] > 0
        forest = replace(
            forest,
            rule=replace(forest.rule, missing=missing),
            curve=(*forest.curve, float(sums[LOSS]) / rows),
        )
    splits = best_splits(found, forest.rule)
    if not splits.any and not tree.levels:
        return _end(forest, f"no split gained anything after {len(forest.trees)} of {forest.options.trees} trees")
    tree = _Tree((*tree.levels, splits), found)
    if splits.any and len(tree.levels) < forest.options.depth:
        return _next_level(forest, tree)
    forest = replace(forest, trees=forest.trees.add(list(tree.levels), forest.rule))
    return _next_level(forest, _Tree()) if len(forest.trees) < forest.options.trees else _end(forest)


def _end(forest: _Forest, note: str = "") -> Answer:
    found = Found(
        columns=forest.options.columns, edges=forest.edges, base=forest.base, trees=forest.trees, curve=forest.curve
    )
    return Answer(fill(forest.options.estimator, found), (note,) if note else ())
