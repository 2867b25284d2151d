"""What the names in a task graph mean, on both sides of the wire.

Inputs: the model's own inputs (or `x`, float (rows, features)), `target`, the offer's scalars and parameters, and
`kept.<name>`: what the device kept of this federation. Outputs: `delta.<parameter>` (training), sums under any other
name, `keep.<name>` (stays on the device), and for training the losses, which travel in the header.
"""

from __future__ import annotations

from typing import Literal

TaskKind = Literal["training", "statistics", "evaluation", "drift", "calibration"]
KINDS: dict[TaskKind, str] = {  # kind -> what the device is asked for
    "training": "a change of the model's weights, learned from labelled rows",
    "statistics": "sums over rows from which a model is computed exactly",
    "evaluation": "how well the model does on labelled rows: counts and sums of losses",
    "drift": "how the rows are distributed: counts in bins",
    "calibration": "the ranges of numbers inside the model, for its int8 form",
}
LABELLED: frozenset[TaskKind] = frozenset({"training", "evaluation"})  # the others take targets only if the graph does
ROWS_INPUT, TARGET = "x", "target"
DELTA, KEPT, KEEP = "delta.", "kept.", "keep."
OWN, SEEN, VARIATE = "personal.", "seen", "variate."  # of what is kept: a second model, whether it is the first time,
# control variates; all else is a parameter that stays here, by its name
LOSS_BEFORE, LOSS_AFTER, LOSS_CURVE, ROWS = "loss.before", "loss.after", "loss.curve", "rows"
HELD_OUT = "held_out"  # beside the losses in the header: labelled rows that the task did not see, see `wire.holdout`
LOSS_PERSONAL, STEPS = "loss.personal", "steps"  # of a second model that stays; of the optimizer
TRAINING_METRICS = frozenset(  # of training: never in the body of an upload
    {LOSS_BEFORE, LOSS_AFTER, LOSS_PERSONAL, LOSS_CURVE, ROWS, STEPS}
)
