"""What exports of small networks contain, and whether all of it has a gradient: torch, Keras and scikit-learn.

python -m tests.oracles.exports [FOLDER]    # writes benchmarks/results/operators.json and .md

FOLDER keeps the exports of torch, and is not written again when it has them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx import ModelProto, TensorProto, defs, helper, numpy_helper

from edgeml.autodiff import RULES
from edgeml.autodiff.backward import FLAT, gradients, live
from edgeml.autodiff.builder import GraphBuilder
from edgeml.autodiff.loops import close
from edgeml.autodiff.newer import spelled_out
from edgeml.autodiff.parameters import find_parameters
from edgeml.autodiff.step import NEWEST
from edgeml.errors import UnsupportedModel
from edgeml.graph.proto import walk
from edgeml_runtime.session import ModelRefused, Session
from tests.oracles.compare import FAR, NEEDS, worst

HERE = Path(__file__).parent
RESULT = HERE.parents[1] / "benchmarks/results/operators.json"
CARRIED = "carried along in front of the first layer"
HEAD = """\
# Operators that exports contain

`python -m tests.oracles.exports`: {nets}. Every export is differentiated for its inputs and its weights; torch's are
compared with torch's float64 gradients of the inputs. Largest relative error {worst:.0e}.

| operator | gradient | {names} |
|---|---|{rule}|
"""


@dataclass(frozen=True)
class Differentiated:
    """The gradient graph of one export: its inputs and `seed`, to `d.<input>`."""

    session: Session
    inputs: tuple[str, ...]


def operators(model: ModelProto) -> set[str]:
    """Return the operators of a graph and of the graphs inside it, with the domain where it is not ONNX's own."""
    nodes = [*walk(model.graph), *(node for function in model.functions for node in function.node)]
    return {f"{node.domain}:{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type for node in nodes}


def differentiate(model: ModelProto, shape: Sequence[int] | None = None, *, inputs_too: bool = True) -> Differentiated:
    """Return the gradients of the first output of floats, of this `shape`, for all weights and inputs of floats.

    Without the inputs, what stands in front of the first weight is carried along, as in training.

    Raises UnsupportedModel for what has no gradient.
    """
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    if next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")) > NEWEST:
        model = spelled_out(model, NEWEST)
    close(model)
    g = GraphBuilder(model)
    kinds = (TensorProto.FLOAT, TensorProto.DOUBLE)
    output = next((v.name for v in model.graph.output if g.dtypes.get(v.name, TensorProto.FLOAT) in kinds), "")
    if not output:
        raise UnsupportedModel("no output of floats")
    held = {tensor.name for tensor in model.graph.initializer}
    given = [v for v in model.graph.input if v.name not in held]
    inputs = [v.name for v in given if g.dtypes[v.name] in kinds] if inputs_too else []
    try:
        weights = find_parameters(g, live(g.forward, [output]), None)
    except UnsupportedModel:  # there are none
        if not inputs:
            raise
        weights = []
    found = gradients(g, {output: "seed"}, [*inputs, *weights])
    kept = {name: tensor for name, tensor in found.items() if tensor and (name in inputs or not inputs)}
    nodes = live([*g.forward, *g.nodes], [tensor for tensor in found.values() if tensor])
    nodes += [helper.make_node("Identity", [tensor], [f"d.{name}"]) for name, tensor in kept.items()]
    constants = [numpy_helper.from_array(array, name) for name, array in g.constants.items()]
    sizes = g.shapes.get(output) if shape is None else shape
    seed = helper.make_tensor_value_info("seed", g.dtypes.get(output, TensorProto.FLOAT), sizes)
    results = [helper.make_empty_tensor_value_info(f"d.{name}") for name in kept]
    graph = helper.make_graph(nodes, "gradients", [*given, seed], results, constants)
    whole = helper.make_model(graph, opset_imports=model.opset_import, ir_version=min(model.ir_version, 10))
    return Differentiated(Session(whole.SerializeToString()), tuple(kept))


def torch_exports(python: Path, folder: Path) -> dict[str, str]:
    """Let torch write its networks into `folder`; return by name why one could not be written."""
    command = [str(python), str(HERE / "torch_exports.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"torch_exports.py failed: {done.stderr.strip()[-600:]}")
    said: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return said


def error_of(path: Path) -> float:
    """Return how far the gradients of the inputs are from torch's.

    Raises UnsupportedModel or ModelRefused where there are none, or where the export already answers otherwise.
    """
    with np.load(path.with_suffix(".npz")) as arrays:
        oracle = {name[2:]: arrays[name] for name in arrays.files if name.startswith("d.")}
        feeds = {name: arrays[f"in.{name}"] for name in oracle}
        y = Session(path.read_bytes()).run(feeds)["y"]
        if (far := worst({"y": y}, {"y": arrays["y"]})) > FAR:
            raise UnsupportedModel(f"the export answers otherwise than the network, by {far:.2g}: torch's fault")
        made = differentiate(onnx.load(path), y.shape)
        taken = {spec.name for spec in made.session.inputs}
        answers = made.session.run({"seed": arrays["seed"]} | {n: value for n, value in feeds.items() if n in taken})
    return worst({name: answers.get(f"d.{name}", np.zeros_like(value)) for name, value in oracle.items()}, oracle)


def gradient_of(operator: str) -> str:
    """Return what becomes of an operator on the way back."""
    if operator in RULES or operator == "Loop":
        return "rule"
    if operator in FLAT:
        return "zero"
    if ":" in operator:
        return CARRIED
    schema = defs.get_schema(operator)
    floats = [
        any("float" in kind or "double" in kind for p in ports for kind in p.types)
        for ports in (schema.inputs, schema.outputs)
    ]
    return "missing" if all(floats) else "not needed: no floats in, or none out"


def keras_exports() -> Iterator[tuple[str, ModelProto]]:
    """Yield the Keras networks that the tests of conversion know, as tf2onnx writes them and edgeml puts them right."""
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3"}
    import keras

    from edgeml import convert
    from edgeml.errors import EdgeMLError
    from tests.convert.architectures import ARCHITECTURES, build

    for name in ARCHITECTURES:
        try:
            made = convert.from_keras(build(name, keras))
        except EdgeMLError:
            continue  # docs/support-keras.md says why
        yield name, onnx.load_model_from_string(made.data)


def sklearn_exports() -> Iterator[tuple[str, ModelProto]]:
    """Yield what skl2onnx writes of networks and of what stands in front of them."""
    from skl2onnx import to_onnx
    from sklearn import decomposition, linear_model, neural_network, pipeline, preprocessing

    warnings.simplefilter("ignore")  # they need not converge
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 5)).astype(np.float32)
    y, z = (x[:, 0] > 0).astype(int) + (x[:, 1] > 0), x @ rng.normal(size=(5, 2))
    nets = [
        neural_network.MLPClassifier((4,), activation=a, max_iter=5) for a in ("relu", "tanh", "logistic", "identity")
    ]
    nets.append(linear_model.LogisticRegression())
    scalers = [
        preprocessing.StandardScaler(),
        preprocessing.MinMaxScaler(),
        preprocessing.RobustScaler(),
        decomposition.PCA(3),
        preprocessing.PolynomialFeatures(),
        preprocessing.Normalizer(),
    ]
    for net in nets:
        yield (
            f"{type(net).__name__} {getattr(net, 'activation', '')}".strip(),
            to_onnx(net.fit(x, y), x[:1], options={"zipmap": False}),
        )
    for scaler in scalers:
        whole = pipeline.make_pipeline(scaler, neural_network.MLPClassifier((4,), max_iter=5)).fit(x, y)
        yield f"{type(scaler).__name__}, MLPClassifier", to_onnx(whole, x[:1], options={"zipmap": False})
    for regressor in (neural_network.MLPRegressor(hidden_layer_sizes=(4,), max_iter=5), linear_model.Ridge()):
        yield type(regressor).__name__, to_onnx(regressor.fit(x, z), x[:1])


def survey(python: Path, folder: Path) -> dict[str, Any]:
    """Return the operators by exporter with how many exports hold each, the errors, and what was refused and why."""
    held: dict[str, Counter[str]] = defaultdict(Counter)
    nets: Counter[str] = Counter()
    errors: dict[str, float] = {}
    refused: dict[str, str] = {}
    told = folder / "refused.json"
    if not told.exists():
        told.write_text(json.dumps(torch_exports(python, folder)), encoding="utf-8")
    refused |= {f"{key} (export)": why for key, why in json.loads(told.read_text(encoding="utf-8")).items()}
    for path in sorted(folder.glob("*.onnx")):
        exporter = f"torch {path.name.split('.')[0]}"
        held[exporter].update(operators(onnx.load(path)))
        nets[exporter] += 1
        try:
            errors[path.stem] = error_of(path)
        except (UnsupportedModel, ModelRefused) as error:
            refused[path.stem] = str(error)
    for exporter, made in (("Keras", keras_exports()), ("scikit-learn", sklearn_exports())):
        for net, model in made:
            held[exporter].update(operators(model))
            nets[exporter] += 1
            try:
                differentiate(model, inputs_too=False)
            except (UnsupportedModel, ModelRefused) as error:
                refused[f"{exporter}: {net}"] = str(error)
    return {"nets": nets, "operators": held, "errors": errors, "refused": refused}


def table(found: Mapping[str, Any]) -> str:
    """Return the page of results."""
    held, nets, errors = found["operators"], found["nets"], found["errors"]
    names = sorted({operator for exporter in held.values() for operator in exporter})
    said = ", ".join(f"{count} of {name}" for name, count in nets.items())
    head = HEAD.format(
        nets=said, worst=max(errors.values()), names=" | ".join(held), rule="---:|" * (len(held) - 1) + "---:"
    )
    rows = [f"| {n} | {gradient_of(n)} | {' | '.join(str(held[e].get(n, '')) for e in held)} |" for n in names]
    refused = [f"- {name}: {why}" for name, why in found["refused"].items()]
    return head + "\n".join(rows) + "\n\nWithout a gradient, or without an export:\n\n" + "\n".join(refused) + "\n"


def main() -> None:
    python = os.environ.get("EDGEML_ORACLES_PYTHON")
    if not python:
        sys.exit(f"set EDGEML_ORACLES_PYTHON to a Python that has {', '.join(NEEDS)}")
    with tempfile.TemporaryDirectory() as own:
        found = survey(Path(python), Path(sys.argv[1] if len(sys.argv) > 1 else own))
    RESULT.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    RESULT.with_suffix(".md").write_text(table(found), encoding="utf-8")


if __name__ == "__main__":
    main()
