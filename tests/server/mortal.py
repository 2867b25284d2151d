"""A server process that can be held, and killed, at any point of a federation: `python -m tests.server.mortal`.

Where a file `hold.<point>` is in its folder, it says `at.<point>` by a file of its own, and waits. The points
`ask.shares`, `ask.mask`, `ask.agree` and `ask.unmask` are reached when the first device has been asked that.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cbor2

from edgeml import tasks
from edgeml.artifacts import OnnxModel
from edgeml.registry import Registry, RoundRecord
from edgeml.server import Findings, serve
from edgeml.tasks.study import Study
from edgeml.transport import ServerTransport
from edgeml_runtime.wire import secure
from tests.server.stand_ins import InMemoryRetrain, a_model


class Mortal(InMemoryRetrain):
    """Judges as `InMemoryRetrain` does, slowly, and leaves what it released in its folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.first = folder, a_model().digest

    def surveys(self, candidate: OnnxModel) -> Mapping[str, Study]:
        self._point("asking")
        return {"evaluation": tasks.evaluation(candidate, "classification", before=a_model())}

    def evaluate(self, model: OnnxModel) -> dict[str, float]:
        self._point("preparing" if model.digest == self.first else "evaluating")
        return super().evaluate(model)

    def release(self, model: OnnxModel, rounds: Sequence[RoundRecord], findings: Findings) -> Mapping[str, Any]:
        self._point("releasing")
        (self.folder / "released.onnx").write_bytes(model.data)
        asked = findings["evaluation"]
        reason = f"better after {len(rounds)} rounds, asked {len(asked.devices)} devices with {asked.rows} rows"
        return {"after": super().evaluate(model), "released": "new", "reason": reason}

    def _point(self, name: str) -> None:
        reach(self.folder, name)


def reach(folder: Path, point: str) -> None:
    (folder / f"at.{point}").touch()
    while (folder / f"hold.{point}").exists():
        time.sleep(0.01)


def hold_after_asks(folder: Path) -> None:
    """Make every ask of secure aggregation a point."""
    publish = ServerTransport.publish

    def and_reach(self: ServerTransport, topic: str, payload: bytes, **options: Any) -> None:
        publish(self, topic, payload, **options)
        if topic.endswith("/ask"):
            time.sleep(0.05)  # paho's thread has sent it
            reach(folder, f"ask.{cbor2.loads(payload[secure.SIGNATURE_BYTES :])['phase']}")

    ServerTransport.publish = and_reach  # type: ignore[method-assign]


if __name__ == "__main__":
    root, address, where = sys.argv[1:]
    hold_after_asks(Path(where))
    serve(Registry.open(Path(root)), address, retrain=Mortal(Path(where)), log=lambda line: print(line, flush=True))
