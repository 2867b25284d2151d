"""Estimators whose training is a sum over devices, so that a fleet fits what pooled rows would have fitted.

`begin` is the door; `FAMILIES` is the table behind it.
"""

from edgeml.tasks.statistics.families import FAMILIES, Family, begin

__all__ = ["FAMILIES", "Family", "begin"]
