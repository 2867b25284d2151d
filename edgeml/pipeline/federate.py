"""Federations as documents: a project's, simulated over virtual devices, and a fleet's; each with its report."""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeml import graph, report
from edgeml.artifacts import TARGET_SCALE, Dataset, OnnxModel
from edgeml.autodiff import training_step
from edgeml.errors import NotFound, UserError
from edgeml.federated import Believe, BufferOptions, CohortOptions, Masks, Plan, Privacy, least_updates, strategy
from edgeml.federated.combinations import check_plan
from edgeml.federated.partition import check_spec, is_column, partition, skew
from edgeml.files import Cache
from edgeml.pipeline.finish import write_page
from edgeml.pipeline.fleet import federation_summary, own_models
from edgeml.pipeline.plan import key, plan_build
from edgeml.pipeline.prove import Desk
from edgeml.pipeline.run import Progress
from edgeml.pipeline.run import silent as to_nobody
from edgeml.pipeline.stages import learn, read
from edgeml.pipeline.subject import Stopwatch
from edgeml.project import Project
from edgeml.registry import FederationRecord, Registry
from edgeml.simulation import Conditions, Fleet, RoundTold, Simulated, simulate
from edgeml.simulation.fleet import scores
from edgeml.simulation.simulate import processes

LOSSES = {"classification": "softmax_cross_entropy", "regression": "mse"}
MANY = 200  # devices: from here on it pays to start processes
FOLDER, DOCUMENT = "federations", "report.html"
GO_WRONG = ("stragglers", "silent", "dropouts", "byzantine", "attack")


@dataclass(frozen=True, kw_only=True)
class SimulationOptions:
    """What `edgeml federate --simulate` takes; None: what the project says."""

    devices: int
    partition: str = "iid"
    strategy: str = "fedavg"
    compress: str = ""
    privacy: Privacy = dataclasses.field(default_factory=Privacy)
    secure: Masks | None = None
    rounds: int | None = None
    per_round: int = 0  # devices asked in each; 0: all
    local_epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    momentum: float | None = None
    mu: float | None = None
    byzantine: float = 0.0
    attack: str = "garbage"
    stragglers: float = 0.0
    silent: float = 0.0
    dropouts: float = 0.0
    held_out: float = 0.0
    buffer: int = 0  # updates that make an asynchronous step; 0: rounds that begin and end together
    speeds: float = Conditions.speeds
    workers: int | None = None
    seed: int = 0
    command: str = "edgeml federate"
    progress: Progress = dataclasses.field(default=to_nobody)

    @property
    def decisive(self) -> dict[str, Any]:
        """The options that decide the result."""
        beside = ("command", "progress", "workers")
        masks = {} if self.secure is None else {"secure": dataclasses.asdict(self.secure)}
        return {
            one.name: getattr(self, one.name)
            for one in dataclasses.fields(self)
            if one.name not in (*beside, "privacy", "secure")
        } | {**dataclasses.asdict(self.privacy), **masks}


def simulate_project(
    project: Project, options: SimulationOptions, on_round: Callable[[RoundTold], None] | None = None
) -> dict[str, Any]:
    """Return the document of a federation over the training rows of `project`, which starts from fresh weights.

    The model is the one that the project trains; what it reaches, trained on all rows at once, is `centralized`.
    """
    began, spec = time.perf_counter(), options.partition
    plan, conditions = plan_of(project, options), _conditions(options)
    check_plan(plan)
    conditions.check(plan)
    check_spec(spec)
    if plan.quorum > options.devices:
        raise UserError(
            f"{options.strategy} against {plan.believe.byzantine} liars needs {plan.quorum} updates a round, and there "
            f"are {options.devices} devices: ask for more devices or fewer liars"
        )
    if is_column(spec) and project.data.group != spec:
        project = project.model_copy(update={"data": project.data.model_copy(update={"device": spec})})
    watch = Stopwatch(options.progress)
    build = plan_build(project.model_copy(update={"federated": project.federated.model_copy(update={"enabled": True})}))
    desk = Desk(Cache(build.work / "cache"), watch)
    dataset = read(build, desk)
    shares = _shares(dataset, options, by_group=project.data.group == spec)
    fitted, model = learn(build, desk, dataset)
    fleet = _fleet(dataset, fresh(model, loss=LOSSES[dataset.task], seed=options.seed), shares)
    plan = dataclasses.replace(plan, learning_rate=plan.learning_rate * _rate(model))
    buffer = BufferOptions(size=options.buffer or 1, at_once=options.per_round)
    found = simulate(fleet, plan, conditions, buffer=buffer, on_round=on_round)
    central = scores(dataclasses.replace(fleet, model=model), {})["metric"]
    folder = build.work / FOLDER / key(build.digest, options.decisive)[:12]
    document = {
        **_told(found, fleet.metric, central, personal=bool(strategy(plan.strategy).personal)),
        "model": project.name,
        "simulated": True,
        "devices": len(shares),
        "partition": f"{spec}, {options.devices} devices",
        "strategy": options.strategy,
        "compress": options.compress,
        "conditions": {name: getattr(options, name) for name in GO_WRONG},
        "buffer": options.buffer or None,
        "shares": [len(share) for share in shares],
        "skew": _skew(dataset, shares),
        "estimator": fitted.estimator,
        "seconds": time.perf_counter() - began,
        "created": _now(),
        "command": options.command,
        "report": str(folder / DOCUMENT),
    }
    write_page(folder / DOCUMENT, report.federation_page(document), {"json": document})
    return document


def plan_of(project: Project, options: SimulationOptions) -> Plan:
    """Return the plan of a simulation: what was asked for, else what the project's `federated` section says."""
    own = project.federated
    asked = {name: getattr(options, name) for name in ("rounds", "local_epochs", "batch_size", "learning_rate")}
    numbers = {name: getattr(own, name) if value is None else value for name, value in asked.items()}
    believe = Believe(byzantine=round(options.byzantine * (options.per_round or options.devices)))
    least = least_updates(strategy(options.strategy).rule, believe)
    return Plan(
        **numbers,
        momentum=own.momentum if options.momentum is None else options.momentum,
        strategy=options.strategy,
        mu=options.mu,
        compress=options.compress,
        privacy=options.privacy,
        secure=options.secure,
        min_devices=max(min(own.min_devices, options.devices, options.buffer or options.devices), least),
        min_rows=1,
        seed=options.seed,
        believe=believe,
        cohort=CohortOptions(target=0 if options.buffer else options.per_round, over=0.0),
        mode="async" if options.buffer else "sync",
    )


def fresh(model: OnnxModel, *, loss: str, seed: int) -> OnnxModel:
    """Return `model` with untrained weights: uniform by fan-in and fan-out (Glorot and Bengio 2010), and zeros."""
    rng, found = np.random.default_rng(seed), {}
    for name, value in training_step(model, loss=loss).parameters.items():
        inner = int(np.prod(value.shape[2:])) if value.ndim > 2 else 1
        reach = np.sqrt(6 / max(1, inner * sum(value.shape[:2]))) if value.ndim > 1 else 0.0
        found[name] = rng.uniform(-reach, reach, value.shape).astype(np.float32)
    return graph.set_initializers(model, found)


def write_federation(registry: Registry, record: FederationRecord, *, command: str) -> dict[str, Any]:
    """Write the report of a fleet's federation beside the runs of its release; return what `--json` prints."""
    summary = {**federation_summary(record), "own_models": own_models(record, registry.devices())}
    runs = Path(registry.find(f"{record.model}@{record.release}").run_dir).parent
    path = runs.parent / FOLDER / record.id / DOCUMENT
    before = summary["before"]
    rounds = [{**done, "asked": len(done["participants"]) + len(done["refused"])} for done in summary["rounds"]]
    if not rounds or not isinstance(before, float):
        return summary
    document = {
        **summary,
        "rounds": rounds,
        "metric": summary["metric"] or "metric",
        "devices": sorted({device for done in record.rounds for device in done.participants}),
        "strategy": record.options.strategy,
        "compress": record.options.compress,
        "created": _now(),
        "command": command,
        "report": str(path),
    }
    write_page(path, report.federation_page(document), {"json": document})
    return {**summary, "report": str(path)}


def last_federation(registry: Registry, model: str) -> FederationRecord:
    """Return the newest federation of `model`; raise NotFound when there was none."""
    found = [record for record in registry.fleet.federations() if record.model == model]
    if not found:
        raise NotFound(f"no federation of {model!r} was ever asked for: run `edgeml federate {model}`")
    return found[-1]


def _shares(dataset: Dataset, options: SimulationOptions, *, by_group: bool) -> list[np.ndarray]:
    """Return the training rows of every device; a column that splits keep together has fewer values among them."""
    target, spec = dataset.train.target, options.partition
    assert target is not None, "a data set always has its target"
    owners = dataset.train_groups if by_group else dataset.train_devices if is_column(spec) else None
    if by_group and owners is not None and (left := len(np.unique(owners))) < options.devices:
        raise UserError(
            f"{options.devices} devices, and {left} values of {spec!r} left to learn from, as data.group keeps whole "
            f"ones for validation and test: ask for at most {left}, or name the column data.device instead"
        )
    return partition(spec, target, devices=options.devices, seed=options.seed, groups=owners)


def _fleet(dataset: Dataset, model: OnnxModel, shares: list[np.ndarray]) -> Fleet:
    return Fleet(
        model=model,
        shares=[dataset.train.take(share) for share in shares],
        valid=dataset.test,
        kind=dataset.task,
        loss=LOSSES[dataset.task],
        metric=dataset.metric,
    )


def _conditions(options: SimulationOptions) -> Conditions:
    workers = options.workers
    return Conditions(
        stragglers=options.stragglers,
        silent=options.silent,
        dropouts=options.dropouts,
        byzantine=options.byzantine,
        attack=options.attack,
        held_out=options.held_out,
        speeds=options.speeds,
        workers=(processes() if options.devices >= MANY else 0) if workers is None else workers,
    )


def _rate(model: OnnxModel) -> float:
    """Return what turns a learning rate for a standardized target into one for the target's own units."""
    scale = graph.initializers(model).get(TARGET_SCALE)
    return 1.0 if scale is None else float(1 / scale**2)


def _told(found: Simulated, metric: str, central: float, *, personal: bool) -> dict[str, Any]:
    rounds = [{**dataclasses.asdict(told), "participants": list(told.participants)} for told in found.rounds]
    after = found.rounds[-1].metric if found.rounds else found.before["metric"]
    own, shared = found.personal if found.judged else (None, None)
    return {
        "metric": metric,
        "rounds": rounds,
        "before": found.before["metric"],
        "after": after,
        "centralized": central,
        "personal": {"own": own if personal else None, "shared": shared} if found.judged else None,
        "released": None,
        "reason": "simulated: nothing is released",
        "liars": sorted(found.liars),
    }


def _skew(dataset: Dataset, shares: list[np.ndarray]) -> float | None:
    if dataset.task != "classification" or dataset.train.target is None:
        return None
    return skew(dataset.train.target, shares)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
