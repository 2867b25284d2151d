"""One variant for one board, with the reason; fp32 unless something smaller clearly earns its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgeml.artifacts import FP32, Choice, Measurement, Prediction, Variant, Verdict
from edgeml.bench.predict import predict
from edgeml.devices import DeviceProfile
from edgeml.project import Board

CLEARLY = 0.9  # of fp32's predicted time: less than 10 % faster is not worth a second graph to look after


def choose(
    target: Board,
    profile: DeviceProfile,
    *,
    variants: Sequence[Variant],
    verdicts: Sequence[Verdict],
    measurements: Sequence[Measurement],
) -> Choice:
    """Return the variant that `target` runs, or the nearest miss with `fits` False.

    Only variants whose verdict passed are looked at. `measurements` of this machine go into the reason.
    """
    passed = {verdict.recipe for verdict in verdicts if verdict.passed}
    predictions = {v.recipe: predict(v.model, profile, target.threads) for v in variants if v.recipe in passed}
    if not predictions:
        failed = "; ".join(f"{verdict.recipe} {verdict.reason}" for verdict in verdicts) or "there is none"
        return Choice(target.board, "", False, f"no variant passed verification: {failed}", {})
    misses = {name: _misses(prediction, target, profile) for name, prediction in predictions.items()}
    fitting = {name: predictions[name] for name, missed in misses.items() if not missed}
    if not fitting:
        return Choice(target.board, "", False, _nearest_miss(misses, predictions), predictions)
    name, reason = _best(fitting, misses, nearest_failure(verdicts))
    reason += _straddles(predictions[name], target) + _here(name, measurements)
    return Choice(target.board, name, True, reason, predictions)


def nearest_failure(verdicts: Sequence[Verdict]) -> Verdict | None:
    """Return the compressed variant that failed by the least, if any failed."""
    failed = [verdict for verdict in verdicts if not verdict.passed and verdict.recipe != FP32]
    return min(failed, key=lambda verdict: verdict.missed, default=None)


def _best(
    fitting: Mapping[str, Prediction], misses: Mapping[str, Sequence[str]], failure: Verdict | None
) -> tuple[str, str]:
    """Return the winner among what fits, and why."""
    small = sorted((name for name in fitting if name != FP32), key=lambda name: fitting[name].predicted)
    if FP32 not in fitting:
        why = f"fp32 {' and '.join(misses[FP32])}" if FP32 in misses else "fp32 did not pass verification"
        return small[0], f"{small[0]} fits: {_numbers(fitting[small[0]])}; {why}"
    full = fitting[FP32]
    if not small:
        rest = "no compressed variant fits" if len(misses) > 1 else "no compressed variant was made or passed"
        if failure is not None and len(misses) == 1:
            rest = (
                f"no compressed variant passed, the nearest, {failure.recipe}, misses its bound by {failure.missed:.3g}"
            )
        return FP32, f"fp32 fits: {_numbers(full)}; {rest}"
    best = fitting[small[0]]
    share = best.predicted / full.predicted
    if share < CLEARLY:
        return small[0], f"{small[0]} is predicted {1 / share:.1f}x as fast as fp32: {_numbers(best)}"
    return FP32, (
        f"fp32 ships: no compressed variant wins, {small[0]} is predicted at {best.predicted:.3g} ms against "
        f"{full.predicted:.3g} ms, less than {1 - CLEARLY:.0%} faster; {_numbers(full)}"
    )


def _misses(prediction: Prediction, target: Board, profile: DeviceProfile) -> list[str]:
    """Return which limits `prediction` breaks, with the numbers."""
    found = []
    memory = target.memory_mb or profile.memory_limit_mb
    if prediction.memory_mb > memory:
        found.append(f"needs {prediction.memory_mb:.0f} MB of {memory:.0f} MB")
    if target.latency_p90_ms is not None and prediction.predicted > target.latency_p90_ms:
        found.append(f"is predicted at {_range(prediction)} for a limit of {target.latency_p90_ms:g} ms")
    return found


def _nearest_miss(misses: Mapping[str, Sequence[str]], predictions: Mapping[str, Prediction]) -> str:
    name = min(misses, key=lambda name: (len(misses[name]), predictions[name].predicted, predictions[name].memory_mb))
    return (
        f"no variant fits; the nearest miss is {name}, which {' and '.join(misses[name])}: "
        f"raise the limit, allow a smaller model, or take a faster board"
    )


def _straddles(prediction: Prediction, target: Board) -> str:
    limit = target.latency_p90_ms
    if limit is None or prediction.high <= limit:
        return ""
    return f"; the range reaches over the limit of {limit:g} ms: measure it on the board"


def _here(name: str, measurements: Sequence[Measurement]) -> str:
    found = next((m for m in measurements if m.recipe == name and m.valid), None)
    return f"; measured on this machine: p90 {found.p90:.3g} ms" if found else ""


def _numbers(prediction: Prediction) -> str:
    return f"{_range(prediction)}, {prediction.memory_mb:.0f} MB"


def _range(prediction: Prediction) -> str:
    low, predicted, high = (f"{value:.3g}" for value in (prediction.low, prediction.predicted, prediction.high))
    return f"{predicted} ms ({low} to {high}, {prediction.method})"
