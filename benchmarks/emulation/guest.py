"""Runs models inside the emulated python and marks what the plugin counts: `guest.py JOBS ANSWERS`.

A job is a line of JSON with a model file, its inputs, and its nodes if another core told them; the answer to it, a
line too, holds the nodes in the order in which they ran. Each model leaves two recordings: one run under
onnxruntime's profiler, whose clock parts the nodes, and one without it, which is what a device runs. Nothing but
`edgeml_runtime` is imported.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edgeml_runtime.measure import operators
from edgeml_runtime.session import VERSION, Session
from edgeml_runtime.wire.manifest import Settings

MARK = 0x5EED  # what the plugin takes for a mark, as the first argument of getpriority
KERNEL = "_kernel_time"
mark = ctypes.CDLL(None).getpriority


def answer(index: int, job: Mapping[str, Any]) -> dict[str, Any]:
    """Run the model of `job` and return its nodes, in the order of the recording 2 * index + 1."""
    with np.load(job["feeds"]) as file:
        feeds = {name: file[name] for name in file}
    ran = _profiled(job["model"], feeds, 2 * index + 1)
    _plain(job["model"], feeds, 2 * index + 2)
    nodes = {node["name"]: node for node in job["nodes"]}
    if any(nodes.get(name, {}).get("operator") != operator for name, operator in ran):
        found = operators(job["model"], feeds, runs=1, settings=Settings(prepacking=False))
        nodes = {node.name: asdict(node) for node in found}
    return {"name": job["name"], "onnxruntime": VERSION, "nodes": [nodes[name] for name, _ in ran]}


def _profiled(model: str, feeds: Mapping[str, np.ndarray], tag: int) -> list[tuple[str, str]]:
    """Record a run under the profiler; return name and operator of each node.

    It may be the first one: what only it does is left out where the plain run does not do it.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = Session(model, profile=str(Path(folder) / "profile"))
        mark(MARK, tag)
        session.run(feeds)
        mark(MARK, 0)
        events = json.loads(session.end_profile().read_text(encoding="utf-8"))
    kernels = [event for event in events if event.get("cat") == "Node" and event["name"].endswith(KERNEL)]
    return [(event["name"].removesuffix(KERNEL), event["args"]["op_name"]) for event in kernels]


def _plain(model: str, feeds: Mapping[str, np.ndarray], tag: int) -> None:
    """Record the second query as a device asks it: through `predict` where the model takes one input."""
    session = Session(model)
    if len(session.inputs) == 1 and next(iter(feeds.values())).shape[0] == 1:
        row = next(iter(feeds.values()))
        session.predict(row)
        mark(MARK, tag)
        session.predict(row)
    else:
        session.run(feeds)
        mark(MARK, tag)
        session.run(feeds)
    mark(MARK, 0)


def main(jobs: Path, answers: Path) -> None:
    gc.disable()  # its rounds would fall into a recording or not
    with answers.open("w", encoding="utf-8") as file:
        for index, line in enumerate(jobs.read_text(encoding="utf-8").splitlines()):
            file.write(json.dumps(answer(index, json.loads(line))) + "\n")
            file.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
