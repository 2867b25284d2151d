"""Programs that a device runs once over all its local rows: training, and studies made of sums over devices.

`training` makes a Task of a TrainingGraph; `permutation` is the order in which it visits the rows. `study` begins
the exact fit of a scikit-learn estimator over a fleet.
"""

from edgeml.tasks.local import Local
from edgeml.tasks.permutation import permutation
from edgeml.tasks.statistics import study
from edgeml.tasks.training import training

__all__ = ["Local", "permutation", "study", "training"]
