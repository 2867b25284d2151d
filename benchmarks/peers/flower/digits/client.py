"""A client that runs edgeml's own task graph on stock onnxruntime: what Flower costs beside the training."""

import json
import os
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before onnxruntime is imported

import numpy as np
import onnxruntime
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on the rows of this client's partition from the weights that came."""
    work = Path(str(context.run_config["work"]))
    rows = np.load(work / f"share-{context.node_config['partition-id']}.npz")
    offers = json.loads((work / "offers.json").read_text(encoding="utf-8"))
    scalars = offers[int(message.content["config"]["server-round"]) - 1]["scalars"]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(work / "task.onnx"), options, providers=["CPUExecutionProvider"])
    weights = dict(zip(offers[0]["names"], message.content["arrays"].to_numpy_ndarrays(), strict=True))
    feeds = {**weights, "numeric": rows["pixels"], "target": rows["digits"]}
    feeds["lr"] = np.asarray(scalars["lr"], np.float32)
    feeds["seed"] = np.asarray(scalars["seed"], np.int64)
    names = [output.name for output in session.get_outputs()]
    answers = dict(zip(names, session.run(names, feeds), strict=True))
    new = ArrayRecord([value + answers[f"delta.{name}"] for name, value in weights.items()])
    metrics = MetricRecord({"num-examples": len(rows["digits"]), "loss": float(answers["loss.after"])})
    return Message(RecordDict({"arrays": new, "metrics": metrics}), reply_to=message)
