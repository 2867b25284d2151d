"""Latency and memory of a graph on a board, always with a range and the method it comes from.

OnnxModel x DeviceProfile -predict-> Prediction;  OnnxModel x Calibration -predict_calibrated-> Prediction
"""

from edgeml.bench.predict.calibrated import predict_calibrated
from edgeml.bench.predict.fit import Kernels
from edgeml.bench.predict.roofline import predict

__all__ = ["Kernels", "predict", "predict_calibrated"]
