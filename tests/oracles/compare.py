"""Every case of every rule beside torch's float64 autograd and onnx-ad: the worst relative error per operator.

    python -m tests.oracles.compare    # writes benchmarks/results/gradient_rules.json

An error is the largest difference over the largest element of the oracle's gradient.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, helper

from edgeml_runtime.session import ModelRefused, Session
from tests.autodiff.case import Case
from tests.autodiff.cases import CASES
from tests.autodiff.graphs import a_model, gradient_model

NEEDS = ("torch==2.13.0", "onnx-ad==0.3.0", "onnxscript", "numpy>=2")
HERE = Path(__file__).parent
RESULT = HERE.parents[1] / "benchmarks/results/gradient_rules.json"
FAR = 1e-4  # relative: beyond what rounding of float32 leaves
BITS = {64: np.float64, 32: np.float32}


@dataclass
class Figures:
    """Of one operator: the worst error against torch by bits and against onnx-ad, and what an oracle does not say.

    Where onnx-ad is far from torch while we are not, onnx-ad is the one that is wrong: written down, and not counted.
    """

    torch: dict[int, float] = field(default_factory=dict)
    onnx_ad: float | None = None
    torch_silent: list[str] = field(default_factory=list)
    onnx_ad_silent: list[str] = field(default_factory=list)
    onnx_ad_wrong: list[str] = field(default_factory=list)

    def beside_torch(self, ours: Mapping[int, Mapping[str, np.ndarray]], oracle: Mapping[str, np.ndarray]) -> None:
        for bits, gradients in ours.items():
            self.torch[bits] = max(worst(gradients, oracle), self.torch.get(bits, 0.0))

    def beside_onnx_ad(
        self, ours: Mapping[str, np.ndarray], oracle: Mapping[str, np.ndarray], torch: Mapping[str, np.ndarray] | None
    ) -> None:
        error = worst(ours, oracle)
        if error > FAR and torch is not None and worst(ours, torch) < FAR:
            self.onnx_ad_wrong.append(f"off torch by {worst(oracle, torch):.2g}")
        else:
            self.onnx_ad = max(error, self.onnx_ad or 0.0)


def compare(python: Path, folder: Path) -> dict[str, Figures]:
    """Return the figures of every operator, by oracles that `python` has; files go to `folder`."""
    ours = {name: dict(_ours(op_type, case, folder / name)) for name, op_type, case in _named()}
    torch_silent = _ask(python, "torch_side.py", folder)
    ad_silent = _ask(python, "onnx_ad_side.py", folder)
    found = {op_type: Figures() for op_type in CASES}
    for name, op_type, case in _named():
        figures, oracle = found[op_type], None
        if name in torch_silent:
            figures.torch_silent.append(f"case {name}: {torch_silent[name]}")
        else:
            with np.load(folder / f"{name}.torch.npz") as arrays:
                oracle = dict(arrays)
            figures.beside_torch(ours[name], oracle)
        adjoint = ad_silent[name] if name in ad_silent else _adjoint(folder / f"{name}.adjoint", case)
        if isinstance(adjoint, str):
            figures.onnx_ad_silent.append(f"case {name}: {adjoint}")
        else:
            figures.beside_onnx_ad(ours[name][max(ours[name])], adjoint, oracle)
    return found


def worst(gradients: Mapping[str, np.ndarray], oracle: Mapping[str, np.ndarray]) -> float:
    """Return the largest error over all inputs."""
    errors = []
    for name, expected in oracle.items():
        if gradients[name].shape != expected.shape:
            return float("inf")
        size = float(np.abs(expected).max(initial=0.0)) or 1.0
        errors.append(float(np.abs(gradients[name].astype(np.float64) - expected).max(initial=0.0)) / size)
    return max(errors)


def _named() -> Iterator[tuple[str, str, Case]]:
    for op_type, cases in CASES.items():
        yield from ((f"{op_type}.{index}", op_type, case) for index, case in enumerate(cases))


def _ours(op_type: str, case: Case, stem: Path) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yield the gradients by bits, and write what the oracles need to know of the case."""
    asked = False
    inputs = {name: array.astype(np.float32).astype(np.float64) for name, array in case.inputs.items()}
    seed = np.empty(0)
    for bits, dtype in BITS.items():
        if bits == 64 and case.dtype == np.float32:
            continue
        try:
            model = a_model(op_type, case, dtype=dtype, symbolic=False, opset=case.opsets[-1])
            feeds = {name: array.astype(dtype) for name, array in inputs.items()}
            y = Session(model.SerializeToString()).run(feeds)["y"]
            if not asked:
                seed = np.random.default_rng(1).normal(size=y.shape).astype(np.float32).astype(np.float64)
            found = gradient_model(model, list(feeds), seed.astype(y.dtype)).run(
                {**feeds, "seed": seed.astype(y.dtype)}
            )
        except ModelRefused:  # no kernel of these bits
            continue
        if not asked:
            _write(stem, model, op_type, case, inputs=inputs, seed=seed, y=y)
            asked = True
        yield bits, {name: found[f"d.{name}"] for name in feeds}


def _write(
    stem: Path,
    model: ModelProto,
    op_type: str,
    case: Case,
    *,
    inputs: Mapping[str, np.ndarray],
    seed: np.ndarray,
    y: np.ndarray,
) -> None:
    told = helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(y.dtype), y.shape)
    model.graph.output[0].CopyFrom(told)  # onnx-ad seeds by the shape that is declared
    Path(f"{stem}.onnx").write_bytes(model.SerializeToString())
    order = list(case.order or case.inputs)
    attributes = {name: _plain(value) for name, value in case.attributes.items()}
    Path(f"{stem}.json").write_text(json.dumps({"operator": op_type, "order": order, "attributes": attributes}))
    arrays = {f"in.{name}": array for name, array in inputs.items()}
    arrays |= {f"const.{name}": np.asarray(value) for name, value in case.constants.items()}
    np.savez(f"{stem}.npz", **arrays, seed=seed, y=y.astype(np.float64))


def _plain(value: Any) -> Any:
    """Return an attribute as JSON has it: a body by its name, a number in the 32 bits that ONNX gives it."""
    if isinstance(value, GraphProto):
        return value.name
    return float(np.float32(value)) if isinstance(value, float) else value


def _ask(python: Path, script: str, folder: Path) -> dict[str, str]:
    """Run one oracle over `folder`; return by case why it is silent."""
    done = subprocess.run([str(python), str(HERE / script), str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{script} failed: {done.stderr.strip()[-600:]}")
    answer: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _adjoint(path: Path, case: Case) -> dict[str, np.ndarray] | str:
    """Return the gradients by onnx-ad's graph, or why onnxruntime does not run it."""
    with np.load(path.with_suffix(".npz")) as arrays:
        try:
            session = Session(path.read_bytes())
            kinds = {spec.name: spec.dtype for spec in session.inputs}
            feeds = {name: arrays[f"in.{name}"].astype(kinds[name]) for name in case.inputs}
            seed = arrays["seed"][..., None].astype(kinds["adj_y"])
            answers = session.run({**feeds, "adj_y": seed})
        except ModelRefused as error:
            return f"onnxruntime refuses its graph: {' '.join(str(error).split())[:200]}"
        return {name: answers[f"adj_{name}"][..., 0] for name in case.inputs}


def rows(found: Mapping[str, Figures]) -> dict[str, dict[str, Any]]:
    """Return the figures as JSON has them."""
    return {
        op_type: {
            "cases": len(CASES[op_type]),
            **{f"torch_{bits}": error for bits, error in sorted(figures.torch.items(), reverse=True)},
            "onnx_ad": figures.onnx_ad,
            "onnx_ad_silent": len(figures.onnx_ad_silent),
            "onnx_ad_wrong": len(figures.onnx_ad_wrong),
        }
        for op_type, figures in sorted(found.items())
    }


def main() -> None:
    python = os.environ.get("EDGEML_ORACLES_PYTHON")
    if not python:
        sys.exit(f"set EDGEML_ORACLES_PYTHON to a Python that has {', '.join(NEEDS)}")
    with tempfile.TemporaryDirectory() as folder:
        found = compare(Path(python), Path(folder))
    for op_type, figures in found.items():
        for line in (*figures.torch_silent, *figures.onnx_ad_silent, *figures.onnx_ad_wrong):
            print(f"{op_type}: {line}")
    RESULT.write_text(json.dumps({"oracles": NEEDS, "operators": rows(found)}, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {RESULT}")


if __name__ == "__main__":
    main()
