"""Does the graph of a scikit-learn estimator say what the estimator says?

OnnxModel, estimator, rows -check-> Agreement, or VerificationError
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeml.artifacts import OnnxModel
from edgeml.convert.parity import TIE, VALUE_TOLERANCE, Agreement
from edgeml.convert.sklearn_instead import way_out
from edgeml.convert.sklearn_says import DISTANCES, WHOLE, answers_of
from edgeml.errors import VerificationError
from edgeml_runtime.session import Session
from edgeml_runtime.wire import DeviceError
from edgeml_runtime.wire.manifest import PROBABILITIES

PROBABILITY_TOLERANCE = 1e-4
STATED = 1e-5  # a larger difference is told, even where it is within the tolerance


def check(model: OnnxModel, estimator: Any, rows: Any, *, feeds: Mapping[str, np.ndarray] | None = None) -> Agreement:
    """Return how far `model` agrees with `estimator` on `rows`; `feeds` are the same rows by input of the graph.

    Labels may differ where the two best scores tie. Probabilities may differ by 1e-4, other values by 1e-4 of the
    largest one; beyond that, or where only one side is NaN, raises VerificationError with the numbers.
    """
    given = {next(iter(_inputs(model))): np.asarray(rows)} if feeds is None else feeds
    try:
        found = Session(model.data).run(given)
    except DeviceError as error:
        reason = " ".join(str(error).split())[:200]
        raise VerificationError(
            f"the converted graph of {type(estimator).__name__} does not run ({reason}); {way_out(estimator)}"
        ) from error
    wanted = {says.name: says.ask(rows) for says in answers_of(estimator)}
    tied = _ties(wanted)
    far, flips, ties = 0.0, 0, 0
    for name, want in wanted.items():
        if name not in found or found[name].shape != want.shape:
            have = found[name].shape if name in found else "nothing"
            raise VerificationError(
                f"the converted graph gives {have} as {name!r}, its source {want.shape}; {way_out(estimator)}"
            )
        if name in WHOLE:
            differ = found[name] != want
            flips, ties = flips + int((differ & ~tied).sum()), ties + int((differ & tied).sum())
        elif want.dtype.kind in "OUS":
            flips += int((found[name].astype(str) != want.astype(str)).any(axis=-1).sum())
        else:
            far = max(far, _share(found[name], want, probabilities=name == PROBABILITIES))
    if flips or not far <= 1.0:
        raise VerificationError(
            f"the converted graph of {type(estimator).__name__} differs from it on {len(tied)} rows by "
            f"{far:.3g} times what is allowed and flips {flips} labels: nothing was written; {way_out(estimator)}"
        )
    return Agreement(len(tied), far * PROBABILITY_TOLERANCE, flips, ties)


def _inputs(model: OnnxModel) -> list[str]:
    return [spec.name for spec in Session(model.data).inputs]


def _share(found: np.ndarray, wanted: np.ndarray, *, probabilities: bool) -> float:
    """Return the largest difference as a share of what is allowed; infinity where only one side is NaN."""
    found, wanted = found.astype(np.float64), wanted.astype(np.float64)
    size = 1.0 if probabilities else max(1.0, float(np.nanmax(np.abs(wanted[np.isfinite(wanted)]), initial=0.0)))
    with np.errstate(invalid="ignore"):
        apart = np.abs(found - wanted)
    same = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
    worst = np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart)).max(initial=0.0)
    return float(worst / ((PROBABILITY_TOLERANCE if probabilities else VALUE_TOLERANCE) * size))


def _ties(wanted: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return which rows have two best scores, or one score at its threshold, within TIE."""
    rows = len(next(iter(wanted.values())))
    tied = np.zeros(rows, dtype=bool)
    for name, scores in wanted.items():
        if name in WHOLE or scores.dtype.kind != "f" or scores.ndim != 2:
            continue
        size = max(1.0, float(np.abs(scores[np.isfinite(scores)]).max(initial=0.0)))
        if scores.shape[1] == 1:
            tied |= np.abs(scores[:, 0]) < TIE * size
        else:
            best = np.sort(-scores if name == DISTANCES else scores, axis=1)  # the nearest is the best
            tied |= best[:, -1] - best[:, -2] < TIE * size
    return tied
