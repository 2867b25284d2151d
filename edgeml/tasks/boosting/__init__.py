"""Gradient boosting over devices by histograms between agreed edges; `begin` is the door."""

from edgeml.tasks.boosting.study import KINDS, begin, checked, question

__all__ = ["KINDS", "begin", "checked", "question"]
