"""TrainingGraph -> Task: programs that a device runs once over all its local rows.

`training` is the door; `permutation` is the order in which such a task visits the rows.
"""

from edgeml.tasks.local import Local
from edgeml.tasks.permutation import permutation
from edgeml.tasks.training import training

__all__ = ["Local", "permutation", "training"]
