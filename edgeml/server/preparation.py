"""What a federation does in the worker thread: make its task, score a model, make the candidate, judge it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeml import graph
from edgeml.artifacts import OnnxModel, Task
from edgeml.errors import UnsupportedModel, UserError
from edgeml.federated import Plan, strategy
from edgeml.federated.local import task_of
from edgeml.registry import FederationOptions, FederationRecord
from edgeml.server.learner import Learner, Retrain
from edgeml.tasks.study import Study

Scores = Mapping[str, float]


@dataclass(frozen=True)
class Start:
    """What preparation made: what devices do, and how well the release does that it starts from."""

    learner: Learner
    what: Task | Study
    before: Scores


@dataclass(frozen=True)
class Candidate:
    """The model that the rounds made, and what the fleet is asked about it."""

    model: OnnxModel
    studies: Mapping[str, Study]


def prepare(record: FederationRecord, retrain: Retrain) -> Start:
    """Return what `record` begins with; raise UnsupportedModel or UserError, saying what can be federated instead."""
    learner, options = retrain.prepare(record), record.options
    what = _study(learner, options) if options.family else _training(learner, options)
    return Start(learner, what, learner.evaluate(learner.model))


def plan_of(options: FederationOptions, learner: Learner) -> Plan:
    """Return the plan that `options` ask for."""
    return Plan(
        rounds=options.rounds,
        min_devices=options.min_devices,
        learning_rate=options.learning_rate * learner.rate,
        min_rows=options.min_rows,
        deadline_s=options.deadline_s,
        seed=options.seed,
        local_epochs=options.local_epochs,
        batch_size=options.batch_size,
        compress=options.compress,
        privacy=options.privacy,
        secure=options.secure,
        strategy=options.strategy,
        mu=options.mu,
        momentum=options.momentum,
        max_abandoned=options.max_abandoned,
        cohort=options.cohort,
        patience=options.patience,
        mode=options.mode,
        held_out=learner.held_out,
    )


def evaluate(learner: Learner, parameters: Mapping[str, np.ndarray]) -> Scores:
    """Return the scores of the model with these parameters, on the server's validation rows."""
    return learner.evaluate(_model(learner, parameters))


def trained(learner: Learner, parameters: Mapping[str, np.ndarray], options: FederationOptions) -> Candidate:
    """Return the candidate with these parameters; layers that stayed on the devices are the server's own."""
    model = _model(learner, parameters)
    if strategy(options.strategy).personal == "head":
        model = learner.settle(model, parameters.keys())
    return asked_about(learner, model, options)


def fitted(learner: Learner, found: Any, options: FederationOptions) -> Candidate:
    """Return the candidate that a study found."""
    assert learner.fitted is not None
    return asked_about(learner, learner.fitted(found), options)


def asked_about(learner: Learner, model: OnnxModel, options: FederationOptions) -> Candidate:
    """Return `model` as a candidate, with the questions about it: none where answers must be noised."""
    asks = options.ask_fleet and not options.privacy.where
    return Candidate(model, learner.surveys(model) if asks else {})


def _study(learner: Learner, options: FederationOptions) -> Study:
    if options.mode != "sync":
        raise UserError(f"{options.family} is fitted by sums over all devices: they cannot be asynchronous; use sync")
    if options.privacy.where:
        raise UserError(
            f"{options.family} is fitted by sums that carry no noise: leave privacy out, or train a network in rounds"
        )
    if learner.study is None or learner.fitted is None:
        raise UnsupportedModel(f"{options.family}: this model has no description of its rows to fit it on")
    return learner.study()


def _training(learner: Learner, options: FederationOptions) -> Task:
    try:
        return task_of(
            strategy(options.strategy),
            learner.model,
            loss=learner.loss,
            momentum=options.momentum,
            epochs=options.local_epochs,
            batch_size=options.batch_size,
        )
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{error}; {learner.instead}" if learner.instead else str(error)) from error


def _model(learner: Learner, parameters: Mapping[str, np.ndarray]) -> OnnxModel:
    return graph.set_initializers(learner.model, parameters)
