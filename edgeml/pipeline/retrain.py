"""The front door for weights that were learned on devices: judged on the server's rows, then the usual gates."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeml import graph, metrics, verify
from edgeml.artifacts import FP32, TARGET_SCALE, ActivationRanges, Answers, OnnxModel, Rows
from edgeml.errors import NotFound, UnsupportedModel, VerificationError
from edgeml.federated import strategy
from edgeml.federated.gate import GATES, OWN, OWN_SAYS, UNASKED, Gain, Gate, Own, Ruling, rule, rule_own
from edgeml.files import Cache
from edgeml.pipeline import fleet_gate
from edgeml.pipeline.exact import exact_model, exact_study, instead
from edgeml.pipeline.finish import Delivery, finish
from edgeml.pipeline.plan import key, versions
from edgeml.pipeline.prove import Desk, prove
from edgeml.pipeline.run import Progress
from edgeml.pipeline.settle import settle
from edgeml.pipeline.subject import Stopwatch, Subject, read_subject
from edgeml.project import Federated
from edgeml.registry import FederationRecord, Registry, Release, RoundRecord
from edgeml.server import Findings, Learner
from edgeml.tasks.study import Study

RESAMPLES = 200
RANGES = "ranges"  # in a lineage: digest of the activation ranges that the fleet told
NOTHING_FOUND: Findings = {}
LOSSES = {"classification": "softmax_cross_entropy", "regression": "mse"}


class Retraining:
    """What the server calls to begin and to end a federation: see `edgeml.server.Retrain`."""

    def __init__(self, registry: Registry, progress: Progress) -> None:
        self._registry, self._progress = registry, progress

    def prepare(self, record: FederationRecord) -> Learner:
        """Return the learner of the release that `record` starts from.

        Raises NotFound when the folder it was built in is gone, UnsupportedModel for a model without
        rows to judge it on.
        """
        release = self._registry.find(f"{record.model}@{record.release}")
        subject = read_subject(Path(release.run_dir))
        if subject.valid is None or subject.task not in LOSSES:
            raise UnsupportedModel(
                f"{record.model} was compiled from a file: there are no validation rows to judge a better one on; "
                f"build it from data to federate it"
            )
        options, section = record.options, _section(subject)
        share = section.held_out if options.held_out is None else options.held_out
        judge = Judge(
            self._registry,
            release,
            subject,
            self._progress,
            record.id,
            gate=options.gate or section.gate,
            unseen=share > 0 and not options.family,
            stays=strategy(options.strategy).personal == "head",
        )
        model, loss = judge.fp32(), LOSSES[subject.task]
        return Learner(
            model,
            loss,
            _rate(model),
            judge.evaluate,
            judge.release,
            surveys=judge.surveys,
            study=lambda: exact_study(subject, record.options),
            fitted=lambda found: exact_model(found, subject, source=model.source),
            settle=lambda found, shared: settle(
                found, shared, subject.calibration or Rows({}), loss=loss, rate=_rate(model)
            ),
            instead=instead(record.model, subject),
            held_out=share,
        )


def _section(subject: Subject) -> Federated:
    """Return what the project says of federations; one that was built before settings came has their defaults."""
    return Federated(**subject.project.federated.model_dump(warnings=False))


def _rate(model: OnnxModel) -> float:
    """Return what turns a learning rate for a standardized target into one for the target's own units.

    The gradient of a squared error grows with the square of the unit: dividing the rate by it gives the
    steps that training on the standardized target would take.
    """
    scale = graph.initializers(model).get(TARGET_SCALE)
    return 1.0 if scale is None else float(1 / scale**2)


@dataclasses.dataclass(frozen=True)
class Judge:
    """One release, the rows it was judged on, and whether a successor is better."""

    registry: Registry
    before: Release
    subject: Subject
    progress: Progress
    federation: str = ""
    gate: Gate = "better"
    unseen: bool = True  # the fleet's rows: a family is fitted on all of them, also on those held out of a training
    stays: bool = False  # the last layer of every device's model does not leave it

    def fp32(self) -> OnnxModel:
        bundle = self.registry.bundle_of(self.before)
        found = [variant for variant in bundle.manifest.variants if variant.name == FP32]
        if not found:
            raise NotFound(
                f"{self.before.model}@{self.before.number} carries no {FP32} graph to train: build it with fp32"
            )
        return OnnxModel(bundle.blobs[found[0].graph.digest], source=bundle.manifest.lineage.get("fitted", ""))

    def gain(self, old: OnnxModel, new: OnnxModel) -> Gain:
        """Return the gain on the validation rows, which are drawn again and again for both models."""
        rows, task, name = self.subject.valid or Rows({}), self.subject.task, self.subject.metric
        target = rows.target
        assert target is not None, "a data set always has its target"
        said = [verify.run_answers(one, Rows(rows.inputs), task) for one in (old, new)]
        rng, gains = np.random.default_rng(0), []
        for _ in range(RESAMPLES):
            drawn = rng.integers(0, len(target), len(target))
            scores = [metrics.evaluate(task, target[drawn], _drawn(one, drawn), [name])[name] for one in said]
            gains.append(-metrics.drop(name, *scores))
        low, high = np.nanquantile(gains, [0.025, 0.975])
        before, after = (metrics.evaluate(task, target, one, [name])[name] for one in said)
        return Gain(
            metric=name,
            before=before,
            after=after,
            value=-metrics.drop(name, before, after),
            low=float(low),
            high=float(high),
            rows=len(target),
            where="validation rows",
        )

    def surveys(self, candidate: OnnxModel) -> dict[str, Study]:
        """Return what the fleet is asked about `candidate`; not how well it does where other last layers answer."""
        asked = fleet_gate.surveys(candidate, self.fp32(), self.subject.task)
        return {name: study for name, study in asked.items() if not self.stays or name != fleet_gate.EVALUATION}

    def evaluate(self, model: OnnxModel) -> dict[str, float]:
        """Return the metric of the gates and the loss of `model` on the server's validation rows."""
        return self._scores(model, self.subject.valid or Rows({}))

    def _scores(self, model: OnnxModel, rows: Rows) -> dict[str, float]:
        task, metric = self.subject.task, self.subject.metric
        loss = "log_loss" if task == "classification" else "rmse"
        answers = verify.run_answers(model, Rows(rows.inputs), task)
        assert rows.target is not None, "a data set always has its target"
        found = metrics.evaluate(task, rows.target, answers, [metric, loss])
        return {"metric": found[metric], "loss": found[loss] if task == "classification" else found[loss] ** 2}

    def release(
        self, model: OnnxModel, rounds: Sequence[RoundRecord], findings: Findings = NOTHING_FOUND
    ) -> Mapping[str, Any]:
        """Walk `model` through the gates if the federation's own lets it, see `edgeml.federated.gate`."""
        old, metric = self.fp32(), self.subject.metric
        test = {
            name: self._scores(one, self.subject.held_out)["metric"]
            for name, one in (("before", old), ("after", model))
        }
        here = self.gain(old, model)
        fleet = fleet_gate.opinion(findings, metric, self.subject.task, unseen=self.unseen)
        own = own_models(rounds) if self.stays else None
        ruling = rule(self.gate, here, fleet.gain) if own is None else rule_own(here, own, self._limit(here.metric))
        if fleet.silent:
            ruling = Ruling(False, f"{fleet.silent}; edgeml federate --alone does without; here {here}")
        told = {
            "before": here.before,
            "after": here.after,
            "metric": metric,
            "test": test,
            "from": self.before.release,
            "gain_interval": [here.low, here.high],
            "fleet_evaluation": fleet.told,
            "gate": {**self._asks(own, findings), "passed": ruling.ships, "why": ruling.why},
        }
        if not ruling.ships:
            return {**told, "released": None, "reason": f"not released, {ruling.why}"}
        try:
            summary = self._walk(model, rounds, fleet_gate.ranges(findings), why=ruling.why)
        except VerificationError as error:
            return {**told, "released": None, "reason": f"not released, a gate refused it: {error}"}
        return {**told, "released": summary["release"], "reason": f"released as {summary['release']}, {ruling.why}"}

    def _asks(self, own: Own | None, findings: Findings) -> dict[str, str]:
        """Return the name of the rule that ruled and what it asks of a candidate."""
        if own is not None:
            return {"rule": OWN, "says": OWN_SAYS}
        told = GATES if fleet_gate.EVALUATION in findings else UNASKED
        return {"rule": self.gate, "says": told[self.gate]}

    def _limit(self, metric: str) -> float:
        """Return what devices without a model of their own may lose: what the project lets a variant lose."""
        target = (self.subject.valid or Rows({})).target
        return metrics.limit_of(metric, self.subject.project.compile.max_accuracy_drop, target)

    def _walk(
        self, model: OnnxModel, rounds: Sequence[RoundRecord], ranges: ActivationRanges | None, *, why: str
    ) -> dict[str, Any]:
        lineage = {
            **{name: told for name, told in self.subject.lineage.items() if name not in ("fitted", RANGES)},
            "onnx": model.digest,
            "parent": self.before.release,
            "federation": _told(self.federation, rounds),
            "gate": why,
            **_ranges_told(ranges),
        }
        devices = sorted({device for done in rounds for device in done.participants})
        note = f"learned in {len(rounds)} federated rounds on {len(devices)} devices ({', '.join(devices[:8])})"
        subject = dataclasses.replace(
            self.subject,
            reference=verify.run_answers(model, Rows(self.subject.held_out.inputs), self.subject.task),
            evidence=(),  # what the predecessor's source answered says nothing of new weights
            lineage=lineage,
            notes=(
                note,
                f"the gate was {why}",
                "its own float graph is the source that its variants are held to",
                *_calibrated(ranges),
            ),
            ranges=ranges,
        )
        run = key(model.digest, lineage, subject.project, versions())[:12]
        runs, watch = Path(self.before.run_dir).parent, Stopwatch(self.progress)
        desk = Desk(Cache(runs.parent / "cache"), watch, self.registry)
        return finish(
            prove(model, subject, desk),
            dataclasses.replace(subject, ranges=None),  # the next candidate has others
            Delivery(self.registry, runs / run, watch, "edgeml federate"),
        )


def own_models(rounds: Sequence[RoundRecord]) -> Own | None:
    """Return how the losses of the devices' own models moved, over the devices in the first round and in the last.

    Of both rounds before the local training: at the last it is what was learned together, with the layer that each
    device keeps. Every device counts alike. None where devices tell no losses.
    """
    if not any(done.own_losses for done in rounds):
        return None
    first, last = rounds[0].own_losses, rounds[-1].own_losses
    both = sorted(first.keys() & last.keys())
    before, after = (float(np.mean([told[name] for name in both])) if both else math.nan for told in (first, last))
    return Own(before=before, after=after, devices=len(both), rounds=len(rounds))


def _drawn(answers: Answers, index: np.ndarray) -> Answers:
    labels = None if answers.labels is None else answers.labels[index]
    return Answers(labels, answers.scores[index])


def _ranges_told(ranges: ActivationRanges | None) -> dict[str, str]:
    if ranges is None:
        return {}
    counts = {name: count.tolist() for name, count in ranges.counts.items()}
    return {RANGES: key(ranges.graph, ranges.rows, dict(ranges.ends), counts)}


def _calibrated(ranges: ActivationRanges | None) -> list[str]:
    return [] if ranges is None else [f"int8 holds the activations of {ranges.rows:,} rows of the fleet"]


def _told(federation: str, rounds: Sequence[RoundRecord]) -> str:
    """Return the rounds as a lineage names them, with the counts of their devices and rows.

    >>> _told("fed-1", [])
    'fed-1: 0 rounds'
    """
    devices, rows = ([str(len(done.participants)) for done in rounds], [f"{done.rows}" for done in rounds])
    counts = f" of {', '.join(devices)} devices and {', '.join(rows)} rows" if rounds else ""
    if any(done.held_out for done in rounds):
        counts += f", {', '.join(str(done.held_out) for done in rounds)} more held out"
    return f"{federation}: {len(rounds)} rounds{counts}"
