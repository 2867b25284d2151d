"""A model as a numpy program: for boards that have numpy but no onnxruntime (32-bit Arm).

    MAGIC, length, JSON {inputs, outputs, steps}, safetensors -> PlainEngine -run-> arrays by name

The document is data: steps name operators of a fixed table, and nothing of it is ever executed as code. It is checked
as a whole before the first run; what it holds is bounded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeml_runtime.errors import MalformedMessage, ModelRefused, ShapeMismatch
from edgeml_runtime.feeds import checked, one_row
from edgeml_runtime.plain_operators import OPERATORS, labels_of
from edgeml_runtime.plain_trees import planned
from edgeml_runtime.wire import tensors
from edgeml_runtime.wire.manifest import TensorSpec
from edgeml_runtime.wire.plain import from_plain, to_plain

MAGIC = b"EDGEMLP\1"
MAX_JSON, MAX_STEPS, MAX_BYTES = 4 << 20, 4096, 256 << 20
MAX_ELEMENTS = 64 << 20  # of one array between two steps: a small board has no more
TREES = {"ai.onnx.ml.TreeEnsembleRegressor": "target", "ai.onnx.ml.TreeEnsembleClassifier": "class"}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One operator: names of arrays in and out ("" for one left out), plain attributes, and those kept as arrays."""

    op: str
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    numbers: Mapping[str, float] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)
    arrays: Mapping[str, str] = field(default_factory=dict)  # attribute -> name of a constant


@dataclass(frozen=True, kw_only=True)
class Program:
    """What a program is, its constants aside."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    steps: tuple[Step, ...]
    symbols: tuple[tuple[str, ...], ...]  # of the inputs' axes: one name, one size


def is_program(source: str | Path | bytes) -> bool:
    """Return whether the file at `source`, or these bytes, hold a numpy program and not an ONNX graph."""
    if isinstance(source, bytes):
        return source.startswith(MAGIC)
    try:
        with Path(source).open("rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except OSError:
        return False  # whoever opens it says what is wrong


def write_program(program: Program, constants: Mapping[str, np.ndarray]) -> bytes:
    """Return the bytes that `PlainEngine` reads."""
    text = json.dumps(to_plain(program), separators=(",", ":"), sort_keys=True).encode()
    return MAGIC + len(text).to_bytes(4, "little") + text + tensors.pack(constants)


class PlainEngine:
    """A program that runs: what edgeml_runtime.session.Session does with one."""

    threads = 1

    def __init__(self, source: str | Path | bytes) -> None:
        """Read and check the program at `source`, or in these bytes; raise ModelRefused when it is none."""
        what = f"{len(source):,} bytes" if isinstance(source, bytes) else str(source)
        try:
            program, constants = _read(source if isinstance(source, bytes) else _bytes_of(Path(source)))
            self._constants = constants
            self._steps = [(step, _attributes(step, constants)) for step in program.steps]
            _check(program, constants)
        except (MalformedMessage, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            raise ModelRefused(f"{what}: not a numpy program that this agent runs: {error}") from error
        self.inputs, self.outputs = program.inputs, program.outputs
        self._symbols = {
            spec.name: _axes(spec, axes) for spec, axes in zip(program.inputs, program.symbols, strict=True)
        }
        self._last_use = _last_use(program)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return every output by name for the inputs in `feeds`; raise ShapeMismatch when they do not fit."""
        known = {**self._constants, **checked(feeds, self.inputs, self._symbols)}
        try:
            with np.errstate(all="ignore"):
                for number, (step, attributes) in enumerate(self._steps):
                    answers = OPERATORS[step.op]([known[name] if name else None for name in step.takes], attributes)
                    for name, array in zip(step.gives, answers, strict=False):
                        known[name] = _bounded(array, step.op)
                    for name in self._last_use.get(number, ()):
                        del known[name]
        except (ValueError, IndexError, TypeError, KeyError, MemoryError) as error:
            raise ShapeMismatch(f"the model refuses these inputs: {type(error).__name__}: {error}") from error
        return {spec.name: known[spec.name] for spec in self.outputs}

    def predict(self, row: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs for one row of a model with one input, given with or without its row axis."""
        return self.run(one_row(row, self.inputs, self._symbols))


def _bytes_of(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ModelRefused(f"{path}: {path.stat().st_size:,} bytes; a numpy program has {MAX_BYTES:,} at most")
        return path.read_bytes()
    except OSError as error:
        raise ModelRefused(f"{path}: no such model file; check the path") from error


def _read(data: bytes) -> tuple[Program, dict[str, np.ndarray]]:
    start = len(MAGIC) + 4
    length = int.from_bytes(data[len(MAGIC) : start], "little")
    if not data.startswith(MAGIC) or not 0 < length <= min(MAX_JSON, len(data) - start):
        raise ValueError("its head is not that of a program")
    program = from_plain(Program, json.loads(data[start : start + length]))
    return program, tensors.unpack(data[start + length :])


def _attributes(step: Step, constants: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the attributes of a step, trees laid out for walking."""
    numbers = {name: int(value) if float(value).is_integer() else value for name, value in step.numbers.items()}
    found: dict[str, Any] = {**numbers, **step.words}
    found |= {name: constants[key] for name, key in step.arrays.items()}
    if (kind := TREES.get(step.op)) is not None:
        width = len(labels_of(found)) if kind == "class" else int(found.get("n_targets", 1))
        found["plan"] = planned(found, kind, width)
    return found


def _check(program: Program, constants: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError unless every step runs an operator of the table on arrays that are there by then."""
    if not 0 < len(program.steps) <= MAX_STEPS:
        raise ValueError(f"{len(program.steps)} steps; 1 to {MAX_STEPS} run here")
    if len(program.symbols) != len(program.inputs):
        raise ValueError("its inputs and their axes do not agree")
    known = {*constants, *(spec.name for spec in program.inputs)}
    if len(known) != len(constants) + len(program.inputs):
        raise ValueError("two arrays have one name")
    for step in program.steps:
        if step.op not in OPERATORS:
            raise ValueError(f"operator {step.op!r} is not among the {len(OPERATORS)} of numpy programs")
        if missing := {name for name in step.takes if name} - known:
            raise ValueError(f"{step.op} takes {sorted(missing)[0]!r} before it is made")
        given = {name for name in step.gives if name}
        if not given or given & known:
            raise ValueError(f"{step.op} gives no array, or one that is there already")
        known |= given
    if missing := {spec.name for spec in program.outputs} - known:
        raise ValueError(f"no step makes the output {sorted(missing)[0]!r}")


def _last_use(program: Program) -> dict[int, tuple[str, ...]]:
    """Return after which step which arrays are not needed any more."""
    kept, last = {spec.name for spec in program.outputs}, dict[str, int]()
    for number, step in enumerate(program.steps):
        last |= dict.fromkeys((name for name in step.gives if name), number)
        last |= {name: number for name in step.takes if name in last}
    freed: dict[int, list[str]] = {}
    for name, number in last.items():
        if name not in kept:
            freed.setdefault(number, []).append(name)
    return {number: tuple(names) for number, names in freed.items()}


def _axes(spec: TensorSpec, names: tuple[str, ...]) -> tuple[int | str | None, ...]:
    """Return each axis of an input: its size, its name, or None."""
    return tuple(size if size >= 0 else name or None for size, name in zip(spec.shape, names, strict=True))


def _bounded(array: np.ndarray, op: str) -> np.ndarray:
    if array.size > MAX_ELEMENTS:
        raise ValueError(f"{op} makes {array.size:,} numbers; {MAX_ELEMENTS:,} are the most")
    return array
