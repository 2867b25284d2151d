"""What most people write, and onnxruntime_perf_test does (it is not in the wheel): InferenceSession.run in a loop.

python benchmarks/peers/ort_loop.py MODEL SECONDS       one thread, no spinning, twenty runs of warm-up
"""

import json
import os
import statistics
import sys
import time

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = onnxruntime.InferenceSession(sys.argv[1], options)
spec = session.get_inputs()[0]
shape = [axis if isinstance(axis, int) else 1 for axis in spec.shape]
feeds, times = {spec.name: np.random.default_rng(0).random(shape, np.float32)}, []
for _ in range(20):
    session.run(None, feeds)
until = time.perf_counter() + float(sys.argv[2])
while time.perf_counter() < until:
    start = time.perf_counter()
    session.run(None, feeds)
    times.append((time.perf_counter() - start) * 1e3)
print(json.dumps({"p50_ms": statistics.median(times), "p90_ms": statistics.quantiles(times, n=10)[8]}))
