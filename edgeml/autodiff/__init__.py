"""OnnxModel -> TrainingGraph: reverse-mode differentiation from ONNX to ONNX.

`training_step` is the door; RULES has one gradient rule per operator, LOSSES one entry per loss.
"""

from edgeml.autodiff import activations as activations
from edgeml.autodiff import convolution as convolution
from edgeml.autodiff import criteria as criteria
from edgeml.autodiff import einsum as einsum
from edgeml.autodiff import movement as movement
from edgeml.autodiff import normalization as normalization
from edgeml.autodiff import pooling as pooling
from edgeml.autodiff import recurrent as recurrent
from edgeml.autodiff import reductions as reductions
from edgeml.autodiff import sampling as sampling
from edgeml.autodiff import tensors as tensors
from edgeml.autodiff import turns as turns
from edgeml.autodiff.losses import LOSSES, Options
from edgeml.autodiff.optimizers import OPTIMIZERS, SGD, Adagrad, Adam, Optimizer, RMSprop
from edgeml.autodiff.rules import RULES
from edgeml.autodiff.shaping import Shaping
from edgeml.autodiff.step import training_step

__all__ = [
    "LOSSES",
    "OPTIMIZERS",
    "RULES",
    "SGD",
    "Adagrad",
    "Adam",
    "Optimizer",
    "Options",
    "RMSprop",
    "Shaping",
    "training_step",
]
