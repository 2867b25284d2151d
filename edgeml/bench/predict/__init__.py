"""Latency and memory of a graph on a board, always with a range and the method it comes from.

OnnxModel x DeviceProfile -predict-> Prediction, "prior";  OnnxModel x Calibration -predict_calibrated-> Prediction
Variant x Known -predict_for-> Prediction: measured, or every estimate combined
"""

from edgeml.bench.predict.calibrated import predict_calibrated
from edgeml.bench.predict.combine import combine
from edgeml.bench.predict.fit import Kernels
from edgeml.bench.predict.known import Known, predict_for
from edgeml.bench.predict.memory import memory_mb
from edgeml.bench.predict.roofline import predict

__all__ = ["Kernels", "Known", "combine", "memory_mb", "predict", "predict_calibrated", "predict_for"]
