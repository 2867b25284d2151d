"""A real agent holds rows out: what it trains on and what it judges on never meet, also after it was killed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgeml_runtime.wire.holdout import places
from tests.runtime.agent_kit import AgentProcess, ServerSide, deploy, needs_mosquitto, until
from tests.runtime.test_agent_rounds import an_offer, confusion, offer, softmax_regression
from tests.runtime.test_task import second_moments

pytestmark = [pytest.mark.broker, needs_mosquitto]
SHARE = 0.2
RNG = np.random.default_rng(7)
X, Y = RNG.normal(size=(140, 64)).astype(np.float32), RNG.integers(0, 10, 140)
HELD = places({"numeric": X}) < SHARE
W = RNG.normal(size=(64, 10)).astype(np.float32)


def keep(agent: AgentProcess, rows: slice) -> None:
    agent.call("/samples", {"rows": X[rows].tolist(), "targets": [str(label) for label in Y[rows]]})


def asked(server: ServerSide, number: int, **changes: Any) -> tuple[Any, dict[str, np.ndarray]]:
    offer(server, an_offer(server, round=f"r-{number}", held_out=SHARE, **changes))
    return server.upload("pi-1")


def counts(rows: np.ndarray) -> np.ndarray:
    found = np.zeros((10, 10))
    np.add.at(found, (Y[rows], (X[rows] @ W).argmax(axis=1)), 1)
    return found


def test_what_is_trained_on_and_what_is_judged_on_never_meet(agent: AgentProcess, server: ServerSide) -> None:
    judge = {"graph": confusion(), "kind": "evaluation", "w": W, "scalars": {}}
    deploy(agent, server, "one", seq=1)
    keep(agent, slice(0, 100))
    seen = np.arange(140) < 100
    header, update = asked(server, 1)
    learned = np.flatnonzero(seen & ~HELD)
    error = np.eye(10)[Y[learned]] - 0.1
    np.testing.assert_allclose(update["delta.w"], 0.1 * X[learned].T @ error, atol=1e-4)
    assert (header.rows, header.metrics["held_out"]) == (len(learned), 100 - len(learned))

    header, found = asked(server, 2, **judge)
    np.testing.assert_array_equal(found["confusion"], counts(np.flatnonzero(seen & HELD)))
    assert header.rows == 100 - len(learned) >= 10

    agent.kill()
    agent.start()
    keep(agent, slice(60, 140))  # 40 of them once more, 40 new ones
    until(lambda: server.reports["pi-1"][-1].samples == 180, "the samples in the report")
    again = np.flatnonzero(HELD[:100]).tolist() + (60 + np.flatnonzero(HELD[60:])).tolist()
    header, found = asked(server, 3, **judge)
    assert header.rows == len(again), header.refused
    np.testing.assert_array_equal(found["confusion"], counts(np.array(again)))
    header, _ = asked(server, 4, graph=softmax_regression())
    assert header.rows == 180 - len(again)

    header, sums = asked(server, 5, graph=second_moments(64), kind="statistics", scalars={})
    assert header.rows == 180 and int(sums["rows"]) == 180, "sums are over all rows"


def test_too_few_rows_on_one_side_are_a_refusal_with_both_counts(agent: AgentProcess, server: ServerSide) -> None:
    deploy(agent, server, "one", seq=1)
    keep(agent, slice(0, 30))
    held = int(HELD[:30].sum())
    header, _ = asked(server, 1, graph=confusion(), kind="evaluation", w=W, scalars={})
    assert header.refused == f"{held} labelled rows held out ({30 - held} to learn from), and 10 are needed: label more"
    header, _ = asked(server, 2, min_rows=30)
    assert header.refused == f"{30 - held} labelled rows to learn from ({held} held out), and 30 are needed: label more"
    offer(server, an_offer(server, round="r-3", held_out=0.25))
    header, _ = server.upload("pi-1")
    assert header.refused.startswith("held_out 0.25: a device holds out 0, 0.1")
