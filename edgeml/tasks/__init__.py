"""Programs that a device runs once over all its local rows: training, and studies made of sums over devices.

`training` makes a Task of a TrainingGraph; `permutation` is the order in which it visits the rows. `study` fits a
scikit-learn estimator, boosted trees included, and `front` and `with_head` put it behind a model's own layers;
`evaluation` judges a model; `drift` compares rows with a `reference`; `calibration` finds what int8 has to hold.
"""

from edgeml.tasks.calibration import calibration
from edgeml.tasks.drift import drift, reference
from edgeml.tasks.evaluation import evaluation
from edgeml.tasks.front import Front, front, with_head
from edgeml.tasks.local import Local
from edgeml.tasks.permutation import permutation
from edgeml.tasks.statistics import study
from edgeml.tasks.training import training

__all__ = [
    "Front",
    "Local",
    "calibration",
    "drift",
    "evaluation",
    "front",
    "permutation",
    "reference",
    "study",
    "training",
    "with_head",
]
