"""Estimators whose training is a sum over devices, so that a fleet fits what pooled rows would have fitted.

`study` is the door; `FAMILIES` is the table behind it.
"""

from edgeml.tasks.statistics.counts import Cooccurrence
from edgeml.tasks.statistics.families import FAMILIES, Family, begin, study

__all__ = ["FAMILIES", "Cooccurrence", "Family", "begin", "study"]
