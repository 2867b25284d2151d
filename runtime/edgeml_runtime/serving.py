"""The model that answers now. Predictions go on while another one is loaded; then one pointer moves.

Every prediction holds the lock only while the session computes: its hot path reuses one set of
buffers, and a device has one core to give to it anyway.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeml_runtime import rows
from edgeml_runtime.errors import DeviceError, ModelRefused, ShapeMismatch
from edgeml_runtime.metrics import Counters
from edgeml_runtime.session import Session
from edgeml_runtime.slots import Slot
from edgeml_runtime.wire.manifest import LABEL, PREDICTION, PROBABILITIES, Manifest
from edgeml_runtime.wire.messages import Running


@dataclass(frozen=True, kw_only=True)
class Personal:
    """Whether this device's own tensors answer in place of the release's, and why; `rows` are its own, labelled."""

    serves: bool
    reason: str
    run: str = ""  # the federation that they were learned in
    metric: str = ""
    own: float | None = None  # value of the metric
    released: float | None = None
    gain: float | None = None  # how much better the own one is, by `metric`; negative: worse
    rows: int = 0


@dataclass(frozen=True)
class Loaded:
    """A release in memory, and what must be known of it to answer.

    `personal` is None where the device has no tensors of its own for it. Where they serve, `released` loads the
    release as it came, and takes the reason why it must.
    """

    session: Session
    manifest: Manifest
    running: Running  # the release as it came
    personal: Personal | None = None
    released: Callable[[str], Loaded] | None = None


@dataclass(frozen=True)
class Answer:
    """What a model says about some rows, and which model it was."""

    outputs: Mapping[str, np.ndarray]
    manifest: Manifest
    running: Running
    personal: bool = False  # the device's own tensors answered

    @property
    def labels(self) -> list[str]:
        """The class names of a classifier's answers, [] for other models."""
        if self.manifest.task != "classification" or LABEL not in self.outputs:
            return []
        classes = self.manifest.classes
        indices = self.outputs[LABEL].reshape(-1).tolist()
        return [classes[i] if 0 <= i < len(classes) else str(i) for i in indices]

    def document(self) -> dict[str, Any]:
        """Return the answer as JSON-ready values."""
        told: dict[str, Any] = {
            "model": self.running.model,
            "release": self.running.release,
            "variant": self.running.variant,
        }
        if self.personal:
            told["personal"] = True
        if self.manifest.task == "classification" and LABEL in self.outputs:
            told["labels"] = self.labels
            if PROBABILITIES in self.outputs:
                told["classes"] = list(self.manifest.classes)
                told["probabilities"] = plain(self.outputs[PROBABILITIES])
        elif PREDICTION in self.outputs:
            told["predictions"] = plain(self.outputs[PREDICTION].reshape(-1))
        else:
            told["outputs"] = {name: plain(array) for name, array in self.outputs.items()}
        return told

    def raw(self) -> bytes:
        """Return the probabilities or the prediction as little-endian float32."""
        for name in (PROBABILITIES, PREDICTION, *self.outputs):
            if name in self.outputs and self.outputs[name].dtype.kind == "f":
                return np.ascontiguousarray(self.outputs[name], dtype="<f4").tobytes()
        raise ShapeMismatch("the model has no float output to send raw: ask for JSON")


def load(slot: Slot) -> Loaded:
    """Return the release in `slot`, its files checked against its manifest.

    Raises BadDigest when the disk changed them, ModelRefused when the graph cannot be loaded.
    """
    slot.check()
    manifest, name = slot.manifest(), slot.variant
    variant = next(one for one in manifest.variants if one.name == name)
    session = Session(slot.graph, slot.settings)
    running = Running(model=manifest.model, release=manifest.release, variant=name, graph=variant.graph.digest)
    return Loaded(session, manifest, running)


class Serving:
    """Answers predictions with the current release, counts them, and lets another take its place."""

    def __init__(self, counters: Counters) -> None:
        self.counters = counters
        self._lock = threading.Lock()
        self._loaded: Loaded | None = None
        self._served = self._failed = 0  # since the current release began
        self._last_failure = ""

    @property
    def loaded(self) -> Loaded | None:
        return self._loaded

    @property
    def running(self) -> Running | None:
        return self._loaded.running if self._loaded else None

    @property
    def manifest(self) -> Manifest:
        """The manifest of what is running; raise ModelRefused when nothing is."""
        if self._loaded is None:
            raise ModelRefused("no model is installed yet: deploy one to this device")
        return self._loaded.manifest

    def swap(self, loaded: Loaded | None) -> None:
        """Let `loaded` answer from now on; the counts of a trial begin anew."""
        with self._lock:
            self._loaded = loaded
            self._served = self._failed = 0
            self._last_failure = ""

    def trial(self) -> tuple[int, int, str]:
        """Return the predictions and the failures of the current release, and the last failure."""
        with self._lock:
            return self._served, self._failed, self._last_failure

    def begin_trial(self) -> None:
        """Count the trial of the current release from now."""
        with self._lock:
            self._served = self._failed = 0

    def predict(self, inputs: Mapping[str, np.ndarray]) -> Answer:
        """Return the current model's answer to rows; raise ShapeMismatch or ModelRefused when it has none."""
        count, start = rows.count(inputs), time.perf_counter()
        with self._lock:
            loaded = self._loaded
            if loaded is None:
                raise ModelRefused("no model is installed yet: deploy one to this device")
            try:
                loaded, outputs = self._outputs(loaded, inputs)
            except DeviceError as error:  # the rows were checked against the manifest, so the model is to blame
                self._failed += 1
                self._last_failure = str(error)
                self.counters.failed(str(error))
                raise
            self._served += count
        answer = Answer(outputs, loaded.manifest, loaded.running, loaded.released is not None)
        elapsed = time.perf_counter() - start
        self.counters.served(elapsed, answer.labels, release=loaded.running.release, rows=count)
        return answer

    def _outputs(self, loaded: Loaded, inputs: Mapping[str, np.ndarray]) -> tuple[Loaded, dict[str, np.ndarray]]:
        """Return what answered, and how: own tensors that fail make room for the release, for good."""
        try:
            return loaded, answers(loaded.session, inputs)
        except DeviceError as error:
            if loaded.released is None:
                raise
            self._loaded = loaded.released(f"it failed while answering: {error}")
            return self._loaded, answers(self._loaded.session, inputs)


def answers(session: Session, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run one row on the hot path, whose buffers must be copied; many at once, unless the graph takes only one."""
    count = rows.count(inputs)
    if count == 1 and len(inputs) == 1:
        return {name: array.copy() for name, array in session.predict(next(iter(inputs.values()))).items()}
    if count > 1 and any(spec.shape[:1] == (1,) for spec in session.inputs):
        each = [session.run({name: array[i : i + 1] for name, array in inputs.items()}) for i in range(count)]
        return {name: np.concatenate([one[name] for one in each]) for name in each[0]}
    return session.run(inputs)


def plain(array: np.ndarray) -> list[Any]:
    """Return `array` as nested lists; what JSON has no number for (NaN, infinite) is None."""
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return array.tolist()  # type: ignore[no-any-return]
    told = array.astype(object)
    told[~np.isfinite(array)] = None
    return told.tolist()  # type: ignore[no-any-return]
