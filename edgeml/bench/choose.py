"""One variant for one board, with the reason; fp32 unless something smaller clearly earns its place.

Intervals decide, not points. A limit is kept when the whole range lies below it and broken when all of it lies above;
in between the board has to say. Whether int8 is faster than fp32 is a question about their ratio: two predictions for
one board share most of their error, which cancels there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from edgeml.artifacts import FP32, Choice, Measurement, Prediction, Variant, Verdict
from edgeml.bench.predict import Known, predict_for
from edgeml.bench.predict.combine import Z90, spread
from edgeml.project import Board

CLEARLY = 0.9  # of fp32's time: less than 10 % faster is not worth a second graph to look after
# correlation of the errors of two variants' predictions for one board. Published int8 and float pairs show 0.63 to 0.66
# (benchmarks/predict_published.py); 0.7 gives counted costs a ratio that is wrong by 0.33 of its log, as theirs was
SHARED = 0.7
FITS, LIKELY, UNLIKELY, MISSES = range(4)  # where a limit lies: above the range, in its upper or lower half, below it


@dataclass(frozen=True)
class Standing:
    """How a variant stands to the limits of a board: `rank` as above, and what it breaks in words."""

    rank: int
    broken: tuple[str, ...]


def choose(
    target: Board,
    known: Known,
    *,
    variants: Sequence[Variant],
    verdicts: Sequence[Verdict],
    measurements: Sequence[Measurement],
) -> Choice:
    """Return the variant that `target` runs, or the nearest miss with `fits` False.

    Only variants whose verdict passed are looked at. A valid measurement on the board itself (`known.measured`)
    takes the place of a prediction; `measurements` of this machine only go into the reason.
    """
    passed = {verdict.recipe for verdict in verdicts if verdict.passed}
    predictions = _predictions([variant for variant in variants if variant.recipe in passed], known)
    if not predictions:
        failed = "; ".join(f"{verdict.recipe} {verdict.reason}" for verdict in verdicts) or "there is none"
        return Choice(target.board, "", False, f"no variant passed verification: {failed}", {})
    standings = {name: _standing((name, prediction), target, known) for name, prediction in predictions.items()}
    rank = min(standing.rank for standing in standings.values())
    if rank == MISSES:
        return Choice(target.board, "", False, _nearest_miss(standings, predictions), predictions)
    best = {name: predictions[name] for name, standing in standings.items() if standing.rank == rank}
    name, reason = _best(best, standings, nearest_failure(verdicts))
    reason += _straddles(rank, target) + _here(name, measurements)
    return Choice(target.board, name, True, reason, predictions)


def nearest_failure(verdicts: Sequence[Verdict]) -> Verdict | None:
    """Return the compressed variant that failed by the least, if any failed."""
    failed = [verdict for verdict in verdicts if not verdict.passed and verdict.recipe != FP32]
    return min(failed, key=lambda verdict: verdict.missed, default=None)


def ratio(one: Prediction, other: Prediction) -> tuple[float, float, float]:
    """Return low, middle and high of the time of `one` over that of `other`, on one board.

    Errors of two predictions are taken to correlate by SHARED, those of measurements not at all.
    """
    shared = 0.0 if "measured" in (one.method, other.method) else SHARED
    a, b, middle = spread(one), spread(other), one.predicted / other.predicted
    factor = math.exp(Z90 * math.sqrt(max(0.0, a**2 + b**2 - 2 * shared * a * b)))
    return middle / factor, middle, middle * factor


def _predictions(variants: Sequence[Variant], known: Known) -> dict[str, Prediction]:
    """Return by variant what is known of its time; what was measured of some also tells of the others.

    The error of a prediction is shared with its siblings': given that theirs was r (logarithm, in the mean), it is
    expected to be SHARED r, and what is left of its spread is sqrt(1 - SHARED^2) of it.
    """
    found = {variant.recipe: predict_for(variant, known) for variant in variants}
    measured = [variant for variant in variants if found[variant.recipe].method == "measured"]
    if not measured or len(measured) == len(variants) or known.profile is None:
        return found
    blind = {variant.recipe: predict_for(variant, replace(known, measured={})) for variant in measured}
    errors = [math.log(found[name].predicted / one.predicted) for name, one in blind.items()]
    shift = math.exp(SHARED * sum(errors) / len(errors))
    note = (
        f"{' and '.join(blind)} took {math.exp(sum(errors) / len(errors)):.2g} of its prediction there: shifted by it"
    )
    for name in found.keys() - blind.keys():
        one = found[name]
        middle = shift * one.predicted
        factor = math.exp(Z90 * spread(one) * math.sqrt(1 - SHARED**2))
        found[name] = replace(
            one, low=middle / factor, predicted=middle, high=middle * factor, notes=(*one.notes, note)
        )
    return found


def _best(
    fitting: Mapping[str, Prediction], standings: Mapping[str, Standing], failure: Verdict | None
) -> tuple[str, str]:
    """Return the winner among what fits best, and why."""
    small = sorted((name for name in fitting if name != FP32), key=lambda name: _order(fitting[name]))
    if FP32 not in fitting:
        why = f"fp32 {' and '.join(standings[FP32].broken)}" if FP32 in standings else "fp32 did not pass verification"
        return small[0], f"{small[0]} fits: {_numbers(fitting[small[0]])}; {why}"
    full = fitting[FP32]
    if not small:
        rest = "no compressed variant fits" if len(standings) > 1 else "no compressed variant was made or passed"
        if failure is not None and len(standings) == 1:
            rest = (
                f"no compressed variant passed, the nearest, {failure.recipe}, misses its bound by {failure.missed:.3g}"
            )
        return FP32, f"fp32 fits: {_numbers(full)}; {rest}"
    best = fitting[small[0]]
    low, middle, high = ratio(best, full)
    is_ = "is measured there" if best.method == full.method == "measured" else "is predicted"
    if middle < CLEARLY and high < 1:
        times = f"{1 / middle:.1f}x as fast as fp32 ({1 / high:.1f}x to {1 / low:.1f}x)"
        return small[0], f"{small[0]} {is_} {times}: {_numbers(best)}"
    share = f"{small[0]} {is_} at {best.predicted:.3g} ms against {full.predicted:.3g} ms"
    doubt = (
        f"less than {1 - CLEARLY:.0%} faster"
        if middle >= CLEARLY
        else f"and its {low:.2f} to {high:.2f} of fp32's time may be no gain: measure it on the board"
    )
    return FP32, f"fp32 ships: no compressed variant wins, {share}, {doubt}; {_numbers(full)}"


def _order(prediction: Prediction) -> tuple[bool, float]:
    """Return what variants are ordered by: what was measured goes before what is predicted, then the fastest."""
    return prediction.method != "measured", prediction.predicted


def _standing(named: tuple[str, Prediction], target: Board, known: Known) -> Standing:
    """Return which limits a variant breaks, or may break, with the numbers."""
    name, prediction = named
    broken, rank = [], FITS
    memory = target.memory_mb or (known.profile and known.profile.memory_limit_mb) or math.inf
    if prediction.memory_mb > memory:
        broken.append(f"needs {prediction.memory_mb:.0f} MB of {memory:.0f} MB")
        rank = MISSES
    limit = target.latency_p90_ms
    if limit is not None and (late := _lateness(prediction, known.measured.get(name), limit)):
        said = "was measured there" if prediction.method == "measured" else "is predicted"
        broken.append(f"{said} at {_range(prediction)} for a limit of {limit:g} ms")
        rank = max(rank, late)
    return Standing(rank, tuple(broken))


def _lateness(prediction: Prediction, measured: Measurement | None, limit: float) -> int:
    """Return the rank of a latency: by the p90 where that was measured, else by the range."""
    if prediction.method == "measured" and measured is not None:
        return FITS if measured.p90 <= limit else MISSES
    if prediction.high <= limit:
        return FITS
    if prediction.low > limit:
        return MISSES
    return LIKELY if prediction.predicted <= limit else UNLIKELY


def _nearest_miss(standings: Mapping[str, Standing], predictions: Mapping[str, Prediction]) -> str:
    def distance(name: str) -> tuple[int, float, float]:
        return len(standings[name].broken), predictions[name].predicted, predictions[name].memory_mb

    name = min(standings, key=distance)
    return (
        f"no variant fits; the nearest miss is {name}, which {' and '.join(standings[name].broken)}: "
        f"raise the limit, allow a smaller model, or take a faster board"
    )


def _straddles(rank: int, target: Board) -> str:
    if rank == FITS:
        return ""
    odds = "more likely broken than kept" if rank == UNLIKELY else "likely but not surely kept"
    return f"; the range reaches over the limit of {target.latency_p90_ms:g} ms, {odds}: measure it on the board"


def _here(name: str, measurements: Sequence[Measurement]) -> str:
    found = next((m for m in measurements if m.recipe == name and m.valid), None)
    return f"; measured on this machine: p90 {found.p90:.3g} ms" if found else ""


def _numbers(prediction: Prediction) -> str:
    return f"{_range(prediction)}, {prediction.memory_mb:.0f} MB"


def _range(prediction: Prediction) -> str:
    low, predicted, high = (f"{value:.3g}" for value in (prediction.low, prediction.predicted, prediction.high))
    return f"{predicted} ms ({low} to {high}, {prediction.method})"
