"""What the fleet is asked about a candidate, and what its answers mean for the gate.

The candidate and its predecessor are judged on the very same rows, so that the gain has an interval of its own: over
rows and over devices. Rows of devices are those it was trained on, too: the server's own rows are the judge of how
well it generalizes, the fleet's of whether it serves them worse than before.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edgeml import quantize, tasks
from edgeml.artifacts import ActivationRanges, ModelTask, OnnxModel
from edgeml.errors import UnsupportedModel
from edgeml.server import Finding, Findings
from edgeml.tasks.study import Study

EVALUATION, CALIBRATION = "evaluation", "calibration"
log = logging.getLogger(__name__)
FALLBACK: Mapping[ModelTask, str] = {"classification": "accuracy", "regression": "rmse"}


@dataclass(frozen=True)
class Opinion:
    """What the fleet said. `against` is the reason not to ship, "" when there is none."""

    told: Mapping[str, Any]
    against: str = ""
    sentence: str = ""  # what it said, with the numbers


def surveys(candidate: OnnxModel, before: OnnxModel, task: ModelTask) -> dict[str, Study]:
    """Return the studies whose answers `opinion` and `ranges` read."""
    asked: dict[str, Study] = {EVALUATION: tasks.evaluation(candidate, _judged(task), before=before)}
    try:
        asked[CALIBRATION] = tasks.calibration(*quantize.calibration_points(candidate))
    except UnsupportedModel as error:  # trees, for example
        log.info("nothing of the candidate becomes 8-bit: %s", error)
    return asked


def ranges(findings: Findings) -> ActivationRanges | None:
    """Return the activation ranges of the fleet's rows, None where the fleet did not tell them."""
    finding = findings.get(CALIBRATION)
    found: ActivationRanges | None = None if finding is None else finding.result
    return found


def opinion(findings: Findings, metric: str, task: ModelTask) -> Opinion:
    """Return what the fleet's answers say of the candidate; without one there is no reason against it, and it says so.

    It is against a candidate that is worse there, however little, by `metric` where sums can tell it, else by accuracy
    or the root mean squared error. Whether that is more than chance is told by the interval.
    """
    finding = findings.get(EVALUATION)
    if finding is None:
        return Opinion({"fleet_evaluation": None})
    if finding.result is None:
        return Opinion(
            {"fleet_evaluation": None},
            against=f"the fleet was asked and did not answer: {finding.why}; edgeml federate --alone does without",
        )
    return _judge(finding, metric if metric in finding.result.gains else FALLBACK[task])


def _judge(finding: Finding, name: str) -> Opinion:
    found = finding.result
    gain, after, before = found.gains[name], found.metric(name), found.before[name]
    low, high = gain.cautious
    where = f"{found.rows:,} rows of {len(finding.devices)} devices"
    moved = f"a gain of {gain.value:+.4f} [{low:+.4f}, {high:+.4f}]"
    change = f"{name} {before.value:.4f} -> {after.value:.4f} on {where}, {moved}"
    told = {
        "metric": name,
        "before": before.value,
        "after": after.value,
        "interval": [after.cautious[0], after.cautious[1]],
        "gain": gain.value,
        "gain_interval": [low, high],
        "rows": found.rows,
        "left_out": found.left_out,
        "devices": len(finding.devices),
        "certain": low > 0 or high < 0,
    }
    against = f"worse in the fleet: {change}" if gain.value < 0 else ""
    return Opinion({"fleet_evaluation": told}, against, change)


def _judged(task: ModelTask) -> Literal["classification", "regression"]:
    return "regression" if task == "regression" else "classification"
