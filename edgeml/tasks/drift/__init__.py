"""Whether a fleet's rows are still like those a model was made from: one round of counts, no targets needed.

OnnxModel, reference Rows -reference-> Reference        Reference -drift-> Study -> Drift, by feature
"""

from edgeml.tasks.drift.distances import Distances, distances
from edgeml.tasks.drift.reference import Reference, reference
from edgeml.tasks.drift.study import Drift, drift

__all__ = ["Distances", "Drift", "Reference", "distances", "drift", "reference"]
