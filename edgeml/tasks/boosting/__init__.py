"""Gradient boosting over devices by histograms between agreed edges; `begin` is the door."""

from edgeml.tasks.boosting.study import begin

__all__ = ["begin"]
