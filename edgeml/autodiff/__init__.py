"""OnnxModel -> TrainingGraph: reverse-mode differentiation from ONNX to ONNX.

`training_step` is the door; RULES has one gradient rule per operator, LOSSES one entry per loss.
"""

from edgeml.autodiff import tensors as tensors
from edgeml.autodiff.losses import LOSSES
from edgeml.autodiff.rules import RULES
from edgeml.autodiff.step import SGD, training_step

__all__ = ["LOSSES", "RULES", "SGD", "training_step"]
