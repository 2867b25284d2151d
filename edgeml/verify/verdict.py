"""The decision, with its reason in one sentence with the numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from edgeml.artifacts import FP32, Answers, ModelTask, Parity, Rows, Variant, Verdict
from edgeml.errors import DataError
from edgeml.metrics import METRICS, drop, evaluate
from edgeml.verify import parity
from edgeml.verify.answers import run_answers
from edgeml.verify.bootstrap import OF_LABELS, resampled_drops

FP32_TOLERANCE = 1e-4  # relative: float32 sums in another order stay within; a wrong converter does not
TENSOR_RMS = 0.05  # of the spread of the source's outputs, where no labels can judge an int8 graph
BOUND = 0.95
IN_TARGET_UNITS = ("rmse", "mae")  # a limit on these is a share of the target's standard deviation
DEFAULT_METRIC = {"classification": "accuracy", "regression": "rmse"}


class Score(NamedTuple):
    """The metric of source and variant on the held-out rows; `name` is "" where nothing can be scored."""

    name: str
    metrics: dict[str, float]
    drop: float
    upper: float
    limit: float


def verify(
    variant: Variant,
    rows: Rows,
    reference: Answers,
    *,
    metric: str,
    task: ModelTask,
    max_drop: float,
    resamples: int = 1000,
    seed: int = 0,
) -> Verdict:
    """Return whether `variant` may ship: fp32 by parity with `reference`, int8 by the bound on its drop.

    `reference` are the source model's answers on the same rows. Without a target, or where the answers
    of a tensor model cannot be scored, int8 is judged by its distance to the source alone.
    """
    if len(reference.scores) != len(rows):
        raise DataError(f"{len(reference.scores)} answers of the source for {len(rows)} rows: run it on the same rows")
    answers = run_answers(variant.model, rows, task)
    if answers.scores.shape != reference.scores.shape:
        return _wrong_width(variant, answers, reference)
    found = parity.compare(answers, reference)
    score = _score(rows, answers, reference, metric=metric, task=task, max_drop=max_drop, draws=(resamples, seed))
    if not np.isfinite(found.max_abs):
        passed, reason = False, "fails: it answers NaN or infinity where its source gives a number"
    elif variant.recipe == FP32:
        passed, reason = _judge_fp32(found, parity.relative(answers, reference))
    elif score.name:
        passed, reason = _judge_drop(found, score)
    else:
        passed, reason = _judge_distance(found, parity.rms_share(answers, reference))
    return Verdict(variant.recipe, passed, reason, found, score.name, score.metrics, score.drop, score.upper)


def _judge_fp32(found: Parity, relative: float) -> tuple[bool, str]:
    passed = relative <= FP32_TOLERANCE and found.label_flips == 0
    return passed, (
        f"{'passes' if passed else 'fails'}: {_agreement(found)}; relative difference {relative:.2g}, "
        f"at most {FP32_TOLERANCE:g} and no flips are allowed"
    )


def _judge_drop(found: Parity, score: Score) -> tuple[bool, str]:
    passed = bool(score.upper <= score.limit)
    reason = (
        f"{'passes' if passed else 'fails'}: {score.name} is {abs(score.drop):.4g} "
        f"{'worse' if score.drop > 0 else 'better' if score.drop < 0 else 'off'}, at most {score.upper:.4g} worse with "
        f"{BOUND:.0%} confidence, {score.limit:.4g} is allowed; "
        f"{_agreement(found)}"
    )
    if not passed and score.drop <= score.limit:
        reason += "; the drop itself is within the limit: more held-out rows would narrow the bound"
    return passed, reason


def _judge_distance(found: Parity, share: float) -> tuple[bool, str]:
    passed = share <= TENSOR_RMS
    return passed, (
        f"{'passes' if passed else 'fails'}: no labels to score, so only the distance to the source counts: "
        f"rms difference {share:.2%} of the spread of its outputs, {TENSOR_RMS:.0%} is allowed; {_agreement(found)}"
    )


def _agreement(found: Parity) -> str:
    ties = f" and {found.ties} at ties" if found.ties else ""
    return f"{found.label_flips} label flips{ties} in {found.rows} rows, largest difference {found.max_abs:.2g}"


def _score(
    rows: Rows,
    answers: Answers,
    reference: Answers,
    *,
    metric: str,
    task: ModelTask,
    max_drop: float,
    draws: tuple[int, int],
) -> Score:
    names = None
    if rows.target is not None and task == "tensor":
        task, names = _guess_task(rows.target, reference), sorted(OF_LABELS)  # its scores may be no probabilities
    if rows.target is None or task == "tensor":
        return Score("", {}, 0.0, 0.0, 0.0)
    name = _name(metric, task)
    if not np.isfinite(answers.scores).all():
        return Score(name, {}, float("inf"), float("inf"), max_drop)
    if task == "classification":
        answers, reference = (replace(given, labels=parity.top(given)) for given in (answers, reference))
    wanted = sorted({*names, name}) if names and task == "classification" else None
    values = evaluate(task, rows.target, answers, wanted)
    worse = drop(name, evaluate(task, rows.target, reference, [name])[name], values[name])
    drops = resampled_drops(name, rows.target, answers, reference=reference, resamples=draws[0], seed=draws[1])
    upper = float(np.nanquantile(drops, BOUND)) if np.isfinite(drops).any() else float("inf")
    limit = max_drop * float(np.std(rows.target)) if name in IN_TARGET_UNITS else max_drop
    return Score(name, values, worse, upper, limit)


def _name(metric: str, task: ModelTask) -> str:
    """Return `metric`, or the task's default where it is none or of another task."""
    other_task = metric in METRICS and METRICS[metric].task != task
    return DEFAULT_METRIC[task] if metric in ("", "auto") or other_task else metric


def _guess_task(target: np.ndarray, reference: Answers) -> ModelTask:
    """Return how the answers of a tensor model can be scored against `target`, if they can."""
    width = reference.scores.shape[1]
    if target.dtype.kind in "iu" and width > 1 and target.min() >= 0 and target.max() < width:
        return "classification"
    return "regression" if target.dtype.kind in "iuf" and width == 1 else "tensor"


def _wrong_width(variant: Variant, answers: Answers, reference: Answers) -> Verdict:
    mine, theirs = answers.scores.shape, reference.scores.shape
    reason = f"fails: it answers with {mine[1]} scores a row, its source with {theirs[1]}"
    return Verdict(variant.recipe, False, reason, Parity(mine[0], float("inf"), 0, 0), "", {}, 0.0, float("inf"))
