"""The demo's data: scikit-learn's handwritten digits, dealt so that no agent alone is enough.

1,797 images of 8 x 8 pixels: 120 for the first model, 300 the server judges releases on, 400 for the final test,
and the rest to three agents, each of which hardly ever sees the digits of the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeml.data.sources import TARGET, read_source
from edgeml.project import Read

FIRST, VALID, TEST = 120, 300, 400  # rows; the agents share what is left
SKEW = 0.9  # of an agent's rows show its own digits, the others any
OWNER = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])  # which agent sees which digit

PROJECT = """\
# The first model of `edgeml demo`: a little data, three boards, and the wish to learn on the devices.
name: digits
task: classification
data: {train: first.csv, valid: valid.csv, test: test.csv, target: target}
search: {metric: accuracy}
compile: {max_accuracy_drop: 0.02}
devices:
  - {board: raspberry-pi-zero-2w, latency_p90_ms: 5, memory_mb: 128}
  - {board: raspberry-pi-4, latency_p90_ms: 5, memory_mb: 128}
  - {board: raspberry-pi-5, latency_p90_ms: 5, memory_mb: 128}
federated: {enabled: true, min_devices: 2, local_epochs: 2, learning_rate: 0.05, momentum: 0.9}
track: {mlflow: off}
"""


@dataclass(frozen=True)
class Share:
    """Rows of one holder: pixel columns by name, and the digit each shows."""

    columns: tuple[str, ...]
    pixels: np.ndarray  # float32 (n, 64), 0 to 16
    digits: np.ndarray  # int64 (n,)

    def rows(self) -> list[dict[str, float]]:
        return [dict(zip(self.columns, row, strict=True)) for row in self.pixels.tolist()]


def deal(folder: Path, *, agents: int, seed: int = 0) -> tuple[Share, list[Share]]:
    """Write the project and its tables into `folder`; return the test share and one share per agent."""
    frame = read_source("sklearn:digits", Path(), Read()).frame
    columns = tuple(name for name in frame.columns if name != TARGET)
    everything = Share(columns, frame[list(columns)].to_numpy(np.float32), frame[TARGET].to_numpy().astype(np.int64))
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(frame))
    first, valid, test, pool = np.split(order, np.cumsum([FIRST, VALID, TEST]))
    folder.mkdir(parents=True, exist_ok=True)
    for name, index in (("first", first), ("valid", valid), ("test", test)):
        frame.iloc[index].to_csv(folder / f"{name}.csv", index=False)
    (folder / "edgeml.yaml").write_text(PROJECT, encoding="utf-8")
    owner = np.where(
        rng.random(len(pool)) < SKEW, OWNER[everything.digits[pool]] % agents, rng.integers(0, agents, len(pool))
    )
    return _take(everything, test), [_take(everything, pool[owner == agent]) for agent in range(agents)]


def _take(share: Share, index: np.ndarray) -> Share:
    return Share(share.columns, share.pixels[index], share.digits[index])
