"""The gates every float model walks through, whatever it came from: quantize, verify, bench, choose, bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edgeml import bench, bundle, quantize, verify
from edgeml.artifacts import FP32, Bundle, Choice, Measurement, OnnxModel, Rows, Skipped, Variant, Verdict
from edgeml.errors import NothingFits, VerificationError
from edgeml.files import Cache
from edgeml.pipeline.calibration import known_of
from edgeml.pipeline.measured import measurements_for
from edgeml.pipeline.plan import key, versions
from edgeml.pipeline.runtimes import loadable
from edgeml.pipeline.subject import Proof, Stopwatch, Subject
from edgeml.project import Board
from edgeml.registry import Registry
from edgeml_runtime.wire.manifest import PLAIN, Settings


@dataclass(frozen=True)
class Desk:
    """Where the work happens: the cache of stages, the watch, and the registry that knows what devices measured."""

    cache: Cache
    watch: Stopwatch
    registry: Registry | None = None


def prove(model: OnnxModel, subject: Subject, desk: Desk) -> Proof:
    """Return the proof for `model`: its variants, what each gate says of them, and the bundle.

    Raises VerificationError when not even the float model agrees with its source, NothingFits when
    a board of the project gets no variant.
    """
    watch, run_key = desk.watch, key(model.digest, subject.dataset, subject.lineage, subject.project, versions())
    with watch.stage("quantize"):
        made = desk.cache.stage("quantize", run_key, lambda: _variants(model, subject, watch.say), whole=_all_made)
        variants = tuple(item for item in made if isinstance(item, Variant))
        skipped = tuple(item for item in made if isinstance(item, Skipped))
        run_key = key(run_key, [variant.model.digest for variant in variants])  # Ctrl-C may have left some out
        watch.say(", ".join(variant.recipe for variant in variants))
    with watch.stage("verify"):
        verdicts = desk.cache.stage("verify", run_key, lambda: _verdicts(variants, subject))
        watch.say("; ".join(f"{name} {'pass' if verdict.passed else 'fail'}" for name, verdict in verdicts.items()))
        if not verdicts[FP32].passed:
            shown = "".join(f"\n  {line}" for line in worst_lines(verdicts[FP32]))
            raise VerificationError(f"the float model does not agree with its source: {verdicts[FP32].reason}{shown}")
    with watch.stage("bench"):
        measured = desk.cache.stage("bench", run_key, lambda: _measurements(variants, subject))
        choices = _choices(variants, verdicts, Context(subject, measured, desk.registry))
        for choice in choices.values():
            watch.say(f"{choice.board}: {choice.reason}")
    with watch.stage("bundle"):
        shipped = tuple(variant for variant in variants if verdicts[variant.recipe].passed)
        told = [(choice.board, choice.variant, choice.reason) for choice in choices.values()]  # of today's calibrations
        made_bundle = desk.cache.stage(
            "bundle", key(run_key, told), lambda: _bundle(shipped, choices, Judged(subject, verdicts))
        )
        watch.say(f"release {made_bundle.manifest.release}, {sum(map(len, made_bundle.blobs.values())):,} bytes")
    return Proof(
        variants=variants,
        skipped=skipped,
        verdicts=verdicts,
        measurements=measured,
        choices=choices,
        bundle=made_bundle,
    )


@dataclass(frozen=True)
class Context:
    subject: Subject
    measurements: Mapping[str, Measurement]
    registry: Registry | None


def _variants(model: OnnxModel, subject: Subject, say: Callable[[str], None]) -> list[Variant | Skipped]:
    chosen = subject.project.compile
    options = quantize.Options(
        field=subject.ranges,
        max_drop=chosen.max_accuracy_drop,
        metric=subject.metric,
        task=subject.task,
        budget_s=chosen.search_s,
        progress=say,
    )
    precisions = [chosen.precisions] if isinstance(chosen.precisions, str) else chosen.precisions
    rows = subject.calibration if subject.calibration is not None else Rows({})
    return loadable(quantize.quantize(model, rows, precisions, options=options), subject.project)


def _all_made(made: Sequence[Variant | Skipped]) -> bool:
    return not any(isinstance(item, Skipped) and item.reason == quantize.STOPPED for item in made)


def _verdicts(variants: Sequence[Variant], subject: Subject) -> dict[str, Verdict]:
    chosen = subject.project.verify
    limits = verify.Limits(
        max_drop=subject.project.compile.max_accuracy_drop,
        fp32_relative=chosen.fp32_relative,
        tensor_rms=chosen.tensor_rms,
        confidence=chosen.confidence,
        resamples=chosen.resamples,
        tie=chosen.tie,
    )
    return {
        variant.recipe: verify.verify(
            variant,
            subject.held_out,
            subject.reference,
            metric=subject.metric,
            task=subject.task,
            limits=limits,
            more=subject.evidence,
        )
        for variant in variants
    }


def worst_lines(verdict: Verdict) -> list[str]:
    """Return a line for each of the worst rows: where it is, what the source says, what the variant says."""
    return [
        f"{row.where}: source {_numbers(row.source)}, {verdict.recipe} {_numbers(row.variant)}" for row in verdict.worst
    ]


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _measurements(variants: Sequence[Variant], subject: Subject) -> dict[str, Measurement]:
    return {variant.recipe: bench.measure_here(variant, subject.held_out, starts=1) for variant in variants}


def _choices(variants: Sequence[Variant], verdicts: Mapping[str, Verdict], context: Context) -> dict[str, Choice]:
    choices = {}
    for target in context.subject.project.devices:
        choices[target.board] = bench.choose(
            target,
            _known(target, variants, context),
            variants=[variant for variant in variants if variant.recipe != PLAIN],  # boards have onnxruntime
            verdicts=[verdict for name, verdict in verdicts.items() if name != PLAIN],
            measurements=list(context.measurements.values()),
        )
    if misses := [choice for choice in choices.values() if not choice.fits]:
        raise NothingFits("; ".join(f"{choice.board}: {choice.reason}" for choice in misses))
    return choices


def _known(target: Board, variants: Sequence[Variant], context: Context) -> bench.Known:
    """Return all that is known of a board, what its devices measured of these graphs with as many threads included."""
    known = known_of(target.board, rows=context.subject.held_out, threads=target.threads)
    if context.registry is None:
        return known
    names = {variant.model.digest: variant.recipe for variant in variants}
    found = measurements_for(context.registry, names, board=target.board, threads=target.threads)
    return dataclasses.replace(known, measured=found.get(target.board, {}))


@dataclass(frozen=True)
class Judged:
    subject: Subject
    verdicts: Mapping[str, Verdict]


def _bundle(variants: Sequence[Variant], choices: Mapping[str, Choice], judged: Judged) -> Bundle:
    subject = judged.subject
    return bundle.assemble(
        name=subject.project.name,
        task=subject.task,
        features=subject.features,
        classes=subject.classes,
        target=subject.target,
        variants=variants,
        verdicts=list(judged.verdicts.values()),
        choices=list(choices.values()),
        goldens=subject.held_out,
        lineage=subject.lineage,
        boards={one.board: Settings(threads=one.threads) for one in subject.project.devices if one.threads > 1},
    )
