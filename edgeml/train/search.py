"""Cross-validation over a seeded list of candidates, then the best one fitted on every training row.

    Dataset, Search -> fit -> FittedModel

Folds run in parallel processes of one thread each. The list and the folds depend on the seed alone; only the
time limit can make two runs differ, and then a progress line says so.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import joblib
import numpy as np
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

from edgeml import metrics
from edgeml.artifacts import Answers, Candidate, Dataset, FittedModel, Rows
from edgeml.errors import DataError, UserError
from edgeml.project import Search
from edgeml.train.estimators import ESTIMATORS
from edgeml.train.pipelines import TablePipeline, fit_pipeline

Fold = tuple[np.ndarray, np.ndarray]
MAX_WORKERS = 8  # more hold more copies of the data than they save time on tables of this size


@dataclass(frozen=True)
class Trial:
    """A candidate before it is scored."""

    estimator: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Scored:
    """One fold of one trial."""

    score: float
    seconds: float
    warnings: tuple[str, ...]


def fit(dataset: Dataset, search: Search, *, progress: Callable[[str], None] = lambda line: None) -> FittedModel:
    """Return the best candidate of the search, fitted on all training rows.

    `progress` is told each candidate's score. Raises UserError for an unknown estimator and DataError when the
    training rows cannot be folded.
    """
    metric = metrics.find(dataset.metric, dataset.task)
    folds = make_folds(dataset, count=search.folds, seed=search.seed)
    found = _cross_validate(dataset, trials_of(search), folds, search=search, progress=progress)
    found.sort(key=lambda candidate: -candidate.score if metric.greater_is_better else candidate.score)
    best = found[0]
    progress(f"best: {best.estimator}, {metric.name} {best.score:.4f}; fitting it on {len(dataset.train)} rows")
    pipeline, caught = _fit(dataset, Trial(best.estimator, best.parameters), dataset.train, seed=search.seed)
    digest = _digest(dataset, best, search.seed)
    return FittedModel(pipeline, best.estimator, dataset, (_with_notes(best, caught), *found[1:]), digest)


def answers(fitted: FittedModel, rows: Rows) -> Answers:
    """Return what the fitted pipeline says about `rows`, in scikit-learn's own arithmetic."""
    pipeline: TablePipeline = fitted.pipeline
    return pipeline.answers(rows)


def trials_of(search: Search) -> list[Trial]:
    """Return the candidates in the order of their trial: every estimator's first setting, then drawn ones in turn."""
    names = list(ESTIMATORS) if search.estimators == "auto" else list(dict.fromkeys(search.estimators))
    unknown = [name for name in names if name not in ESTIMATORS]
    if unknown or not names:
        what = f"no estimator {unknown[0]!r}" if unknown else "search.estimators is empty"
        raise UserError(f"{what}: choose from {', '.join(ESTIMATORS)}, or auto")
    settings = {name: ESTIMATORS[name].settings(search.trials, search.seed) for name in names}
    turns = [Trial(name, settings[name][i]) for i in range(search.trials) for name in names if i < len(settings[name])]
    return turns[: search.trials]


def make_folds(dataset: Dataset, *, count: int, seed: int) -> list[Fold]:
    """Return the folds of the training rows: stratified for classes, whole groups where rows belong together."""
    rows, groups = len(dataset.train), dataset.train_groups
    count = min(count, rows if groups is None else len(np.unique(groups)))
    if count < 2:
        raise DataError(f"{dataset.name}: {rows} training rows cannot make 2 folds; add rows, or groups")
    stratify = dataset.task == "classification"
    kinds = (KFold, StratifiedKFold) if groups is None else (GroupKFold, StratifiedGroupKFold)
    splitter = kinds[stratify](n_splits=count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer rows than folds: the data set's notes say it
        return list(splitter.split(np.zeros(rows), dataset.train.target, groups))


def _cross_validate(
    dataset: Dataset, trials: list[Trial], folds: list[Fold], *, search: Search, progress: Callable[[str], None]
) -> list[Candidate]:
    deadline = time.monotonic() + search.timeout_s
    workers = min(joblib.cpu_count(), MAX_WORKERS)
    found: list[Candidate] = []
    with joblib.parallel_config("loky", n_jobs=workers, inner_max_num_threads=1), joblib.Parallel() as parallel:
        for start in range(0, len(trials), workers):
            if found and time.monotonic() > deadline:
                progress(
                    f"stopped after {len(found)} of {len(trials)} candidates: search.timeout_s is {search.timeout_s:g}"
                )
                break
            wave = trials[start : start + workers]
            jobs = [(trial, fold) for trial in wave for fold in folds]
            scored = parallel(joblib.delayed(_score)(dataset, *job, seed=search.seed) for job in jobs)
            for i, trial in enumerate(wave):
                found.append(_candidate(trial, scored[i * len(folds) : (i + 1) * len(folds)]))
                progress(_line(found[-1], dataset.metric, f"{len(found)}/{len(trials)}"))
    return found


def _score(dataset: Dataset, trial: Trial, fold: Fold, *, seed: int) -> Scored:
    """Return the score of one trial on one fold."""
    began = time.perf_counter()
    inside, outside = (dataset.train.take(index) for index in fold)
    pipeline, caught = _fit(dataset, trial, inside, seed=seed)
    said = pipeline.answers(outside)
    assert outside.target is not None and dataset.train.target is not None
    positive = metrics.rarer_class(dataset.train.target) if len(dataset.classes) == 2 else None
    score = metrics.METRICS[dataset.metric].score(outside.target, said.labels, said.scores, positive=positive)
    return Scored(score, time.perf_counter() - began, caught)


def _fit(dataset: Dataset, trial: Trial, rows: Rows, *, seed: int) -> tuple[TablePipeline, tuple[str, ...]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pipeline = fit_pipeline(
            ESTIMATORS[trial.estimator],
            trial.settings,
            rows,
            task=dataset.task,
            classes=len(dataset.classes),
            seed=seed,
        )
    if any("interrupted by user" in str(warning.message) for warning in caught):
        raise KeyboardInterrupt  # scikit-learn's networks take a Ctrl-C for early stopping and return half-trained
    return pipeline, tuple(dict.fromkeys(" ".join(str(w.message).split())[:200] for w in caught))


def _candidate(trial: Trial, scored: list[Scored]) -> Candidate:
    values = np.array([fold.score for fold in scored])
    known = values[~np.isnan(values)]
    if not len(known):
        raise DataError("the metric is undefined on every fold (one class only in each): add rows, or use fewer folds")
    notes = tuple(dict.fromkeys(warning for fold in scored for warning in fold.warnings))
    seconds = sum(fold.seconds for fold in scored)
    return Candidate(trial.estimator, trial.settings, float(known.mean()), float(known.std()), seconds, notes)


def _with_notes(candidate: Candidate, caught: tuple[str, ...]) -> Candidate:
    notes = tuple(dict.fromkeys((*candidate.notes, *caught)))
    given = (candidate.estimator, candidate.parameters, candidate.score, candidate.spread, candidate.seconds)
    return Candidate(*given, notes)


def _line(candidate: Candidate, metric: str, count: str) -> str:
    settings = ", ".join(f"{name}={value}" for name, value in candidate.parameters.items())
    return f"{count} {candidate.estimator}: {metric} {candidate.score:.4f} +- {candidate.spread:.4f} ({settings})"


def _digest(dataset: Dataset, best: Candidate, seed: int) -> str:
    made_of = {"dataset": dataset.digest, "estimator": best.estimator, "settings": dict(best.parameters), "seed": seed}
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
