"""LiteRT's interpreter in the way of its benchmark_model, in the peers' environment: one JSON line.

    PEERS/bin/python benchmarks/peers/litert_loop.py MODEL SECONDS

Warms up for half a second, then at least 50 runs and SECONDS, one thread (tensorflow/lite/tools/benchmark).
"""

import json
import statistics
import sys
import time

import numpy as np
from ai_edge_litert.interpreter import Interpreter  # type: ignore[import-not-found]

interpreter = Interpreter(sys.argv[1], num_threads=1)
interpreter.allocate_tensors()
spec = interpreter.get_input_details()[0]
interpreter.set_tensor(spec["index"], np.random.default_rng(0).random(spec["shape"], np.float32))


def runs(seconds: float, least: int) -> list[float]:
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < least or time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        interpreter.invoke()
        times.append((time.perf_counter() - start) * 1e3)
    return times


runs(0.5, 1)
times = runs(float(sys.argv[2]), 50)
print(json.dumps({"p50_ms": statistics.median(times), "p90_ms": statistics.quantiles(times, n=10)[8]}))
