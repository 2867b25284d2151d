"""What secure aggregation costs: milliseconds of a device and of the server, and bytes, with and without dropouts.

    python benchmarks/secure_sum.py [--repeats 3]

Every device is the runtime's own state machine, the server the coordinator's, and every message is encoded, signed,
verified and decoded as on the wire, in one process and one thread; only the broker is not there. An update is that of
the digits MLP: 4,810 float32. Dropouts have shared their secrets and then send nothing, which costs the server most.
Writes results/secure_sum.json and .md next to this file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeml.federated import Masks, SecureRound, State, Update
from edgeml.federated.layouts import Mean
from edgeml.federated.masks import terms
from edgeml.federated.secagg import Phase
from edgeml_runtime.measure import environment
from edgeml_runtime.secagg import Effect, Masked, Member
from edgeml_runtime.wire import secure, signed, tensors
from edgeml_runtime.wire.masking import MASKED
from edgeml_runtime.wire.messages import TaskOffer

RESULTS = Path(__file__).parent / "results"
SHAPES = {"w1": (64, 64), "b1": (64,), "w2": (64, 10), "b2": (10,)}
CASES = ((10, 0), (10, 3), (100, 0), (100, 20))  # devices, of which drop out
SERVER = Ed25519PrivateKey.generate()
TRUSTED = (signed.public_hex(SERVER),)


@dataclass
class Cost:
    """Seconds of every device and of the server, and bytes of every device."""

    device_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    server_s: float = 0.0
    up: Counter[str] = field(default_factory=Counter)
    down: Counter[str] = field(default_factory=Counter)
    error: float = 0.0

    @contextmanager
    def of(self, device: str) -> Iterator[None]:
        """Count the time of the block as that of `device`, "" for the server."""
        start = time.perf_counter()
        yield
        spent = time.perf_counter() - start
        if device:
            self.device_s[device] += spent
        else:
            self.server_s += spent


class Rehearsal:
    """One round of `count` devices of which the first `dropouts` send no update."""

    def __init__(self, count: int, dropouts: int) -> None:
        self.names = [f"device-{number:03}" for number in range(count)]
        self.gone = set(self.names[:dropouts])
        self.keys = {name: Ed25519PrivateKey.generate() for name in self.names}
        public = {name: signed.public_hex(key) for name, key in self.keys.items()}
        self.asked = terms(Masks(bound=4.0), public, least=2, rows=500)
        self.round = SecureRound("bench-1", self.asked, opened=0.0, deadline=60.0, layout=Mean(SHAPES))
        rng = np.random.default_rng(0)
        self.updates = {
            name: {k: rng.normal(0, 0.05, shape).astype(np.float32) for k, shape in SHAPES.items()}
            for name in self.names
        }
        self.rows = {name: int(rng.integers(50, 500)) for name in self.names}
        self.cost = Cost()

    def run(self) -> Cost:
        """Play it to its end, check the mean, and return what it cost."""
        offer = self._offer()
        members = {}
        for name in self.names:
            with self.cost.of(name):
                members[name] = Member(offer, name, self.keys[name])
                said = members[name].begin(self.updates[name], rows=self.rows[name], now=0.0)
                payload = secure.encode_say(said, self.keys[name])
            self._take(name, payload)
        while self.round.tick(0.0) is State.OPEN:
            with self.cost.of(""):
                asks = [(ask, secure.encode_ask(ask, SERVER)) for ask in self.round.asks()]
            for ask, payload in asks:
                self._answer(members[ask.device], ask.device, payload)
            if self.round.phase is Phase.MASKED:
                for name in self.gone:
                    with self.cost.of(""):
                        self.round.lost(name, 0.0)
        self._check()
        return self.cost

    def _answer(self, member: Member, name: str, payload: bytes) -> None:
        self.cost.down[name] += len(payload)
        with self.cost.of(name):
            effects: list[Effect] = member.asked(secure.decode_ask(payload, TRUSTED), 0.0)
        for effect in effects:
            if isinstance(effect, Masked):
                if name not in self.gone:
                    body = tensors.pack({MASKED: effect.array})
                    self.cost.up[name] += len(body)
                    with self.cost.of(""):
                        self.round.receive(name, Update(name, self.rows[name], tensors.unpack(body)), 0.0)
            else:
                with self.cost.of(name):
                    answer = secure.encode_say(effect, self.keys[name])
                self._take(name, answer)

    def _take(self, name: str, payload: bytes) -> None:
        self.cost.up[name] += len(payload)
        with self.cost.of(""):
            fault = self.round.said(name, secure.decode_say(payload, self.asked.keys[name]), 0.0)
        assert not fault, fault

    def _check(self) -> None:
        outcome = self.round.outcome
        assert outcome is not None and outcome.change is not None, outcome
        there = [name for name in self.names if name not in self.gone]
        assert [update.device for update in outcome.updates] == there
        weights = [self.rows[name] for name in there]
        for key in SHAPES:
            values = np.stack([self.updates[name][key].astype(np.float64) for name in there])
            expected = np.average(values, axis=0, weights=weights)
            self.cost.error = max(self.cost.error, float(np.abs(outcome.change[key] - expected).max()))

    def _offer(self) -> TaskOffer:
        return TaskOffer(
            round="bench-1",
            kind="training",
            model="digits",
            cohort=tuple(self.names),
            graph="0" * 64,
            graph_bytes=1,
            parameters="0" * 64,
            parameters_bytes=1,
            scalars={},
            min_rows=1,
            max_update_bytes=1 << 20,
            deadline_s=60.0,
            secure=self.asked,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    table = [
        f"Digits MLP, 4,810 float32 (19,240 bytes plain). Medians of {repeats} rounds; the device is one that stays.",
        "",
        "| devices | drop out | threshold | device ms | server ms | bytes up | bytes down | largest error |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    result = []
    for count, dropouts in CASES:
        rehearsals = [Rehearsal(count, dropouts) for _ in range(repeats)]
        costs = [one.run() for one in rehearsals]
        stay = rehearsals[0].names[-1]
        row = {
            "devices": count,
            "dropouts": dropouts,
            "threshold": rehearsals[0].asked.threshold,
            "device_ms": statistics.median(cost.device_s[stay] for cost in costs) * 1e3,
            "server_ms": statistics.median(cost.server_s for cost in costs) * 1e3,
            "bytes_up": costs[0].up[stay],
            "bytes_down": costs[0].down[stay],
            "error": max(cost.error for cost in costs),
        }
        result.append(row)
        table.append(
            f"| {count} | {dropouts} | {row['threshold']} | {row['device_ms']:.1f} | {row['server_ms']:.0f} | "
            f"{row['bytes_up']:,} | {row['bytes_down']:,} | {row['error']:.1e} |"
        )
    RESULTS.mkdir(exist_ok=True)
    document = {"environment": environment(), "repeats": repeats, "rounds": result}
    (RESULTS / "secure_sum.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "secure_sum.md").write_text("\n".join(table) + "\n", encoding="utf-8")
    print("\n".join(table))


if __name__ == "__main__":
    main()
