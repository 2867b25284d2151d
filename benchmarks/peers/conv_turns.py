"""Gradients of convolutions by stock onnxruntime, form by form, and by torch if it is here, in turns, in one process.

conv_turns.py FOLDER SECONDS: for each SHAPE.json there are SHAPE.<form>.onnx, which take x, dy and w; prints a line of
JSON with microseconds (quartiles) of each. PYTHONPATH must hold the folder runtime/.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
from edgeml_runtime.session import Session

import numpy as np  # isort: skip

from turns import Step, quartiles  # type: ignore[import-not-found]

try:
    import torch  # type: ignore[import-not-found]
except ModuleNotFoundError:  # the table says so
    torch = None


def by_torch(of: Mapping[str, Any], arrays: Mapping[str, np.ndarray], wanted: str) -> Step:
    """Return a function that computes the gradient that is `wanted`: dx or dw."""
    x, dy, w = (torch.tensor(arrays[name]) for name in ("x", "dy", "w"))
    top, left, bottom, right = of["pads"]
    if (top, left) != (bottom, right):  # torch pads alike on both sides: the copy is not timed
        x = torch.nn.functional.pad(x, (left, right, top, bottom))
        top = left = 0
    options = [
        None,
        of["strides"],
        (top, left),
        (1, 1),
        False,
        (0, 0),
        of["group"],
        [wanted == "dx", wanted == "dw", False],
    ]
    return partial(torch.ops.aten.convolution_backward, dy, x, w, *options)


def contenders(path: Path) -> dict[str, Step]:
    """Return what is timed, by name."""
    of = json.loads(path.read_text(encoding="utf-8"))
    draw = np.random.default_rng(0)
    arrays = {name: draw.standard_normal(of[name]).astype(np.float32) for name in ("x", "dy", "w")}
    found: dict[str, Step] = {}
    for graph in sorted(path.parent.glob(f"{path.stem}.*.onnx")):
        session = Session(graph)
        feeds = {spec.name: arrays[spec.name] for spec in session.inputs}
        found[graph.suffixes[-2][1:]] = partial(session.run, feeds)
    if torch:
        torch.set_num_threads(1)
        for wanted in ("dw", "dx"):
            found[f"torch {wanted}"] = by_torch(of, arrays, wanted)
    return found


def main() -> None:
    for path in sorted(Path(sys.argv[1]).glob("*.json")):
        steps = contenders(path)
        for step in steps.values():
            step(), step()
        print(json.dumps({"shape": path.stem, "us": quartiles(steps, float(sys.argv[2]))}), flush=True)


if __name__ == "__main__":
    main()
