"""Federations whose options name a family: the study that fits it on the rows of a release, and its way back."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeml import convert, tasks
from edgeml.artifacts import OnnxModel
from edgeml.errors import UnsupportedModel
from edgeml.pipeline.subject import Subject
from edgeml.registry import FederationOptions
from edgeml.tasks.study import Study
from edgeml.train.exact import exact_for, exact_pipeline
from edgeml_runtime.wire.manifest import NUMERIC


def exact_study(subject: Subject, options: FederationOptions) -> Study:
    """Return the study that fits the family of `options` over devices which hold rows like those of `subject`.

    Raises UnsupportedModel for rows with other columns than numbers, UserError for a family that does not fit them.
    """
    width = _width(subject, options.family)
    missing = bool(np.isnan(subject.held_out.inputs[NUMERIC]).any())  # then devices have holes, too
    estimator = exact_pipeline(options.family, subject.task, options.family_options, missing=missing)
    classes = range(len(subject.classes)) if subject.task == "classification" else ()
    return tasks.study(estimator, features=width, classes=tuple(classes), name=NUMERIC)


def exact_model(found: Any, subject: Subject, *, source: str) -> OnnxModel:
    """Return the fitted pipeline `found` as a graph with the inputs and outputs of the release it may follow."""
    return convert.from_sklearn(found, {NUMERIC: _width(subject, type(found).__name__)}, source=source)


def instead(model: str, subject: Subject) -> str:
    """Return what to federate where a release has no training graph."""
    families = exact_for(subject.task)
    return (
        f"fit one of {', '.join(families)} over the fleet instead, exactly, by sums: "
        f"edgeml federate {model} --family {families[0]}; or build a network, which trains in rounds: "
        f"federated: {{enabled: true}} in edgeml.yaml"
    )


def _width(subject: Subject, family: str) -> int:
    inputs = subject.held_out.inputs
    if set(inputs) != {NUMERIC}:
        others = ", ".join(sorted(set(inputs) - {NUMERIC}))
        raise UnsupportedModel(
            f"{family} is fitted over a fleet on columns of numbers, and this model also takes {others}: encode them "
            f"as numbers in the data, or train a network in rounds"
        )
    return int(inputs[NUMERIC].shape[1])
