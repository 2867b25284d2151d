"""Which settings of a plan exclude each other, why, and what to change: one row each, checked before the first round.

`python -m edgeml.federated.combinations` prints the table for docs/learn.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeml.errors import UserError
from edgeml.federated.strategy import STRATEGIES
from edgeml_runtime.wire import MalformedMessage, compress
from edgeml_runtime.wire.secure import MAX_DEVICES

if TYPE_CHECKING:
    from edgeml.federated.plan import Plan


@dataclass(frozen=True)
class Exclusion:
    """Two settings that do not go together. `clash` says whether a plan has both."""

    one: str
    other: str
    why: str
    instead: str
    clash: Callable[[Plan], bool]


ROBUST = ("median", "trimmed_mean", "krum", "multi_krum", "bulyan")
PARTIAL = ("topk", "sign", "fp16", "int8")


def _noised(plan: Plan) -> bool:
    return bool(plan.privacy.where)


EXCLUSIONS: tuple[Exclusion, ...] = (
    Exclusion(
        "secure aggregation",
        "strategies that look at single updates ("
        + ", ".join(n for n, s in STRATEGIES.items() if "secure" in s.excludes)
        + ")",
        "the server has the sum of the updates and none of them",
        "fedavg, fedavgm, fedprox, fedadam or fedyogi; bounds on every value stay (secure.bound)",
        lambda plan: plan.secure is not None and "secure" in plan.row.excludes,
    ),
    Exclusion(
        "secure aggregation",
        "compression",
        "masks are noise in every bit: what top-k leaves out or int8 rounds could not be summed under them",
        'compress: "" and secure.bits: 16, which halves the bytes',
        lambda plan: plan.secure is not None and bool(plan.compress),
    ),
    Exclusion(
        "secure aggregation",
        "believe.clip_norm",
        "the server cannot shorten an update that it does not see",
        "privacy.clip_norm, which devices keep to themselves, or secure.bound",
        lambda plan: plan.secure is not None and plan.believe.clip_norm is not None,
    ),
    Exclusion(
        "secure aggregation",
        "rounds that close at a target before all have answered",
        "the devices asked beyond it would be the ones whose masks must be recovered",
        "cohort.target: 0 or cohort.over: 0, and a deadline",
        lambda plan: plan.secure is not None and plan.cohort.target > 0 and plan.cohort.over > 0,
    ),
    Exclusion(
        "secure aggregation",
        f"more than {MAX_DEVICES} devices a round",
        "every device must share secrets with every other, in messages of 64 KB",
        f"privacy.sampling, or a selector, for cohorts of at most {MAX_DEVICES}",
        lambda plan: plan.secure is not None and plan.min_devices > MAX_DEVICES,
    ),
    Exclusion(
        "noise on the server",
        "strategies that are no plain mean (" + ", ".join(n for n, s in STRATEGIES.items() if s.rule != "fedavg") + ")",
        "the noise is as large as one device's part of a mean; of a median or of a device that Krum chose it is not",
        "fedavg, fedavgm, fedprox, fedadam or fedyogi",
        lambda plan: plan.privacy.where == "server" and plan.row.rule != "fedavg",
    ),
    Exclusion(
        "noise on a device",
        "robust strategies (" + ", ".join(ROBUST) + ")",
        "updates that are mostly noise all look like outliers",
        "noise on the server, or fedavg",
        lambda plan: plan.privacy.where == "device" and plan.row.rule in ROBUST,
    ),
    Exclusion(
        "differential privacy",
        "qfedavg",
        "it weighs by losses, which are not noised and stay on the devices",
        "fedavg",
        lambda plan: _noised(plan) and plan.row.rule == "qfedavg",
    ),
    Exclusion(
        "differential privacy",
        "control variates (scaffold)",
        "they are as long as the update itself and would take up the same clip_norm",
        "fedavg, or fedprox against drift",
        lambda plan: _noised(plan) and plan.row.control,
    ),
    Exclusion(
        "differential privacy",
        "believe.clip_norm",
        "two clip norms: the noise is for privacy.clip_norm",
        "privacy.clip_norm alone",
        lambda plan: _noised(plan) and plan.believe.clip_norm is not None,
    ),
    Exclusion(
        "noise on a device",
        "top-k and sign",
        "the largest values of a noised update are those of the noise",
        "int8 or fp16, or noise on the server",
        lambda plan: plan.privacy.where == "device" and plan.compress.partition(":")[0] in ("topk", "sign"),
    ),
    Exclusion(
        "an adaptive clip norm",
        "secure aggregation, and noise on a device",
        "the server must see how long updates are",
        "privacy.adapt: 0 and a fixed clip_norm, or privacy.where: server without masks",
        lambda plan: plan.privacy.adapt > 0 and (plan.secure is not None or plan.privacy.where != "server"),
    ),
    Exclusion(
        "sampling below 1",
        "no differential privacy, or rounds that close at a target",
        "chance must decide who takes part, and speed must not",
        "cohort.target: 0, and privacy.where: server",
        lambda plan: plan.privacy.sampling < 1 and (plan.privacy.where != "server" or plan.cohort.target > 0),
    ),
)


def _late(plan: Plan) -> bool:
    return plan.mode == "async"


EXCLUSIONS += (
    Exclusion(
        "asynchronous rounds",
        "strategies that are no plain mean, and control variates",
        "updates are weighed by their age, and those of different rounds cannot be ranked or corrected together",
        "fedavg, fedavgm, fedprox, fedadam or fedyogi",
        lambda plan: _late(plan) and (plan.row.rule != "fedavg" or "async" in plan.row.excludes),
    ),
    Exclusion(
        "asynchronous rounds",
        "secure aggregation and differential privacy",
        "masks cancel, and noise is accounted for, within one cohort that begins and ends together",
        "synchronous rounds",
        lambda plan: _late(plan) and (plan.secure is not None or _noised(plan)),
    ),
    Exclusion(
        "asynchronous rounds",
        "rounds that close at a target",
        "a step is made when the buffer is full",
        "buffer.size",
        lambda plan: _late(plan) and plan.cohort.target > 0,
    ),
)


def check_plan(plan: Plan) -> None:
    """Raise UserError when settings of `plan` exclude each other, saying which, why, and what to change."""
    try:
        compress.parse(plan.compress)
    except MalformedMessage as error:
        raise UserError(str(error)) from error
    clashes = [row for row in EXCLUSIONS if row.clash(plan)]
    if clashes:
        raise UserError(
            "; ".join(f"{r.one} and {r.other} exclude each other: {r.why}; use {r.instead}" for r in clashes)
        )


def table() -> str:
    """Return the rows as a Markdown table."""
    head = ["| this | excludes | because | use instead |", "|---|---|---|---|"]
    return "\n".join(head + [f"| {r.one} | {r.other} | {r.why} | {r.instead} |" for r in EXCLUSIONS])


if __name__ == "__main__":
    print(table())
