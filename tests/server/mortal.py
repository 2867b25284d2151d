"""A server process that can be held, and killed, at any point of a federation: `python -m tests.server.mortal`.

Where a file `hold.<point>` is in its folder, it says `at.<point>` by a file of its own, and waits.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeml.artifacts import OnnxModel
from edgeml.registry import FederationRecord, Registry, RoundRecord
from edgeml.server import Findings, Learner, serve
from tests.server.stand_ins import InMemoryRetrain, a_model


class Mortal(InMemoryRetrain):
    """Judges as `InMemoryRetrain` does, slowly, and leaves what it released in its folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.first = folder, a_model().digest

    def prepare(self, record: FederationRecord) -> Learner:
        return Learner(a_model(), "softmax_cross_entropy", 1.0, self.evaluate, self.release)

    def evaluate(self, model: OnnxModel) -> dict[str, float]:
        self._point("preparing" if model.digest == self.first else "evaluating")
        return super().evaluate(model)

    def release(self, model: OnnxModel, rounds: Sequence[RoundRecord], findings: Findings) -> Mapping[str, Any]:
        self._point("releasing")
        (self.folder / "released.onnx").write_bytes(model.data)
        return {"after": super().evaluate(model), "released": "new", "reason": f"better after {len(rounds)} rounds"}

    def _point(self, name: str) -> None:
        (self.folder / f"at.{name}").touch()
        while (self.folder / f"hold.{name}").exists():
            time.sleep(0.01)


if __name__ == "__main__":
    root, address, where = sys.argv[1:]
    serve(Registry.open(Path(root)), address, retrain=Mortal(Path(where)), log=lambda line: print(line, flush=True))
