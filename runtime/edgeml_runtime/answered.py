"""The last answer to a task, on the disk: an agent that was killed sends the same again and runs nothing twice.

With noise this matters: a second run would add other noise to the same update, and two of them tell more than one.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeml_runtime.config import Policy, write_atomic
from edgeml_runtime.errors import MalformedMessage
from edgeml_runtime.wire import tensors
from edgeml_runtime.wire.messages import TaskOffer
from edgeml_runtime.wire.plain import from_plain, to_plain

FACTS, BODY = "facts", "body"


@dataclass(frozen=True)
class Trained:
    """What one round's upload is made of."""

    body: bytes
    rows: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Facts:
    """What an answer was to: another offer of the same round is another question."""

    question: str
    rows: int
    metrics: dict[str, float]


class Answered:
    """The file at `path`: one answer, given under the owner's `policy`, replaced as a whole."""

    def __init__(self, path: Path, policy: Policy) -> None:
        self._path, self._policy = path, policy

    def keep(self, offer: TaskOffer, given: Trained) -> None:
        """Put the answer to `offer` on the disk; raise StorageFull."""
        facts = json.dumps(to_plain(Facts(self._question(offer), given.rows, given.metrics)))
        body = np.frombuffer(given.body, dtype=np.uint8)
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(self._path, tensors.pack({FACTS: np.array([facts], dtype=object), BODY: body}))

    def to(self, offer: TaskOffer) -> Trained | None:
        """Return the answer that was given to `offer`, None when there is none, or its file is damaged."""
        try:
            found = tensors.unpack(self._path.read_bytes())
            facts = from_plain(Facts, json.loads(found[FACTS][0]))
            given = Trained(found[BODY].tobytes(), facts.rows, facts.metrics)
        except (FileNotFoundError, MalformedMessage, KeyError, IndexError, ValueError, TypeError):
            return None
        return given if facts.question == self._question(offer) else None

    def forget(self) -> None:
        self._path.unlink(missing_ok=True)

    def _question(self, offer: TaskOffer) -> str:
        """Return all that an answer depends on: the offer but for whom else it asks and how long, and the policy."""
        same = dataclasses.replace(offer, cohort=(), deadline_s=0.0)
        return json.dumps([to_plain(same), to_plain(self._policy)], sort_keys=True)
