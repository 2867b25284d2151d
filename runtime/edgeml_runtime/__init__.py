"""The device side of edgeml: download, prove, run and train signed ONNX programs on stock onnxruntime.

Importing it sets, before onnxruntime and numpy can be imported, what they read only once:
onnxruntime >= 1.29 otherwise writes a device id under HOME and opens a connection at import, and
OpenBLAS starts a thread per core that a device never uses.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

__version__ = "0.1.0"
