"""The nouns of edgeml: what each stage takes in and hands on.

    Dataset -> FittedModel -> OnnxModel -> Variant -> Verdict -> Measurement -> Bundle
                                  `-> TrainingGraph -> Task

Every artifact is immutable and names the digest of what it was made from, so a model running on
a device can be traced back to its data. No I/O and no heavy imports here.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from edgeml_runtime.wire.manifest import Feature, Manifest
from edgeml_runtime.wire.tasks import TaskKind as TaskKind

ModelTask = Literal["classification", "regression", "tensor"]
FP32 = "fp32"  # the name of the float reference variant, always
TARGET_SCALE = "target.scale"  # initializer by which a regressor's last operators scale its standardized answer
TRAINABLE = "edgeml.trainable"  # key of a model's metadata: the names of its parameters, as a JSON list


@dataclass(frozen=True)
class Rows:
    """Rows as a model's inputs: every array has the rows on its first axis.

    A table has at most two inputs: `numeric`, float32 (n, f) with NaN where a value is missing, and
    `categorical`, str objects (n, c) with "" where one is missing. `target` is int64 (n,) class
    indices, float32 (n,) values, or None.
    """

    inputs: Mapping[str, np.ndarray]
    target: np.ndarray | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values()))) if self.inputs else 0

    def take(self, index: np.ndarray | slice) -> Rows:
        """Return the rows at `index`, in that order."""
        target = None if self.target is None else self.target[index]
        return Rows({name: array[index] for name, array in self.inputs.items()}, target)


@dataclass(frozen=True)
class Dataset:
    """A table ready to learn from, split without leaks: `test` was never fitted or selected on."""

    name: str
    task: ModelTask
    features: tuple[Feature, ...]  # the numeric ones first, each kind in the order of its input
    target: str
    classes: tuple[str, ...]  # class names by index; empty for regression
    train: Rows
    valid: Rows
    test: Rows
    digest: str  # of the source bytes and of every option that shaped the rows
    metric: str  # the name the search and the gates use
    notes: tuple[str, ...] = ()  # what was dropped or repaired, for the report
    train_groups: np.ndarray | None = None  # group index of each train row, when rows of a group must stay together
    train_devices: np.ndarray | None = None  # of each train row, the index of the device that holds it, where known


@dataclass(frozen=True)
class Candidate:
    """One pipeline that the search tried."""

    estimator: str
    parameters: Mapping[str, Any]
    score: float  # mean over the folds, of the data set's metric
    spread: float  # standard deviation over the folds
    seconds: float
    notes: tuple[str, ...] = ()  # warnings of its training, each one once


@dataclass(frozen=True)
class FittedModel:
    """A trained scikit-learn pipeline from `Rows` to answers; `pipeline` stays opaque outside `train` and `convert`."""

    pipeline: Any
    estimator: str
    dataset: Dataset
    candidates: tuple[Candidate, ...]  # best first; the first one is `pipeline`
    digest: str


@dataclass(frozen=True)
class Answers:
    """What a model says about rows: labels int64 (n,) or None, scores float64 (n, k).

    Scores are probabilities by class index for a classifier, the predicted value (n, 1) for a
    regressor, and the flattened first output (n, k) for a model of which no more is known.
    """

    labels: np.ndarray | None
    scores: np.ndarray


@dataclass(frozen=True)
class OnnxModel:
    """A serialized, checked ONNX graph. Outputs of a classifier: `label` int64 (n,), `probabilities`
    float32 (n, k); of a regressor: `prediction` float32 (n, 1)."""

    data: bytes
    source: str  # digest of what it was made from
    notes: tuple[str, ...] = ()  # what the converter changed or could not keep
    features: tuple[Feature, ...] = ()  # columns in the order of their inputs, where the source names them
    classes: tuple[str, ...] = ()  # class names by index, where the source knows them

    @functools.cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class TrainingGraph:
    """One optimizer step as plain ONNX: forward, loss, backward, update.

    Graph inputs: the model's own inputs, `target` (int64 (n,) or float32 (n, k)), `lr` (float32, 0-d),
    every parameter by name, every state by name. Outputs: `loss` (0-d), then `new.<name>` for
    every parameter and every state.
    """

    data: bytes
    source: str  # digest of the OnnxModel
    loss: str
    optimizer: str
    parameters: Mapping[str, np.ndarray]  # initial values, float32
    state: Mapping[str, np.ndarray]  # initial optimizer state, zeros

    @functools.cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class Task:
    """A graph a device runs once over all its local rows, and what it may send back."""

    kind: TaskKind
    data: bytes
    source: str  # digest of the TrainingGraph, or what the study is about
    parameters: Mapping[str, np.ndarray]
    scalars: tuple[str, ...]  # 0-d inputs the round must give: lr, seed, ...
    outputs: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)  # name -> dtype, shape
    controls: Mapping[str, np.ndarray] = field(default_factory=dict)  # more that offers carry and devices change

    @functools.cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class Variant:
    """One form of a model: `fp32`, or compressed, e.g. `int8-static-u8s8`."""

    model: OnnxModel
    recipe: str
    reference: str  # digest of the float OnnxModel it must agree with


@dataclass(frozen=True)
class ActivationRanges:
    """What the tensors of a float graph hold on rows that are not here, for `quantize` in place of calibration rows.

    `ends` are the least and the largest value, zero included; `counts` are the values in bins of equal width between
    them, and may be missing.
    """

    graph: str  # digest of the float graph whose tensors they are
    rows: int
    ends: Mapping[str, tuple[float, float]]
    counts: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped:
    """A recipe that made no variant, and why in one sentence."""

    recipe: str
    reason: str


@dataclass(frozen=True)
class Parity:
    """Agreement with the source model, row by row. Flips at a tie of the source's scores are `ties`, not flips."""

    rows: int
    max_abs: float
    label_flips: int
    ties: int


@dataclass(frozen=True)
class WorstRow:
    """A row on which a variant is farthest from its source; `source` and `variant` are their scores."""

    where: str  # "held-out row 12", "edge case numeric[3]: missing"
    source: tuple[float, ...]
    variant: tuple[float, ...]
    difference: float


@dataclass(frozen=True)
class Verdict:
    """Whether a variant may ship: parity with its source and the metric's drop with its bound."""

    recipe: str
    passed: bool
    reason: str
    parity: Parity
    metric: str
    metrics: Mapping[str, float]  # on the held-out rows
    accuracy_drop: float  # source minus variant, on the metric, oriented so that more is worse
    accuracy_drop_upper: float  # 95 % bootstrap bound over the held-out rows
    worst: tuple[WorstRow, ...] = ()  # the farthest first
    missed: float = 0.0  # by how much the bound was missed, in the bound's own unit; 0 where it holds


@dataclass(frozen=True)
class Measurement:
    """Latency of a variant on this machine, through the device's own code; milliseconds, one row."""

    recipe: str
    p50: float
    p90: float
    p99: float
    n: int
    ci95: tuple[float, float]  # of the median
    valid: bool
    why: str  # what makes it invalid, or ""
    samples: tuple[float, ...] = ()  # a thinned sorted sample, for plots
    environment: Mapping[str, Any] = field(default_factory=dict)
    # the whole document of edgeml_runtime.measure.Benchmark.plain(): intervals, time line, memory, operators, ...
    details: Mapping[str, Any] = field(default_factory=dict)


Method = Literal["prior", "emulated", "calibrated", "measured", "combined"]


@dataclass(frozen=True)
class Estimate:
    """What one method says about a latency, in ms, and its share in the prediction that was made of all of them."""

    method: Method
    low: float
    predicted: float
    high: float
    weight: float = 1.0


@dataclass(frozen=True)
class Prediction:
    """Latency (ms, one row) and memory (MB) on a board nobody has here: never one number without its range.

    The range is meant to hold the truth nine times out of ten.
    """

    low: float
    predicted: float
    high: float
    memory_mb: float
    method: Method = "prior"
    coverage: float = 1.0  # share of the predicted time that known operator classes explain
    notes: tuple[str, ...] = ()  # what widened the range
    sources: tuple[Estimate, ...] = ()  # every estimate there was; empty where `method` is the only one


@dataclass(frozen=True)
class Choice:
    """The variant for one board, with the reason, or the nearest miss."""

    board: str
    variant: str  # "" when none fits
    fits: bool
    reason: str
    predictions: Mapping[str, Prediction]  # by variant


@dataclass(frozen=True)
class Bundle:
    """What ships: the manifest and the blobs it names, by digest."""

    manifest: Manifest
    blobs: Mapping[str, bytes]
