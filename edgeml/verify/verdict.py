"""The decision, with its reason in one sentence with the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from edgeml.artifacts import FP32, Answers, ModelTask, Parity, Rows, Variant, Verdict
from edgeml.errors import DataError
from edgeml.metrics import METRICS, drop, evaluate, limit_of
from edgeml.verify import parity
from edgeml.verify.answers import run_answers
from edgeml.verify.bootstrap import OF_LABELS, resampled_drops
from edgeml.verify.evidence import Evidence
from edgeml.verify.limits import Limits
from edgeml.verify.worst import Compared, worst_rows
from edgeml_runtime.wire.manifest import PLAIN

DEFAULT = Limits()
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
    limits: Limits = DEFAULT,
    more: Sequence[Evidence] = (),
) -> Verdict:
    """Return whether `variant` may ship: fp32 by parity with `reference`, any other by the bound on its drop.

    `reference` are the source model's answers on the same rows. `more` rows count for parity, and any row where only
    the variant answers NaN fails it; the metric is that of `rows` alone. Without a target, or where the answers of a
    tensor model cannot be scored, a compressed variant is judged by its distance to the source.
    """
    if len(reference.scores) != len(rows):
        raise DataError(f"{len(reference.scores)} answers of the source for {len(rows)} rows: run it on the same rows")
    answers = run_answers(variant.model, rows, task)
    if answers.scores.shape != reference.scores.shape:
        return _wrong_width(variant, answers, reference)
    compared = [Compared("held-out", answers, reference, ()), *(_compared(variant, one, task) for one in more)]
    found = total([parity.compare(each.answers, each.reference, tie=limits.tie) for each in compared])
    score = _score(rows, answers, reference, metric=metric, task=task, limits=limits)
    if not np.isfinite(found.max_abs):
        passed, reason, missed = False, "fails: it answers NaN or infinity where its source gives a number", np.inf
    elif variant.recipe in (FP32, PLAIN):  # the same arithmetic, in another order
        relative = max(parity.relative(one.answers, one.reference) for one in compared)
        passed, reason = _judge_fp32(found, relative, limits.fp32_relative)
        missed = relative - limits.fp32_relative
    elif score.name:
        passed, reason = _judge_drop(found, score, limits.confidence)
        missed = score.upper - score.limit
    else:
        share = parity.rms_share(answers, reference)
        passed, reason = _judge_distance(found, share, limits.tensor_rms)
        missed = share - limits.tensor_rms
    worst = worst_rows(compared)
    if worst and not passed:
        reason += f"; worst at {worst[0].where}"
    missed = 0.0 if passed else max(float(missed), 0.0)
    numbers = (found, score.name, score.metrics, score.drop, score.upper, worst, missed)
    return Verdict(variant.recipe, passed, reason, *numbers)


def total(parities: Sequence[Parity]) -> Parity:
    """Return several parities as one."""
    return Parity(
        sum(one.rows for one in parities),
        max(one.max_abs for one in parities),
        sum(one.label_flips for one in parities),
        sum(one.ties for one in parities),
    )


def _compared(variant: Variant, evidence: Evidence, task: ModelTask) -> Compared:
    """Return the judged rows of `evidence`; a huge number must only not become NaN, so such rows copy their source."""
    answers = run_answers(variant.model, evidence.rows, task)
    judged = evidence.judged()
    kept = judged[:, None] | ~np.isfinite(answers.scores)
    scores = np.where(kept, answers.scores, evidence.reference.scores)
    labels = None if answers.labels is None else answers.labels.copy()
    if labels is not None and evidence.reference.labels is not None:
        labels[~judged] = evidence.reference.labels[~judged]
    return Compared(evidence.origin, Answers(labels, scores), evidence.reference, evidence.kinds)


def _judge_fp32(found: Parity, relative: float, allowed: float) -> tuple[bool, str]:
    passed = relative <= allowed and found.label_flips == 0
    return passed, (
        f"{'passes' if passed else 'fails'}: {_agreement(found)}; relative difference {relative:.2g}, "
        f"at most {allowed:g} and no flips are allowed"
    )


def _judge_drop(found: Parity, score: Score, confidence: float) -> tuple[bool, str]:
    passed = bool(score.upper <= score.limit)
    reason = (
        f"{'passes' if passed else 'fails'}: {score.name} is {abs(score.drop):.4g} "
        f"{'worse' if score.drop > 0 else 'better' if score.drop < 0 else 'off'}, at most {score.upper:.4g} worse with "
        f"{confidence:.0%} confidence, {score.limit:.4g} is allowed; "
        f"{_agreement(found)}"
    )
    if not passed and score.drop <= score.limit:
        reason += "; the drop itself is within the limit: more held-out rows would narrow the bound"
    return passed, reason


def _judge_distance(found: Parity, share: float, allowed: float) -> tuple[bool, str]:
    passed = share <= allowed
    return passed, (
        f"{'passes' if passed else 'fails'}: no labels to score, so only the distance to the source counts: "
        f"rms difference {share:.2%} of the spread of its outputs, {allowed:.0%} is allowed; {_agreement(found)}"
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
    limits: Limits,
) -> Score:
    names = None
    if rows.target is not None and task == "tensor":
        task, names = _guess_task(rows.target, reference), sorted(OF_LABELS)  # its scores may be no probabilities
    if rows.target is None or task == "tensor":
        return Score("", {}, 0.0, 0.0, 0.0)
    name = _name(metric, task)
    if not np.isfinite(answers.scores).all():
        return Score(name, {}, float("inf"), float("inf"), limits.max_drop)
    if task == "classification":
        answers, reference = (replace(given, labels=parity.top(given)) for given in (answers, reference))
    wanted = sorted({*names, name}) if names and task == "classification" else None
    values = evaluate(task, rows.target, answers, wanted)
    worse = drop(name, evaluate(task, rows.target, reference, [name])[name], values[name])
    drops = resampled_drops(
        name, rows.target, answers, reference=reference, resamples=limits.resamples, seed=limits.seed
    )
    upper = float(np.nanquantile(drops, limits.confidence)) if np.isfinite(drops).any() else float("inf")
    return Score(name, values, worse, upper, limit_of(name, limits.max_drop, rows.target))


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
    return Verdict(
        variant.recipe, False, reason, Parity(mine[0], float("inf"), 0, 0), "", {}, 0.0, float("inf"), (), float("inf")
    )
