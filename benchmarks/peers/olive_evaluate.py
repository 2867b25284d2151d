"""Olive's evaluator on one model, in Olive's environment: its latency metrics as one JSON line.

OLIVE/bin/python benchmarks/peers/olive_evaluate.py MODEL INPUT SHAPE RUNS
"""

import json
import sys

from olive.data.config import DataConfig  # type: ignore[import-not-found]
from olive.evaluator.metric import Metric, MetricType  # type: ignore[import-not-found]
from olive.evaluator.olive_evaluator import OnnxEvaluator  # type: ignore[import-not-found]
from olive.hardware import Device  # type: ignore[import-not-found]
from olive.model import ONNXModelHandler  # type: ignore[import-not-found]

model, name, shape, runs = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
rows = {"input_shapes": [shape], "input_names": [name], "input_types": ["float32"], "max_samples": 1}
session = {
    "intra_op_num_threads": 1,
    "inter_op_num_threads": 1,
    "extra_session_config": {"session.intra_op.allow_spinning": "0"},
}
metric = Metric(
    name="latency",
    type=MetricType.LATENCY,
    sub_types=[
        {"name": "p50", "metric_config": {"warmup_num": 20, "repeat_test_num": runs, "sleep_num": 0}},
        {"name": "p90"},
    ],
    data_config=DataConfig(
        name="rows", type="DummyDataContainer", load_dataset_config={"type": "dummy_dataset", **rows}
    ),
    user_config={"inference_settings": {"onnx": {"session_options": session}}},
)
found = OnnxEvaluator().evaluate(
    ONNXModelHandler(model), [metric], device=Device.CPU, execution_providers=["CPUExecutionProvider"]
)
told = {key.removeprefix("latency-"): value.value for key, value in found.root.items()}
print(json.dumps({"p50_ms": told["p50"], "p90_ms": told["p90"]}))
