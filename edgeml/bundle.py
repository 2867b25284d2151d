"""What ships: the manifest of a release, its graphs and the goldens that every device replays first.

    passed Variants, Verdicts, Choices, held-out Rows -assemble-> Bundle

Equal input gives an equal release id, whenever and wherever it is assembled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import numpy as np

from edgeml.artifacts import FP32, Bundle, Choice, ModelTask, Rows, Variant, Verdict
from edgeml.errors import DataError, NotFound, VerificationError
from edgeml_runtime.session import Session
from edgeml_runtime.wire import blocks, signed, tensors
from edgeml_runtime.wire.manifest import (
    PLAIN,
    PROBABILITIES,
    Bounds,
    Feature,
    Manifest,
    ReleaseVariant,
    Settings,
    blob_of,
)

MAX_GOLDENS = 32
CANDIDATES = 256  # held-out rows to pick them from
RELEASE_DIGITS = 12
NEAR_TIE = 1e-3  # a golden whose two best scores are this close says nothing: any rounding may flip it
FP32_MAX_ABS = 1e-3  # of the largest output, at least of 1: another core's rounding stays 100 times below
INT8_MAX_ABS = 0.1  # of the variant's range: one step of an 8-bit scale apart, not another answer
INT8_FLIPS = 0.1  # of the goldens


def assemble(
    *,
    name: str,
    task: ModelTask,
    features: Sequence[Feature] = (),
    target: str = "",
    classes: Sequence[str] = (),
    variants: Sequence[Variant],
    verdicts: Sequence[Verdict],
    choices: Sequence[Choice] = (),
    goldens: Rows,
    lineage: Mapping[str, str],
    sessions: Mapping[str, Settings] | None = None,
    boards: Mapping[str, Settings] | None = None,
    created: str | None = None,
) -> Bundle:
    """Return the release of `variants`, which must all have passed; the boards run what `choices` say.

    `goldens` are held-out rows, of which up to `MAX_GOLDENS` clear ones are recorded with the answers of
    every variant. `sessions` is by variant, `boards` by board and before it, the defaults where neither says.
    Raises VerificationError for a variant without a passed verdict, DataError without rows.
    """
    _check(variants, verdicts, goldens)
    opened = {variant.recipe: Session(variant.model.data) for variant in variants}
    first = opened.get(FP32) or next(iter(opened.values()))
    chosen, answers = _record(opened, goldens, reference=FP32 if FP32 in opened else variants[0].recipe)
    packed = tensors.pack(_named(chosen, answers))
    graphs = {variant.recipe: variant.model.data for variant in variants}
    manifest = Manifest(
        model=name,
        release="",
        task=task,
        created="",
        inputs=first.inputs,
        outputs=first.outputs,
        features=tuple(features),
        target=target,
        classes=tuple(classes),
        variants=tuple(
            _variant(recipe, data, outputs=answers[recipe], session=(sessions or {}).get(recipe, Settings()))
            for recipe, data in graphs.items()
        ),
        default_variant=FP32 if FP32 in graphs else variants[0].recipe,
        boards={choice.board: choice.variant for choice in choices if choice.fits},
        sessions=dict(boards or {}),
        goldens=blob_of(packed),
        lineage=dict(lineage),
    )
    blobs = {blocks.digest_of(data): data for data in (*graphs.values(), packed)}
    return Bundle(_released(manifest, created), blobs)


def with_settings(bundle: Bundle, sessions: Mapping[str, Settings], *, board: str = "") -> Bundle:
    """Return `bundle` as another release, its variants run as `sessions` say, or only on `board` its variant.

    Raises NotFound for a variant it has not, DataError when `sessions` say nothing of the board's variant.
    """
    manifest = bundle.manifest
    names = {variant.name for variant in manifest.variants}
    if unknown := sorted(sessions.keys() - names):
        raise NotFound(f"no variant {unknown[0]!r} in {manifest.model}: it has {', '.join(sorted(names))}")
    if board:
        chosen = manifest.variant_for(board).name
        if chosen not in sessions:
            raise DataError(f"{board} runs {chosen}, of which no settings were found: measure that variant")
        changed = dataclasses.replace(manifest, sessions={**manifest.sessions, board: sessions[chosen]})
    else:
        variants = [dataclasses.replace(v, session=sessions.get(v.name, v.session)) for v in manifest.variants]
        changed = dataclasses.replace(manifest, variants=tuple(variants))
    return Bundle(_released(dataclasses.replace(changed, release="", created=""), None), bundle.blobs)


def _variant(recipe: str, data: bytes, *, outputs: Mapping[str, np.ndarray], session: Settings) -> ReleaseVariant:
    return ReleaseVariant(name=recipe, graph=blob_of(data), bounds=_bounds(recipe, outputs), session=session)


def _released(manifest: Manifest, created: str | None) -> Manifest:
    """Return `manifest` with the release id that its content gives, and the time, which is not content."""
    content = blocks.digest_of(signed.canonical(manifest.to_document()))
    now = created or datetime.now(UTC).isoformat(timespec="seconds")
    return dataclasses.replace(manifest, release=content[:RELEASE_DIGITS], created=now)


def _check(variants: Sequence[Variant], verdicts: Sequence[Verdict], goldens: Rows) -> None:
    if not variants:
        raise VerificationError("no variant to release: at least fp32 must pass verification")
    found = {verdict.recipe: verdict for verdict in verdicts}
    for variant in variants:
        verdict = found.get(variant.recipe)
        if verdict is None or not verdict.passed:
            why = "it was not verified" if verdict is None else verdict.reason
            raise VerificationError(f"{variant.recipe} cannot be released: {why}")
    if not len(goldens):
        raise DataError("no held-out rows to record goldens from: a device could not prove the release")


def _record(
    sessions: Mapping[str, Session], rows: Rows, *, reference: str
) -> tuple[Rows, dict[str, dict[str, np.ndarray]]]:
    """Return the goldens and what every variant answers on them."""
    chosen = _clear_rows(sessions[reference], rows)
    return chosen, {name: _run(session, chosen) for name, session in sessions.items()}


def _clear_rows(session: Session, rows: Rows) -> Rows:
    """Return rows that the model is not torn about; just as many as it takes where it takes a fixed batch."""
    batch = _batch(session)
    if batch > 1:
        return rows.take(np.arange(batch) % len(rows))
    candidates = rows.take(_spread(len(rows), CANDIDATES))
    clear = np.flatnonzero(_gaps(_run(session, candidates)) > NEAR_TIE)
    kept = clear if len(clear) else np.arange(len(candidates))
    return candidates.take(kept[_spread(len(kept), MAX_GOLDENS)])


def _run(session: Session, rows: Rows) -> dict[str, np.ndarray]:
    """Return the outputs for all rows: at once, or row by row where the graph takes only one."""
    if _batch(session) != 1:
        return session.run(rows.inputs)
    parts = [session.run(rows.take(slice(i, i + 1)).inputs) for i in range(len(rows))]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _batch(session: Session) -> int:
    """Return how many rows the graph insists on, -1 when it takes any number."""
    return max((spec.shape[0] for spec in session.inputs if spec.shape), default=-1)


def _spread(count: int, most: int) -> np.ndarray:
    """Return at most `most` of `count` indices, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))


def _named(rows: Rows, answers: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    inputs = {f"input.{name}": array for name, array in rows.inputs.items()}
    return inputs | {f"{recipe}.{name}": array for recipe, out in answers.items() for name, array in out.items()}


def _gaps(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return by how much each row's best score leads; infinity where there is nothing to lead."""
    scores = outputs.get(PROBABILITIES)
    rows = len(next(iter(outputs.values())))
    if scores is None or scores.ndim != 2 or scores.shape[1] < 2:
        return np.full(rows, np.inf)
    best = np.partition(scores, -2, axis=1)[:, -2:]
    return np.asarray(best[:, 1] - best[:, 0])


def _bounds(recipe: str, outputs: Mapping[str, np.ndarray]) -> Bounds:
    """Return what a device must reproduce: near equality in fp32, the same answers within a step in int8."""
    floats = [array[np.isfinite(array)] for array in outputs.values() if array.dtype.kind == "f"]
    values = np.concatenate(floats) if floats else np.zeros(1)
    near = int((_gaps(outputs) <= NEAR_TIE).sum())  # only where every candidate was a tie, or int8 made one
    if recipe in (FP32, PLAIN):
        return Bounds(max_abs=FP32_MAX_ABS * max(1.0, float(np.abs(values).max(initial=0.0))), label_flips=near)
    spread = float(values.max(initial=0.0) - values.min(initial=0.0))
    rows = len(next(iter(outputs.values())))
    return Bounds(max_abs=INT8_MAX_ABS * max(spread, FP32_MAX_ABS), label_flips=max(near, int(INT8_FLIPS * rows)))
