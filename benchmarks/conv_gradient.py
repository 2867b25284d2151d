"""The forms of a convolution's gradients, in turns, beside torch: which is fastest for which shape, and what is chosen.

    PYTHONPATH=.:runtime python benchmarks/conv_gradient.py [--seconds 2]

One thread; shapes of networks that fit an edge device, batch first. `form_of` and `back_of` of
edgeml/autodiff/convolution.py choose; the last columns compare the choice with the fastest form and with torch, which
lives in an environment of its own (benchmarks/training_step.py, EDGEML_TORCH_PYTHON).
Writes results/conv_gradient.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgeml.autodiff import banded
from edgeml.autodiff.backward import live
from edgeml.autodiff.builder import GraphBuilder
from edgeml.autodiff.convolution import BACKS, FORMS, back_of, form_of, turns
from edgeml.autodiff.window import Layer, Tensors, kernel_of, layer_of, window
from edgeml_runtime.measure import environment

HERE = Path(__file__).parent
RESULTS = HERE / "results"
SHAPES = (  # batch, channels in, height, width, channels out, kernel, stride, groups
    (32, 1, 28, 28, 32, 5, 1, 1),
    (32, 32, 14, 14, 64, 5, 1, 1),
    (32, 16, 14, 14, 32, 3, 1, 1),
    (16, 16, 32, 32, 32, 3, 2, 1),
    (16, 64, 16, 16, 64, 3, 1, 1),
    (16, 3, 32, 32, 16, 3, 1, 1),
    (16, 3, 96, 96, 16, 3, 2, 1),
    (32, 64, 4, 4, 128, 3, 1, 1),
    (32, 128, 2, 2, 128, 3, 1, 1),
    (16, 64, 24, 24, 128, 1, 1, 1),
    (32, 64, 25, 5, 64, 1, 1, 1),
    (32, 64, 25, 5, 64, 3, 1, 64),
    (16, 16, 64, 64, 16, 3, 1, 16),
    (16, 32, 48, 48, 32, 3, 1, 32),
    (16, 64, 24, 24, 64, 3, 2, 64),
    (16, 64, 24, 24, 64, 5, 1, 64),
    (16, 128, 6, 6, 128, 3, 1, 128),
    (16, 64, 16, 16, 64, 3, 1, 4),
)
Shape = tuple[int, ...]


def words(shape: Shape) -> str:
    batch, inner, height, width, outer, kernel, stride, groups = shape
    return f"{batch} x {height}x{width}, {inner} to {outer}, k{kernel} s{stride}{f' g{groups}' * (groups > 1)}"


def prepared(shape: Shape) -> tuple[ModelProto, Layer]:
    """Return a convolution of `shape`, padded as Keras does, as a model, and what is known of it."""
    batch, inner, height, width, outer, kernel, stride, groups = shape
    weight = numpy_helper.from_array(np.zeros((outer, inner // groups, kernel, kernel), np.float32), "w")
    pads = [kernel // 2] * 4 if stride == 1 else [0, 0, kernel // 2, kernel // 2]
    node = helper.make_node("Conv", ["x", "w"], ["y"], strides=[stride] * 2, pads=pads, group=groups)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, inner, height, width])
    graph = helper.make_graph([node], "conv", [x], [helper.make_empty_tensor_value_info("y")], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    g = GraphBuilder(model)
    layer = layer_of(g, ("x", "y"), weight="w", move=window(g, node, kernel_of(g, node)))
    assert layer is not None
    return model, layer


def write(folder: Path, number: int, shape: Shape) -> dict[str, str]:
    """Write the graphs of every form for `shape` into `folder`; return which are chosen."""
    model, layer = prepared(shape)
    stem = f"{number:02d}"
    makers = {f"dw-{n}": f for n, f in FORMS.items()} | {f"dx-{n}": f for n, f in BACKS.items()}
    if banded.height_of(layer):
        makers |= {"y-conv": _plain, "y-banded": banded.forward}
    for name, make in makers.items():
        if ("banded" in name and not banded.height_of(layer)) or (name == "dx-turned" and not turns(layer)):
            continue
        g = GraphBuilder(model)
        made = make(g, layer, ("x", "dy", "w"))
        (folder / f"{stem}.{name}.onnx").write_bytes(_graph(model, g, made, layer))
    y = [shape[0], layer.outer, *layer.after]
    sizes = {"x": list(shape[:4]), "dy": y, "w": [layer.outer, layer.inner, *layer.move.kernel]}
    of = {"pads": layer.move.pads, "strides": layer.move.strides, "group": layer.move.group}
    (folder / f"{stem}.json").write_text(json.dumps(sizes | of), encoding="utf-8")
    return {"dw": f"dw-{form_of(layer)}", "dx": f"dx-{back_of(layer)}"}


def _plain(g: GraphBuilder, layer: Layer, tensors: Tensors) -> str:
    """The operator itself, its weight no constant."""
    move = layer.move
    options = {"strides": move.strides, "pads": move.pads, "group": move.group}
    return g.op("Conv", tensors[0], tensors[2], **options)


def _graph(model: ModelProto, g: GraphBuilder, made: str, layer: Layer) -> bytes:
    nodes = [*live(g.nodes, [made]), helper.make_node("Identity", [made], ["made"])]
    used = {name for node in nodes for name in node.input}
    constants = [numpy_helper.from_array(a, name) for name, a in g.constants.items() if name in used - {"w"}]
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    shapes: dict[str, list[int]] = {
        "x": [batch, layer.inner * layer.move.group, *layer.before],
        "dy": [batch, layer.outer, *layer.after],
        "w": [layer.outer, layer.inner, *layer.move.kernel],
    }
    given = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items() if n in used]
    graph = helper.make_graph(nodes, "gradient", given, [helper.make_empty_tensor_value_info("made")], constants)
    return bytes(helper.make_model(graph, opset_imports=model.opset_import, ir_version=9).SerializeToString())


def measured(seconds: float) -> list[dict[str, Any]]:
    """Return a row for each shape."""
    python = os.environ.get("EDGEML_TORCH_PYTHON", sys.executable)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        chosen = [write(folder, number, shape) for number, shape in enumerate(SHAPES)]
        env = {**os.environ, "PYTHONPATH": str(HERE.parent / "runtime"), "OMP_NUM_THREADS": "1"}
        command = [python, str(HERE / "peers/conv_turns.py"), made, str(seconds)]
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        raise SystemExit(done.stderr.strip()[-600:])
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [
        {"shape": shape, "chosen": choice, "us": line["us"]}
        for shape, choice, line in zip(SHAPES, chosen, lines, strict=True)
    ]


def row(found: Mapping[str, Any]) -> str:
    """Return one line of the table."""
    medians = {name: quartiles[1] / 1e3 for name, quartiles in found["us"].items()}
    cells = [f"{medians[n]:.2f}" if n in medians else "" for n in COLUMNS]
    picked = [medians[found["chosen"][part]] for part in ("dw", "dx")]
    best = [min(v for name, v in medians.items() if name.startswith(part)) for part in ("dw", "dx")]
    both = sum(medians.get(f"torch {part}", float("nan")) for part in ("dw", "dx"))
    choices = " ".join(found["chosen"][part][3:] for part in ("dw", "dx"))
    ratio = f"{sum(picked) / both:.2f}" if both == both else "not measured"
    return f"| {words(found['shape'])} | {' | '.join(cells)} | {choices} | {sum(picked) / sum(best):.2f} | {ratio} |"


COLUMNS = [
    "y-conv",
    "y-banded",
    *(f"dw-{name}" for name in FORMS),
    *(f"dx-{name}" for name in BACKS),
    "torch dw",
    "torch dx",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="For each shape.")
    rows = measured(parser.parse_args().seconds)
    head = [name.replace("-", " ") for name in COLUMNS]
    lines = [
        "Medians in ms, one thread. Last: the time of the chosen forms over that of the fastest, and over torch's.",
        "",
        f"| layer | {' | '.join(head)} | chosen | of fastest | of torch |",
        "|---|" + "---:|" * len(head) + "---|---:|---:|",
        *map(row, rows),
    ]
    document = {"environment": environment(), "results": rows}
    (RESULTS / "conv_gradient.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "conv_gradient.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
