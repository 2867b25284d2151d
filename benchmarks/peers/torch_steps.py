"""One training step by stock onnxruntime beside torch's, in turns, in one process; needs torch, onnxruntime and numpy.

torch_steps.py FOLDER SECONDS [NAMES]: for each NAME.onnx there is NAME.npz with `in.<input>`, the parameters and the
state of our step, and prints a line of JSON: microseconds per step of every contender, and how far the losses of the
first steps lie apart. PYTHONPATH must hold the folder runtime/.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
from edgeml_runtime.session import Session

import numpy as np  # isort: skip
import torch  # type: ignore[import-not-found]
from torch import nn
from torch.nn import functional as F  # type: ignore[import-not-found]
from turns import Step, quartiles  # type: ignore[import-not-found]

torch.set_num_threads(1)
torch.set_num_interop_threads(1)
LR, MOMENTUM, CHECKED = 0.01, 0.9, 5
Arrays = dict[str, np.ndarray]


class Mlp(nn.Module):  # type: ignore[misc]
    def __init__(self, w: Any) -> None:
        super().__init__()
        self.w = w

    def forward(self, x: Any) -> Any:
        w = self.w
        return F.linear(F.relu(F.linear(x, w["w1"], w["b1"])), w["w2"], w["b2"])


class Cnn(Mlp):
    def forward(self, x: Any) -> Any:
        w = self.w
        for i in range(2):
            x = F.max_pool2d(F.relu(F.conv2d(x, w[f"w{i}"], w[f"b{i}"], padding=1)), 2)
        return F.linear(x.flatten(1), w["w2"], w["b2"])


class Depthwise(Mlp):
    def __init__(self, w: Any) -> None:
        super().__init__(w)
        tags = ["first", *(f"{kind}{i}" for i in range(4) for kind in ("deep", "point"))]
        self.running = {tag: (torch.zeros(64), torch.ones(64)) for tag in tags}

    def layer(self, x: Any, tag: str, **options: Any) -> Any:
        x = F.conv2d(x, self.w[f"{tag}/w"], **options)
        mean, variance = self.running[tag]
        return F.relu(F.batch_norm(x, mean, variance, self.w[f"{tag}/s"], self.w[f"{tag}/o"], training=True))

    def forward(self, x: Any) -> Any:
        x = self.layer(x, "first", stride=2, padding=(5, 1))
        for i in range(4):
            x = self.layer(x, f"deep{i}", padding=1, groups=64)
            x = self.layer(x, f"point{i}")
        return F.linear(x.mean((2, 3)), self.w["w"], self.w["b"])


class Lstm(nn.Module):  # type: ignore[misc]
    """torch has the gates input, forget, cell, output."""

    def __init__(self, w: Any) -> None:
        super().__init__()
        units = w["R"].shape[2]
        self.lstm, self.w = nn.LSTM(w["W"].shape[2], units, batch_first=True), w
        turned = [0, 2, 3, 1]
        with torch.no_grad():
            for name, value in {
                "weight_ih_l0": w["W"][0],
                "weight_hh_l0": w["R"][0],
                "bias_ih_l0": w["B"][0, : 4 * units],
                "bias_hh_l0": w["B"][0, 4 * units :],
            }.items():
                parts = value.reshape(4, units, -1)[turned].reshape(value.shape)
                getattr(self.lstm, name).copy_(parts)
        for name in "WRB":
            del w[name]

    def forward(self, x: Any) -> Any:
        _, (h, _) = self.lstm(x)
        return F.linear(h[0], self.w["w"], self.w["b"])


class Attention(Mlp):
    def dense(self, tag: str, x: Any) -> Any:
        return F.linear(x, self.w[f"{tag}/w"].T, self.w[f"{tag}/b"])

    def norm(self, tag: str, x: Any) -> Any:
        return F.layer_norm(x, (32,), self.w[f"{tag}/s"], self.w[f"{tag}/o"])

    def forward(self, x: Any) -> Any:
        q, k, v = (self.dense(tag, x).unflatten(2, (4, 8)).transpose(1, 2) for tag in "qkv")
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.norm("n1", x + self.dense("out", mixed))
        x = self.norm("n2", x + self.dense("down", F.relu(self.dense("up", x))))
        return F.linear(x.mean(1), self.w["w"], self.w["b"])


CLASSES: dict[str, Any] = {"mlp": Mlp, "cnn": Cnn, "depthwise": Depthwise, "lstm": Lstm, "attention": Attention}


def torch_step(name: str, arrays: Arrays, *, fused: bool = False, compiled: bool = False) -> Step:
    """Return a function that does one step and gives its loss."""
    learned = {k: v for k, v in arrays.items() if v.dtype == np.float32 and f"velocity.{k}" in arrays}
    w = nn.ParameterDict({k.replace(".", "/"): nn.Parameter(torch.tensor(v)) for k, v in learned.items()})
    net = CLASSES[name](w)
    x, target = torch.tensor(arrays["in.x"]), torch.tensor(arrays["in.target"])
    optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM, fused=fused or None)
    forward = torch.compile(lambda x, target: F.cross_entropy(net(x), target)) if compiled else None

    def step() -> float:
        optimizer.zero_grad()
        loss = forward(x, target) if forward else F.cross_entropy(net(x), target)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def our_step(path: Path, arrays: Arrays) -> Step:
    session = Session(path)
    state = {k: v for k, v in arrays.items() if not k.startswith("in.")}
    feeds = {"x": arrays["in.x"], "target": arrays["in.target"], "lr": np.array(LR, np.float32)}

    def step() -> float:
        found = session.run({**state, **feeds})
        for name in state:
            state[name] = found["new." + name]
        return float(found["loss"])

    return step


def ready(steps: dict[str, Step], name: str, make: Callable[[], Step]) -> tuple[dict[str, str], list[float]]:
    """Add a contender; one that does not work here says why."""
    try:
        step = make()
        losses = [step() for _ in range(CHECKED)]
    except Exception as error:
        return {name: f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"}, []
    steps[name] = step
    return {}, losses


def main() -> None:
    folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
    for name in sys.argv[3:] or CLASSES:
        arrays = dict(np.load(folder / f"{name}.npz"))
        steps: dict[str, Step] = {}
        failed: dict[str, str] = {}
        losses: dict[str, list[float]] = {}
        for label, make in {
            "edgeml": partial(our_step, folder / f"{name}.onnx", arrays),
            "torch eager": partial(torch_step, name, arrays),
            "torch eager, fused optimizer": partial(torch_step, name, arrays, fused=True),
            "torch.compile": partial(torch_step, name, arrays, compiled=True),
        }.items():
            why, losses[label] = ready(steps, label, make)
            failed |= why
        apart = {label: float(np.abs(np.subtract(losses[label], losses["edgeml"])).max()) for label in steps}
        found = {"us": quartiles(steps, seconds), "failed": failed, "losses_apart": apart}
        print(json.dumps({"net": name, "torch": torch.__version__, **found}), flush=True)


if __name__ == "__main__":
    main()
