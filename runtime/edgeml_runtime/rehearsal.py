"""A task on made-up rows before it sees a true one: does its answer hang on all rows, or on a few?

    sums       each output is a sum over rows, or a product of two such sums, or a few marks: ones among zeros that
               do not change with the order of rows (that a device took part, in which bin its extremes are)
    training   changing one row of many changes each part of the update, for most rows

Copies of rows (Identity, Slice, Gather, one-hot times X, sorting, a loop over places) fail the one, and updates made of
chosen rows the other. It is a trip-wire and no proof: a graph can tell made-up rows from true ones, and pick rows by
what is in them. See docs/agent.md, Trust.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from edgeml_runtime import task
from edgeml_runtime.errors import DeviceError, TaskRefused, Unfit
from edgeml_runtime.session import Session
from edgeml_runtime.task import Answer, Rows
from edgeml_runtime.wire.manifest import TensorSpec
from edgeml_runtime.wire.tasks import DELTA, TARGET, TaskKind

HEAP, LEAST, MOST = 13, 24, 64  # rows: of one heap of three; of training, a dozen runs
FEW = 2  # rows, on which any task must run: a slice of ten has no ten then
TRIALS = 8  # of training on one sort: a cell of four values stands still in all of them once in 65,536 times
MAX_MARKS = 1024  # ones in all outputs that are no sums
SUM_RTOL = 1e-4  # of the largest value of an output: float32 sums in another order
PROBES, ENOUGH = 8, 2  # rows changed at first, and how many of them may change nothing before all are looked at
SILENT_SHARE = 0.7  # of all rows: more of them without any effect on a part of the update is no training
SILENT = 1e-7  # of the largest value of that part
ROUNDED = 1e-6  # of the same: less is only how float32 rounds one sum, added in another order
RATE = "lr"
WORDS = np.array(["", "a", "b", "no"], dtype=object)
Layout = Mapping[str, tuple[tuple[int, ...], bool]]  # input -> shape of one row, whether it is text


@dataclass(frozen=True)
class Play:
    """What is rehearsed: the loaded task and all that it is given but rows."""

    session: Session
    kind: TaskKind
    scalars: Mapping[str, float]
    parameters: Mapping[str, np.ndarray]
    layout: Layout
    examples: Mapping[str, np.ndarray] = field(default_factory=dict)  # rows of the release, by input; of no device


@dataclass(frozen=True)
class Sort:
    """One way to make rows up: the numbers of a tensor, or columns as the examples have them; the rate to train at."""

    numbers: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
    rate: float = 1.0  # times the offer's: training must not diverge on rows that are unlike the true ones
    like_examples: bool = False
    training_only: bool = False


SORTS = (  # an honest task runs well on one of them: as in the release, standardized, shares, small whole numbers
    Sort(lambda rng, shape: rng.normal(size=shape), like_examples=True),
    Sort(lambda rng, shape: rng.normal(size=shape), 1e-3, like_examples=True, training_only=True),
    Sort(lambda rng, shape: rng.normal(size=shape)),
    Sort(lambda rng, shape: rng.uniform(size=shape), 1e-2),
    Sort(lambda rng, shape: rng.integers(0, 4, shape).astype(np.float64), 1e-2),
    Sort(lambda rng, shape: rng.normal(size=shape), 1e-5, training_only=True),
)


@dataclass(frozen=True)
class Maker:
    """Makes rows of one sort up for one task."""

    play: Play
    sort: Sort
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(secrets.randbits(128)))

    def rows(self, count: int) -> Rows:
        """Return `count` rows of the device's layout, with targets when the task takes them."""
        inputs = {name: self._tensor(name, count) for name in self.play.layout}
        wanted = _target(self.play.session.inputs)
        if wanted is None:
            return inputs, None
        if wanted.dtype.startswith("int"):
            return inputs, self.rng.integers(0, 2, count)
        return inputs, self.sort.numbers(self.rng, (count,)).astype(np.float32)

    def _tensor(self, name: str, count: int) -> np.ndarray:
        shape, text = self.play.layout[name]
        examples = self.play.examples.get(name, np.zeros(0))
        if self.sort.like_examples and examples.shape[1:] == shape and len(examples):
            flat = examples.reshape(len(examples), -1)  # each cell from its own column, so that no row is an example
            places = self.rng.integers(0, len(flat), (count, flat.shape[1]))
            return np.take_along_axis(flat, places, axis=0).reshape(count, *shape)
        if text:
            return self.rng.choice(WORDS, (count, *shape))
        return self.sort.numbers(self.rng, (count, *shape)).astype(np.float32)


def rehearse(play: Play, sorts: Sequence[Sort] = SORTS) -> frozenset[str]:
    """Return which outputs are marks, no sums, to be checked again in the true answer.

    A sum is one over rows of every sort; training may run well on one sort only, on which it is judged. Raises
    TaskRefused when the answer would point at single rows, or the task runs on no sort.
    """
    objections: list[TaskRefused] = []
    marks, ran = set[str](), False
    for sort in sorts:
        if sort.like_examples and not play.examples.keys() >= play.layout.keys():
            continue
        if sort.training_only and play.kind != "training":
            continue
        scalars = {name: value * (sort.rate if name == RATE else 1.0) for name, value in play.scalars.items()}
        try:
            if play.kind == "training":
                return _train(replace(play, scalars=scalars), sort)
            marks |= _add(play, sort, trials=1 if ran else 2)
            ran = True
        except Unfit as error:
            if play.kind != "training":
                raise
            objections.append(error)
        except DeviceError as error:
            objections.append(TaskRefused(f"the task does not run on made-up rows: {error}"))
    if not ran:
        raise objections[0]
    return frozenset(marks)


def check_marks(update: Mapping[str, np.ndarray], marks: Collection[str]) -> None:
    """Raise TaskRefused when those outputs are anything but a few ones among zeros."""
    ones = 0
    for name in marks:
        ones += int(np.count_nonzero(update[name]))
        if not np.isin(update[name], (0, 1)).all():
            raise Unfit(f"output {name!r} is no sum over rows and no product of two, so it could carry rows away")
    if ones > MAX_MARKS:
        raise Unfit(f"{ones:,} marks in outputs that are no sums over rows; {MAX_MARKS:,} are allowed")


def _add(play: Play, sort: Sort, *, trials: int) -> frozenset[str]:
    """Return the outputs that are neither sums over rows nor products of two; raise Unfit when they are no marks.

    q(A + B + C) - q(A + B) - q(A + C) - q(B + C) + q(A) + q(B) + q(C) is nought for both.
    """
    maker, marks = Maker(play, sort), set[str]()
    for _ in range(trials):
        a, b, c = (maker.rows(HEAP) for _ in range(3))
        every = _joined(_joined(a, b), c)
        plus, minus = (every, a, b, c), (_joined(a, b), _joined(a, c), _joined(b, c))
        signed = [(1, _run(play, rows).update) for rows in plus] + [(-1, _run(play, rows).update) for rows in minus]
        whole = signed[0][1]
        for name in whole:
            terms = [sign * update[name].astype(np.float64) for sign, update in signed]
            scale = max(float(np.max(np.abs(term), initial=0.0)) for term in terms)
            if float(np.max(np.abs(sum(terms)), initial=0.0)) > SUM_RTOL * scale:
                marks.add(name)
        for _, update in signed:
            check_marks(update, marks)
        if marks:
            shuffled = _run(play, _shuffled(every, maker.rng)).update
            if moved := [name for name in sorted(marks) if not np.array_equal(shuffled[name], whole[name])]:
                raise Unfit(f"output {moved[0]!r} changes with the order of rows, so it could carry rows away")
    return frozenset(marks)


def _train(play: Play, sort: Sort) -> frozenset[str]:
    """Raise Unfit when a part of the update, or a loss, hangs on a few rows only; no output is a mark."""
    maker, count = Maker(play, sort), _enough(play)
    _run(play, maker.rows(FEW))
    rows, *other = (maker.rows(count) for _ in range(1 + TRIALS))
    start, others = _parts(play, rows), other[0]
    ends = [_parts(play, some) for some in other]
    moving = [name for name in start if any(_moved(start[name], end[name], ROUNDED) for end in ends)]
    order = maker.rng.permutation(count)
    silent = dict.fromkeys(moving, 0)
    for tried, index in enumerate(order, 1):
        changed = _parts(play, _exchanged(rows, others, index))
        for name in moving:
            silent[name] += not _moved(start[name], changed[name], SILENT)
        if tried == PROBES and max(silent.values(), default=0) < ENOUGH:
            return frozenset()
    worst = max(silent, key=lambda name: silent[name], default="")
    if not worst or silent[worst] <= SILENT_SHARE * count:
        return frozenset()
    raise Unfit(
        f"output {worst!r} follows single rows: of {count} made-up rows, changed one at a time, {silent[worst]} had no "
        f"effect on it, so it could carry the others away"
    )


def _enough(play: Play) -> int:
    """Return so many rows that those which fit into the largest part of an update are a quarter of them."""
    width = max(1, sum(math.prod(shape) for shape, text in play.layout.values() if not text))
    largest = max((math.prod(s.shape) for s in play.session.outputs if s.name.startswith(DELTA)), default=0)
    return max(LEAST, min(MOST, 4 * (largest // width)))


def _parts(play: Play, rows: Rows) -> dict[str, np.ndarray]:
    """Return all that would leave: the update, and the losses."""
    answer = _run(play, rows)
    return answer.update | {name: np.asarray(loss) for name, loss in answer.metrics.items()}


def _moved(before: np.ndarray, after: np.ndarray, least: float) -> bool:
    scale = float(np.max(np.abs(before), initial=0.0))
    return bool(np.max(np.abs(before - after), initial=0.0) > least * scale)


def _run(play: Play, rows: Rows) -> Answer:
    return task.run(play.session, rows, kind=play.kind, scalars=play.scalars, parameters=play.parameters)


def _target(inputs: Sequence[TensorSpec]) -> TensorSpec | None:
    return next((spec for spec in inputs if spec.name == TARGET), None)


def _joined(first: Rows, second: Rows) -> Rows:
    inputs = {name: np.concatenate([array, second[0][name]]) for name, array in first[0].items()}
    if first[1] is None or second[1] is None:
        return inputs, None
    return inputs, np.concatenate([first[1], second[1]])


def _shuffled(rows: Rows, rng: np.random.Generator) -> Rows:
    order = rng.permutation(task.count(rows))
    return {name: array[order] for name, array in rows[0].items()}, None if rows[1] is None else rows[1][order]


def _exchanged(rows: Rows, others: Rows, index: int) -> Rows:
    """Return `rows` with the one at `index` taken from `others`."""
    at = np.arange(task.count(rows)) == index
    inputs = {
        name: np.where(at.reshape(-1, *[1] * (array.ndim - 1)), others[0][name], array)
        for name, array in rows[0].items()
    }
    if rows[1] is None or others[1] is None:
        return inputs, None
    return inputs, np.where(at, others[1], rows[1])
