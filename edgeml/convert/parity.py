"""Does the graph say what its source says? Asked after every conversion, through the device's own session.

answers of the source, of the graph -> compare -> Parity, or VerificationError
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeml.artifacts import Answers, OnnxModel, Parity
from edgeml.errors import VerificationError
from edgeml_runtime.session import Session
from edgeml_runtime.wire.manifest import LABEL, PREDICTION, PROBABILITIES

MAX_ROWS = 256
PROBABILITY_TOLERANCE = 1e-5  # absolute; float32 sums over a few thousand terms stay below
VALUE_TOLERANCE = 1e-4  # of the largest value
OF_SPREAD = 0.05  # of what the answers differ by from row to row
ROUNDING = 5e-6  # of the largest value: deep nets in float32 stay below
TIE = 1e-6  # two best scores nearer than this may order either way


@dataclass(frozen=True)
class Agreement(Parity):
    """A parity within its tolerance."""

    def sentence(self, source: str) -> str:
        """Return it as a note for the report."""
        ties = f", {self.ties} labels differ at ties" if self.ties else ""
        return f"agrees with {source} on {self.rows} rows: {self.max_abs:.1e} apart at most{ties}"


def compare(
    model: OnnxModel, inputs: Mapping[str, np.ndarray], source: Answers, *, tolerance: float = PROBABILITY_TOLERANCE
) -> Agreement:
    """Return how far `model` agrees with the answers of its source on `inputs`; `tolerance` is of probabilities.

    Raises VerificationError, with the numbers, when it disagrees beyond the tolerance.
    """
    outputs = Session(model.data).run(inputs)
    if source.labels is None:
        far = _distance(outputs[PREDICTION], source.scores)
        return _agreed(Agreement(len(source.scores), far, 0, 0), tolerance=VALUE_TOLERANCE * _size(source.scores))
    best = np.sort(source.scores, axis=1)
    tied = best[:, -1] - best[:, -2] < TIE
    differ = outputs[LABEL] != source.labels
    far = _distance(outputs[PROBABILITIES], source.scores)
    flips, ties = int(np.sum(differ & ~tied)), int(np.sum(differ & tied))
    return _agreed(Agreement(len(tied), far, flips, ties), tolerance=tolerance)


def compare_tensors(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray], *, relative: float) -> Agreement:
    """Return the worst agreement of tensors in the same order; `relative` of a tensor's largest value is allowed.

    Where the rows answer almost alike, a twentieth of what they differ by is allowed, but never less than float32
    rounds: a net that hardly reacts must not pass for its like.
    """
    agreed = []
    for have, want in zip(found, wanted, strict=True):
        one = Agreement(len(want), _distance(have, want), 0, 0)
        tolerance = relative * _size(want)
        if len(want) > 1:
            spread = float(np.ptp(want.astype(np.float64), axis=0).max(initial=0.0))
            tolerance = min(tolerance, max(OF_SPREAD * spread, ROUNDING * _size(want)))
        agreed.append(_agreed(one, tolerance=tolerance))
    return max(agreed, key=lambda one: one.max_abs)


def _distance(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the largest absolute difference; NaN when only one side is NaN somewhere."""
    if found.shape != wanted.shape:
        raise VerificationError(f"the converted graph gives shape {found.shape}, its source {wanted.shape}")
    same = np.isnan(found) & np.isnan(wanted)
    return float(np.max(np.where(same, 0.0, np.abs(found.astype(np.float64) - wanted)), initial=0.0))


def _size(values: np.ndarray) -> float:
    return max(1.0, float(np.nanmax(np.abs(values), initial=0.0)))


def _agreed(agreement: Agreement, *, tolerance: float) -> Agreement:
    if agreement.max_abs <= tolerance and not agreement.label_flips:  # NaN is not within
        return agreement
    raise VerificationError(
        f"the converted graph differs from its source on {agreement.rows} rows by {agreement.max_abs:.3g} "
        f"({tolerance:.3g} allowed) and flips {agreement.label_flips} labels: nothing was written; "
        f"replace the step that does not convert"
    )
