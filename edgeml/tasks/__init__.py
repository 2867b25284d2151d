"""Programs that a device runs once over all its local rows: training, and studies made of sums over devices.

`training` makes a Task of a TrainingGraph; `permutation` is the order in which it visits the rows. `study` fits a
scikit-learn estimator, boosted trees included; `evaluation` judges a model; `drift` compares rows with a `reference`;
`calibration` finds what int8 has to hold.
"""

from edgeml.tasks.calibration import calibration
from edgeml.tasks.drift import drift, reference
from edgeml.tasks.evaluation import evaluation
from edgeml.tasks.local import Local
from edgeml.tasks.permutation import permutation
from edgeml.tasks.statistics import study
from edgeml.tasks.training import training

__all__ = ["Local", "calibration", "drift", "evaluation", "permutation", "reference", "study", "training"]
