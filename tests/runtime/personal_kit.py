"""A device with labelled rows in an order of its own and tensors that know it; no agent, no broker."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeml_runtime import serving
from edgeml_runtime.config import BLOBS, KEPT, SAMPLES, Policy
from edgeml_runtime.kept import Kept
from edgeml_runtime.personal import OwnModels
from edgeml_runtime.samples import Samples
from edgeml_runtime.serving import Loaded
from edgeml_runtime.session import Session
from edgeml_runtime.slots import GOLDENS, Slot, Slots
from edgeml_runtime.wire import signed
from tests.runtime.graphs import mlp
from tests.runtime.releases import KEY, Release, a_release

RUN, MOST = "fed-1", 1 << 20
X = np.random.default_rng(1).normal(size=(60, 64)).astype(np.float32)
ORDER = np.roll(np.arange(10), 3)  # this device calls class i what others call ORDER[i]
Arrays = dict[str, np.ndarray]


def graph(**changes: Any) -> bytes:
    return mlp(seed=7, **changes)


def own_head() -> Arrays:
    """The last layer of `graph` with its classes in this device's order."""
    rng = np.random.default_rng(7)
    rng.normal(0, 64**-0.5, (64, 64)), rng.normal(0, 0.1, 64)
    w2 = rng.normal(0, 64**-0.5, (64, 10)).astype(np.float32)
    return {"w2": w2[:, ORDER], "b2": np.zeros(10, np.float32)}


def own_labels() -> np.ndarray:
    said: np.ndarray = Session(graph()).run({"numeric": X})["label"]
    return np.argsort(ORDER)[said]


def a_personal_release(name: str = "one", *, run: str = RUN, data: bytes | None = None, **options: Any) -> Release:
    """A release that came of the federation `run`."""
    made = a_release(name, graph() if data is None else data, **options)
    manifest = dataclasses.replace(made.manifest, lineage={"federation": f"{run}: 2 rounds of 2, 2 devices"})
    return dataclasses.replace(made, manifest=manifest, envelope=signed.sign(manifest.to_document(), KEY))


class Bench:
    """A state folder with a release in its slot, labelled rows and kept tensors, without an agent."""

    def __init__(self, state: Path) -> None:
        self.state, self.samples = state, Samples(state / SAMPLES)
        self.samples.add_many({"numeric": X}, targets=own_labels().tolist(), now=0.0)
        self.kept = Kept(state / KEPT, most=MOST)

    def keep(self, arrays: Arrays, run: str = RUN) -> None:
        self.kept.after(run, f"{run}-1", was={}, now=arrays)

    def install(self, release: Release, variant: str = "fp32") -> Slot:
        graphs = dict(zip([one.name for one in release.manifest.variants], release.blobs, strict=False))
        files = {"model.onnx": self.state / "graph", GOLDENS: self.state / "goldens"}
        files["model.onnx"].write_bytes(graphs[variant])
        files[GOLDENS].write_bytes(release.blobs[-1])
        (self.state / BLOBS).mkdir(exist_ok=True)
        slot = Slots(self.state / "slots").install(release.envelope, files, variant=variant)
        for path in files.values():
            path.unlink()
        return slot

    def load(self, slot: Slot, **policy: Any) -> Loaded:
        return OwnModels(self.state, Policy(**policy), self.samples).over(slot, serving.load(slot))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def refused_of(loaded: Loaded) -> str:
    assert loaded.personal is not None and not loaded.personal.serves
    return loaded.personal.reason


def refused(loaded: Loaded) -> str:
    """Return why the release serves in place of this device's own tensors."""
    reason = refused_of(loaded)
    assert loaded.released is None
    said = loaded.session.run({"numeric": X})["label"]
    np.testing.assert_array_equal(said, Session(graph()).run({"numeric": X})["label"])
    return reason


def csv_of(state: Path) -> str:
    path = state / "rows.csv"
    lines = [",".join(f"p{i}" for i in range(64)), *(",".join(map(repr, row)) for row in X.tolist())]
    path.write_text("\n".join(lines))
    return str(path)
