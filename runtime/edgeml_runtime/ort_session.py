"""The engine of edgeml_runtime.session that is onnxruntime.

The only module that imports onnxruntime. `run` takes any model; `predict` is the hot path of small
models: one row copied into a preallocated buffer that an io_binding bound once reads, which halves
what Python and onnxruntime add to every call. Load from a path where memory is short: bytes are
held twice while the session is built.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as native

from edgeml_runtime.errors import ModelRefused, ShapeMismatch
from edgeml_runtime.feeds import agree, checked, not_one_row, one_row
from edgeml_runtime.session import LIKE, allowed_threads
from edgeml_runtime.wire.manifest import Settings, TensorSpec

VERSION: str = onnxruntime.__version__

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
    "tensor(string)": "string",
}
# every deliberate error of onnxruntime; none of them has a base class of its own
_REFUSALS: tuple[type[Exception], ...] = (
    native.EngineError,
    native.EPFail,
    native.Fail,
    native.InvalidArgument,
    native.InvalidGraph,
    native.InvalidProtobuf,
    native.NoModel,
    native.NoSuchFile,
    native.NotImplemented,
    native.RuntimeException,
    RuntimeError,
    ValueError,
)

_LEVELS = {
    "disabled": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


class OrtEngine:
    """A loaded model. `run` may be called by several threads at once, `predict` by one at a time."""

    def __init__(
        self,
        path: str | Path | bytes,
        settings: Settings,
        *,
        profile: str = "",
        optimized: str = "",
        like: str = "",
    ) -> None:
        """Load the model as `Session` says."""
        self.threads = allowed_threads(settings.threads)
        options = _options(settings)
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, profile
        if optimized:
            options.optimized_model_filepath = optimized
        if like and like not in LIKE:
            raise ModelRefused(f"no graph like that of {like!r} can be made here, only like {', '.join(LIKE)}")
        self._session = _load(path, options, like if platform.machine() != like else "")
        self._symbols = {node.name: tuple(node.shape) for node in self._session.get_inputs()}
        self.inputs = tuple(_spec(node) for node in self._session.get_inputs())
        self.outputs = tuple(_spec(node) for node in self._session.get_outputs())
        self._output_names = [spec.name for spec in self.outputs]
        self._input_names = {spec.name for spec in self.inputs}
        self._bound: _Bound | None = None
        self._bindable = settings.io_binding and self._hot_path_fits()

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return every output by name for the inputs in `feeds`; raise ShapeMismatch when they do not fit."""
        return self._call(checked(feeds, self.inputs, self._symbols))

    def predict(self, row: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs for one row of a model with one input, as fast as Python can.

        `row` has the input's shape with or without its row axis. On the hot path (one float32 input
        of fixed size, numeric outputs) the arrays returned are the session's own buffers: the next
        call overwrites them, so copy what you keep. Raises ShapeMismatch when the row does not fit.
        """
        bound = self._bound
        if bound is None:
            bound = self._bound = self._bind() if self._bindable else None
            if bound is None:
                return self.run(one_row(row, self.inputs, self._symbols))
        if row.shape != bound.shape and row.shape != bound.row_shape:
            raise not_one_row(self.inputs[0], self._symbols[self.inputs[0].name], row.shape)
        if row.dtype.kind not in "fiub":
            raise ShapeMismatch(f"input {self.inputs[0].name!r} takes float32, got {row.dtype}")
        bound.buffer[...] = row
        bound.run()
        return dict(bound.outputs)

    def end_profile(self) -> Path:
        """Return the file of the profile that was asked for; nothing more is recorded."""
        return Path(self._session.end_profiling())

    def _call(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            answers = self._session.run(self._output_names, feeds)
        except native.InvalidArgument as error:
            raise ShapeMismatch(f"the model refuses these inputs: {_first_line(error)}") from error
        except _REFUSALS as error:
            raise ModelRefused(f"the model failed while running: {_first_line(error)}") from error
        return dict(zip(self._output_names, answers, strict=True))

    def _hot_path_fits(self) -> bool:
        if len(self.inputs) != 1 or self.inputs[0].dtype != "float32" or not self.inputs[0].shape:
            return False
        rows, *rest = self._symbols[self.inputs[0].name]
        if rows not in (1, None) and not isinstance(rows, str):
            return False
        numeric = all(spec.dtype != "string" for spec in self.outputs)
        axes = {axis for node in self._session.get_outputs() for axis in node.shape}
        known = {axis for axis in axes if isinstance(axis, int) or (axis == rows and axis is not None)}
        return numeric and axes == known and all(isinstance(axis, int) for axis in rest)

    def _bind(self) -> _Bound | None:
        spec = self.inputs[0]
        shape = (1, *spec.shape[1:])
        example = self._call({spec.name: np.zeros(shape, np.float32)})
        bound = _Bound(self._session, spec.name, example=example, shape=shape)
        # an output whose real shape is not the declared one might not fit its buffer the next time
        self._bindable = all(agree(spec.shape, example[spec.name].shape) for spec in self.outputs)
        return bound if self._bindable else None


class _Bound:
    """The hot path: buffers that live as long as the session, and a call that reads and writes them."""

    def __init__(self, session: Any, name: str, *, example: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> None:
        self.buffer = np.zeros(shape, np.float32)
        self.shape, self.row_shape = shape, shape[1:]
        self.outputs = {key: np.zeros_like(np.ascontiguousarray(array)) for key, array in example.items()}
        binding = session.io_binding()
        binding.bind_input(name, "cpu", 0, np.float32, shape, self.buffer.ctypes.data)
        for key, array in self.outputs.items():
            binding.bind_output(key, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._keep = binding  # the raw call below does not hold it
        self._run = _raw_call(session, binding) or functools.partial(session.run_with_iobinding, binding)

    def run(self) -> None:
        try:
            self._run()
        except _REFUSALS as error:
            raise ModelRefused(f"the model failed while running: {_first_line(error)}") from error


def _raw_call(session: Any, binding: Any) -> Callable[[], Any] | None:
    """Return the call below onnxruntime's Python wrapper, 0.3 us cheaper, where this version has it."""
    inner, raw = getattr(session, "_sess", None), getattr(binding, "_iobinding", None)
    if not hasattr(inner, "run_with_iobinding") or raw is None:
        return None
    call = functools.partial(cast(Any, inner).run_with_iobinding, raw, None)
    try:
        call()
    except TypeError:  # private, so another version may want other arguments
        return None
    return call


def _options(settings: Settings) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = _LEVELS[settings.graph_level]
    options.intra_op_num_threads, options.inter_op_num_threads = allowed_threads(settings.threads), 1
    options.enable_cpu_mem_arena, options.enable_mem_pattern = settings.arena, settings.mem_pattern
    if not settings.prepacking:
        options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(settings.spinning)))
    options.log_severity_level = 4  # what goes wrong is raised; a second line on stderr says it to nobody
    return options


def _load(path: str | Path | bytes, options: Any, like: str) -> Any:
    what = f"{len(path):,} bytes" if isinstance(path, bytes) else str(path)
    if not isinstance(path, bytes) and not Path(path).is_file():
        raise ModelRefused(f"{what}: no such model file; check the path")
    try:
        source = path if isinstance(path, bytes) else str(path)
        without, entries = LIKE[like] if like else ((), {})
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        arguments = {"disabled_optimizers": list(without)} if without else {}
        return onnxruntime.InferenceSession(
            source, options, providers=["CPUExecutionProvider"], enable_fallback=0, **arguments
        )
    except (native.InvalidProtobuf, native.NoModel) as error:
        raise ModelRefused(f"{what}: a model file that is not a model ({_first_line(error)})") from error
    except _REFUSALS as error:
        raise ModelRefused(f"{what}: onnxruntime {VERSION} cannot load it: {_first_line(error)}") from error


def _spec(node: Any) -> TensorSpec:
    dtype = _DTYPES.get(node.type)
    if dtype is None:
        known = ", ".join(_DTYPES.values())
        raise ModelRefused(f"{node.name!r} is {node.type}: models here take and give {known}; convert it (zipmap off)")
    shape = tuple(axis if isinstance(axis, int) else -1 for axis in node.shape)
    return TensorSpec(name=node.name, dtype=cast(Any, dtype), shape=shape)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
