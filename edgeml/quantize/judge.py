"""How much worse a candidate answers than fp32 on the calibration rows, for the recipes that search.

The gates judge again on held-out rows; here a search only needs an order and a bound.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

from edgeml.artifacts import Answers, OnnxModel, Rows
from edgeml.metrics import METRICS, drop, evaluate, limit_of
from edgeml.quantize.calibration import batches
from edgeml.quantize.recipe import Options
from edgeml_runtime.session import Session
from edgeml_runtime.wire.manifest import LABEL, Settings

MAX_ROWS = 1024
TENSOR_RMS = 0.05  # of the spread of the outputs, where no label can judge: what the gates allow


class Judge:
    """fp32's answers on the calibration rows; `limit` is the largest drop that holds."""

    def __init__(self, model: OnnxModel, rows: Rows, options: Options) -> None:
        keep = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MAX_ROWS)).astype(int))
        self._rows, self._options = rows.take(keep), options
        self._proto = ModelProto.FromString(model.data)
        self._full = self._answers(model.data)
        self._metric = self._usable_metric()
        self.limit = options.max_drop if self._metric or self._full.labels is not None else TENSOR_RMS
        self.limit = limit_of(self._metric, self.limit, self._rows.target)
        labelled = self._full.labels is not None
        self.unit = self._metric or ("agreement with fp32" if labelled else "agreement of the scores")

    def drop(self, data: bytes) -> float:
        """Return by how much the graph `data` is worse than fp32; infinite when it answers NaN."""
        answers = self._answers(data)
        if not np.isfinite(answers.scores).all():
            return float("inf")
        if self._metric:
            return drop(self._metric, self._score(self._full), self._score(answers))
        if self._full.labels is not None and answers.labels is not None:
            return float(np.mean(self._full.labels != answers.labels))
        return self.distance(data, answers)

    def distance(self, data: bytes, answers: Answers | None = None) -> float:
        """Return the root mean square error of the scores as a share of their spread."""
        scores = (answers or self._answers(data)).scores
        spread = max(float(np.std(self._full.scores)), 1e-12)
        error = float(np.sqrt(np.mean((scores - self._full.scores) ** 2)))
        return error / spread if np.isfinite(error) else float("inf")

    def _score(self, answers: Answers) -> float:
        target = self._rows.target
        assert target is not None
        return evaluate(self._options.task, target[: len(answers.scores)], answers, [self._metric])[self._metric]

    def _usable_metric(self) -> str:
        """Return the metric that target and answers allow, or ""."""
        name, target, task = self._options.metric, self._rows.target, self._options.task
        if name is None or target is None or name not in METRICS or METRICS[name].task != task:
            return ""
        self._metric = name
        labelled = task != "classification" or self._full.labels is not None
        return name if labelled and np.isfinite(self._score(self._full)) else ""

    def _answers(self, data: bytes) -> Answers:
        session = Session(data, Settings(threads=self._options.threads))
        parts = [session.run(feeds) for feeds in batches(self._proto, self._rows)]
        names = [spec.name for spec in session.outputs]
        scored = [n for n in names if parts[0][n].dtype.kind == "f" and n != LABEL] or names[:1]
        rows = sum(len(part[scored[0]]) for part in parts)
        scores = np.concatenate([np.reshape(p[n], (len(p[n]), -1)) for n in scored[:1] for p in parts])
        labels = np.concatenate([np.reshape(part[LABEL], -1) for part in parts]) if LABEL in names else None
        if labels is not None and labels.dtype.kind not in "iu":
            labels = None
        return Answers(labels, scores.astype(np.float64).reshape(rows, -1))
