"""The gradient of every rule loads on the oldest onnxruntime, and is there what it is here."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgeml_runtime.session import Session
from tests.autodiff.case import Case
from tests.autodiff.cases import CASES
from tests.autodiff.graphs import a_model, gradient_graph

pytestmark = pytest.mark.runtimes
OTHERWISE = {"ReduceL2-12"}  # over no axis at all, 1.19 answers x where later ones answer its absolute value
REPLAY = Path(__file__).with_name("replay.py")


def keep(path: Path, op_type: str, case: Case) -> None:
    """Write the gradients of one case, in 32 bits, and what they are here."""
    model = a_model(op_type, case, dtype=np.float32, symbolic=False, opset=case.opsets[-1])
    feeds = {name: array.astype(np.float32) for name, array in case.inputs.items()}
    y = Session(model.SerializeToString()).run(feeds)["y"]
    feeds["seed"] = np.random.default_rng(1).normal(size=y.shape).astype(y.dtype)
    data = gradient_graph(model, list(case.inputs), feeds["seed"]).SerializeToString()
    answers = Session(data).run(feeds)
    path.with_suffix(".onnx").write_bytes(data)
    arrays = {f"in.{name}": array for name, array in feeds.items()}
    np.savez(path.with_suffix(".npz"), **arrays, **{f"out.{name}": array for name, array in answers.items()})


def test_every_gradient_rule_answers_alike_on_the_oldest_onnxruntime(old_python: Path, tmp_path: Path) -> None:
    for op_type, cases in CASES.items():
        for index, case in enumerate(cases):
            keep(tmp_path / f"{op_type}-{index}", op_type, case)
    done = subprocess.run([str(old_python), str(REPLAY), str(tmp_path)], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)["found"]
    assert len(found) > 300
    assert {name for name, far in found.items() if isinstance(far, str) or far > 1e-4} == OTHERWISE, found
