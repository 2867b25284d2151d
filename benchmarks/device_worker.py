"""A device that is another process, perhaps with another onnxruntime: reads requests, answers with what it measured.

It imports nothing but `edgeml_runtime`. A line of JSON in, one out: `environment`; `nodes` and `time` of a model file.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

import numpy as np

from edgeml_runtime.measure import Plan, environment, measure, operators
from edgeml_runtime.session import Session
from edgeml_runtime.wire.manifest import Settings


def answer(request: dict[str, Any]) -> Any:
    """Return what `request` asks for as plain values."""
    if request["ask"] == "environment":
        return environment()
    settings = Settings(**request["settings"])
    with np.load(request["feeds"]) as file:
        feeds = {name: file[name] for name in file}
    if request["ask"] == "nodes":
        found = operators(request["model"], feeds, runs=request["runs"], settings=settings, weights=True)
        return [asdict(node) for node in found]
    return asdict(measure(Session(request["model"], settings), feeds, Plan(**request["plan"])))


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
