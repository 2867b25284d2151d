"""What the fleet is asked about a candidate, and what its answers say, for `edgeml.federated.gate` to rule on.

The candidate and its predecessor are judged on the very same rows, so that the gain has an interval of its own: over
rows and over devices. They are rows that the devices held out of the training.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edgeml import quantize, tasks
from edgeml.artifacts import ActivationRanges, ModelTask, OnnxModel
from edgeml.errors import UnsupportedModel
from edgeml.federated.gate import Gain
from edgeml.server import Findings
from edgeml.tasks.study import Study

EVALUATION, CALIBRATION = "evaluation", "calibration"
log = logging.getLogger(__name__)
FALLBACK: Mapping[ModelTask, str] = {"classification": "accuracy", "regression": "rmse"}


@dataclass(frozen=True)
class Opinion:
    """What the fleet said: nothing where it was not asked, `silent` with the reason where it did not answer."""

    told: Mapping[str, Any] | None = None
    gain: Gain | None = None
    silent: str = ""


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


def opinion(findings: Findings, metric: str, task: ModelTask, *, unseen: bool) -> Opinion:
    """Return what the fleet's answers say of the candidate; `unseen` says whether it learned from none of these rows.

    By `metric` where sums can tell it, else by accuracy or the root mean squared error. Where the fleet was asked and
    did not answer, there is no gain but the reason.
    """
    finding = findings.get(EVALUATION)
    if finding is None:
        return Opinion()
    if finding.result is None:
        return Opinion(silent=f"the fleet was asked and did not answer: {finding.why}")
    found, name = finding.result, metric if metric in finding.result.gains else FALLBACK[task]
    gain, (low, high), devices = found.gains[name], found.gains[name].cautious, len(finding.devices)
    rows = f"held-out rows of {devices} devices" if unseen else f"rows of {devices} devices, learned from as well"
    after, before = found.metric(name), found.before[name].value
    told = {
        "metric": name,
        "before": before,
        "after": after.value,
        "interval": [after.cautious[0], after.cautious[1]],
        "gain": gain.value,
        "gain_interval": [low, high],
        "rows": found.rows,
        "held_out": unseen,
        "left_out": found.left_out,
        "devices": devices,
        "certain": low > 0 or high < 0,
    }
    values = {"before": before, "after": after.value, "value": gain.value, "low": low, "high": high}
    return Opinion(told, Gain(metric=name, rows=found.rows, where=rows, **values))


def _judged(task: ModelTask) -> Literal["classification", "regression"]:
    return "regression" if task == "regression" else "classification"
