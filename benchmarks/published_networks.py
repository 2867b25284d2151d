"""The networks whose timings were published, as graphs with zero weights, and their work by class.

    PYTHONPATH=. python benchmarks/published_networks.py          writes edgeml/bench/predict/published_works.csv

Each is written from the table of its paper or its published definition. NETWORKS has the multiply-accumulates that
those state in millions, 0 where they state nothing comparable; the script refuses a graph that is more than 6 % and a
million away. Borders are padded evenly, so that AlexNet and SqueezeNet take pictures a little smaller than 227. Left
out of the ncnn tables are networks without a public table of layers that could be checked that way (blazeface, the
YOLO-fastest family, squeezenet_ssd, vision_transformer, ...).
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.published_classifiers import (
    LARGE,
    SMALL,
    alexnet,
    efficientnet,
    efficientnet_v2_b0,
    googlenet,
    mnasnet,
    mobilenet_v1,
    mobilenet_v2,
    mobilenet_v3,
    proxyless,
    regnety,
    resnet18,
    resnet50,
    shufflenet_v1,
    shufflenet_v2,
    squeezenet,
    vgg16,
)
from benchmarks.published_detectors import DET, efficientdet, mobilenet_ssd, nanodet_m, yolo_v4_tiny, yolox
from benchmarks.published_layers import Zeros
from edgeml import graph
from edgeml.bench.predict.works import Work, work_of

WORKS = Path(__file__).resolve().parents[1] / "edgeml/bench/predict/published_works.csv"
CLOSE = 0.06  # pools, squeeze gates and dense heads are counted by some papers and not by others
Build = Callable[[Zeros], Any]
NETWORKS: dict[str, tuple[int, Build, float]] = {  # name -> side of the picture, layers, published MACs in millions
    "squeezenet": (225, squeezenet, 0),
    "mobilenet": (224, mobilenet_v1, 569),
    "mobilenet_v2": (224, mobilenet_v2, 300),
    "mobilenet_v3": (224, mobilenet_v3, 219),
    "shufflenet": (224, shufflenet_v1, 137),
    "shufflenet_v2": (224, shufflenet_v2, 146),
    "mnasnet": (224, mnasnet, 315),
    "proxylessnasnet": (224, proxyless, 320),
    "efficientnet_b0": (224, efficientnet, 390),
    "efficientnetv2_b0": (224, efficientnet_v2_b0, 720),
    "regnety_400m": (224, regnety, 400),
    "googlenet": (224, googlenet, 1580),
    "resnet18": (224, resnet18, 1814),
    "alexnet": (220, alexnet, 724),
    "vgg16": (224, vgg16, 15470),
    "resnet50": (224, resnet50, 3858),
    "resnet50-v1.5": (224, partial(resnet50, late=True), 4089),
    "mobilenet_ssd": (300, mobilenet_ssd, 1150),
    "yolov4-tiny": (416, yolo_v4_tiny, 3455),
    "nanodet_m": (320, nanodet_m, 360),
    "yolox-nano": (416, partial(yolox, depth=0.33, width=0.25, separable=True), 540),
    "yolox-tiny": (416, partial(yolox, depth=0.33, width=0.375), 3225),
    "yolox-s": (640, partial(yolox, depth=0.33, width=0.5), 13400),
    "yolox-m": (640, partial(yolox, depth=0.67, width=0.75), 36900),
    "yolox-l": (640, partial(yolox, depth=1.0, width=1.0), 77800),
}
V1 = {0.25: (14, 21, 30, 41), 0.5: (49, 77, 110, 149), 0.75: (104, 162, 233, 317), 1.0: (186, 291, 418, 569)}
V2 = {
    0.35: (11, 20, 30, 43, 59),
    0.5: (18, 32, 50, 71, 97),
    0.75: (39, 69, 107, 153, 209),
    1.0: (56, 99, 154, 221, 300),
    1.3: (0, 0, 0, 0, 509),
    1.4: (0, 0, 0, 0, 582),
}
for _width, _published in V1.items():
    for _side, _macs in zip((128, 160, 192, 224), _published, strict=True):
        NETWORKS[f"mobilenet-v1-{_width}-{_side}"] = (_side, partial(mobilenet_v1, width=_width), _macs)
for _width, _published2 in V2.items():
    for _side, _macs in zip((96, 128, 160, 192, 224), _published2, strict=True):
        if _macs:
            NETWORKS[f"mobilenet-v2-{_width}-{_side}"] = (_side, partial(mobilenet_v2, width=_width), _macs)
for _name, _rows, _width, _minimal, _macs in (
    ("large", LARGE, 1.0, False, 219),
    ("large", LARGE, 0.75, False, 155),
    ("large-minimalistic", LARGE, 1.0, True, 209),
    ("small", SMALL, 1.0, False, 56),
    ("small", SMALL, 0.75, False, 44),
    ("small-minimalistic", SMALL, 1.0, True, 0),
):
    _build = partial(mobilenet_v3, rows=_rows, width=_width, minimal=_minimal)
    NETWORKS[f"mobilenet-v3-{_name}_224_{_width}"] = (224, _build, _macs)
for _size, (_side, _width, _depth, _macs) in enumerate(
    ((224, 1.0, 1.0, 407), (240, 1.0, 1.1, 631), (260, 1.1, 1.2, 899), (280, 1.2, 1.4, 1440), (300, 1.4, 1.8, 2640))
):
    NETWORKS[f"efficientnet-lite{_size}"] = (_side, partial(efficientnet, width=_width, depth=_depth, lite=True), _macs)
for _size in DET:
    NETWORKS[f"EfficientDet-lite{_size}"] = (DET[_size][0], partial(efficientdet, size=_size), 0)


def work(name: str) -> Work:
    """Return the work of a published network."""
    side, build, _ = NETWORKS[name]
    net = Zeros((1, 3, side, side))
    made = build(net)
    return work_of(graph.cost(net.done(made)))


def main() -> None:
    wanted = re.compile(sys.argv[1] if len(sys.argv) > 1 else ".")
    far, rows = [], []
    for name, (_, _, published) in NETWORKS.items():
        if not wanted.search(name):
            continue
        found = work(name)
        macs = found.macs / 1e6
        off = macs / published - 1 if published else 0.0
        far += [name] if abs(off) > CLOSE and abs(macs - published) > 1 else []
        print(f"{name:40} {macs:9.1f} M, published {published:9.1f}, {off:+.1%}")
        rows.append({"model": name, **found.plain()})
    if far:
        raise SystemExit(f"not what was published: {', '.join(far)}")
    with WORKS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
