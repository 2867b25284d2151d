"""How good a model is on rows that stay where they are: one round, and metrics with intervals.

OnnxModel, [the one before] -evaluation-> Study -> Evaluation: metrics by group, confusion, calibration, gains
"""

from edgeml.tasks.evaluation.groups import By
from edgeml.tasks.evaluation.intervals import Estimate
from edgeml.tasks.evaluation.result import Evaluation, Group
from edgeml.tasks.evaluation.study import evaluation

__all__ = ["By", "Estimate", "Evaluation", "Group", "evaluation"]
