"""A federation of real processes, killed in every state: the server, each agent, the broker; it goes on as if not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeml import graph
from edgeml.artifacts import OnnxModel
from edgeml.registry import FederationRecord, Registry
from edgeml.transport import start_broker
from tests.server.agents import Agent, a_release
from tests.server.in_the_open import fedavg, learned
from tests.server.stand_ins import rows_of, until

pytestmark = [pytest.mark.broker, pytest.mark.fault, pytest.mark.journey]
NAMES = ("pi-a", "pi-b", "pi-c")
OPTIONS = {"rounds": 2, "min_devices": 3, "learning_rate": 0.1, "deadline_s": 30}


class Field:
    """A broker, three agents with rows, and a server that dies and comes back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry = Registry.open(folder / "registry")
        self.registry.add_release(a_release(), summary={}, run_dir="")
        self.broker = start_broker()
        self.server: subprocess.Popen[bytes] | None = None
        key, self.log = self.registry.public_key_hex(), (folder / "server.log").open("ab")
        self.agents = {name: Agent(name, self.broker, key=key, folder=folder / "agents") for name in NAMES}

    def serve(self) -> None:
        root, address = str(self.registry.root), f"{self.broker.host}:{self.broker.port}"
        command = [sys.executable, "-m", "tests.server.mortal", root, address, str(self.folder)]
        self.server = subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def kill_server(self) -> None:
        """Kill -9, as a power cut would."""
        assert self.server is not None
        self.server.kill()
        self.server.wait()
        self.server = None

    def begin(self, **options: Any) -> str:
        """Ask for a federation, once the server knows that everybody is there."""
        until(lambda: [one.id for one in self.registry.devices() if one.online] == list(NAMES), "all three online")
        for path in self.folder.glob("at.*"):
            path.unlink()
        (self.folder / "released.onnx").unlink(missing_ok=True)
        return self.registry.request_federation("toy", {**OPTIONS, **options})

    def hold(self, point: str) -> None:
        (self.folder / f"hold.{point}").touch()

    def let_go(self, point: str) -> None:
        (self.folder / f"hold.{point}").unlink(missing_ok=True)

    def reach(self, point: str) -> None:
        until((self.folder / f"at.{point}").exists, point)

    def end(self, federation_id: str) -> FederationRecord:
        until(lambda: self.registry.federation(federation_id).is_over, "the end of the federation")
        return self.registry.federation(federation_id)

    def updates(self, federation_id: str) -> int:
        return len(self.registry.journals.read(federation_id)[1])

    @property
    def released(self) -> bytes:
        return (self.folder / "released.onnx").read_bytes()

    def close(self) -> None:
        if self.server is not None:
            self.kill_server()
        for agent in self.agents.values():
            agent.process.kill()
            agent.process.wait()
        self.broker.stop()
        self.log.close()
        self.registry.close()


@pytest.fixture(scope="module")
def shared_field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    made = Field(tmp_path_factory.mktemp("field"))
    try:
        made.serve()
        registry = made.registry
        until(lambda: [one.id for one in registry.devices() if one.reported] == list(NAMES), "three agents")
        rollout = registry.request_rollout("toy", None, "all", deadline_s=60)
        until(lambda: registry.rollout(rollout).is_over, "the rollout")
        for seed, agent in enumerate(made.agents.values()):
            agent.label(rows_of(seed, 200))
        until(lambda: [r.samples for d in registry.devices() if (r := d.reported)] == [200] * 3, "the samples")
        made.kill_server()
        yield made
    finally:
        made.close()


@pytest.fixture
def field(shared_field: Field) -> Iterator[Field]:
    """Return the field without a server; what a test holds is let go at its end."""
    yield shared_field
    for path in shared_field.folder.glob("hold.*"):
        path.unlink()
    for agent in shared_field.agents.values():
        if agent.process.poll() is None:
            agent.process.send_signal(signal.SIGCONT)
    if shared_field.server is not None:
        shared_field.kill_server()


@pytest.fixture(scope="module")
def undisturbed(shared_field: Field) -> bytes:
    """Return the model that two rounds release when nothing happens."""
    shared_field.serve()
    record = shared_field.end(shared_field.begin())
    assert record.state == "SUCCEEDED", record.detail
    shared_field.kill_server()
    return shared_field.released


def waiting(field: Field, federation_id: str) -> None:
    for agent in field.agents.values():
        agent.process.send_signal(signal.SIGSTOP)
    until(lambda: field.registry.federation(federation_id).detail.startswith("round 1 of 2"), "the offer")


def open_with_two_updates(field: Field, federation_id: str) -> None:
    until(lambda: field.updates(federation_id) == 2, "two updates")


def asking(field: Field, federation_id: str) -> None:
    """The rounds are done, and two of three have said how well the candidate does there."""
    field.reach("asking")
    field.agents["pi-c"].process.send_signal(signal.SIGSTOP)
    field.let_go("asking")
    until(lambda: field.updates(federation_id) == 2, "two answers")


STATES: dict[str, Callable[[Field, str], None]] = {
    "preparing": lambda field, _: field.reach("preparing"),
    "nobody has answered": waiting,
    "two of three have answered": open_with_two_updates,
    "evaluating": lambda field, _: field.reach("evaluating"),
    "asking": asking,
    "releasing": lambda field, _: field.reach("releasing"),
}


SELDOM = ("preparing", "nobody has answered", "before")  # what the others nearly say; with `-m slow`


def often(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.slow] if name in SELDOM else []) for name in names]


@pytest.mark.parametrize("state", often(STATES))
def test_a_server_killed_in_any_state_resumes_and_releases_the_same_bits(
    field: Field, undisturbed: bytes, state: str
) -> None:
    field.hold(state)
    if state == "two of three have answered":
        field.agents["pi-c"].process.send_signal(signal.SIGSTOP)
    field.serve()
    federation_id = field.begin()
    STATES[state](field, federation_id)
    field.kill_server()
    field.let_go(state)
    for agent in field.agents.values():
        agent.process.send_signal(signal.SIGCONT)
    before = field.registry.federation(federation_id)
    field.serve()
    record = field.end(federation_id)
    assert record.state == "SUCCEEDED", record.detail
    assert record.rounds[: len(before.rounds)] == before.rounds, "what was done is done once"
    held = record.rounds[0].held_out
    assert [(done.round, done.participants, done.rows, done.held_out) for done in record.rounds] == [
        (number, NAMES, 600 - held, held) for number in (1, 2)
    ]
    assert field.released == undisturbed
    assert record.detail == f"better after 2 rounds, asked 3 devices with {held} rows" and 90 < held < 150
    until(lambda: not field.registry.journals.known(), "the journal to be dropped")


@pytest.mark.slow
def test_a_server_killed_again_and_again_gets_there(field: Field, undisturbed: bytes) -> None:
    field.serve()
    federation_id = field.begin()
    for point in ("preparing", "evaluating", "asking", "releasing"):
        field.reach(point)
        field.kill_server()
        field.serve()
    assert field.end(federation_id).state == "SUCCEEDED" and field.released == undisturbed


MASKS = {"share": 0.6, "phase_s": 20.0}
PHASES = ("keys", "shares", "mask", "agree", "unmask")


@pytest.mark.parametrize("phase", [pytest.param(p, marks=[] if p == "agree" else [pytest.mark.slow]) for p in PHASES])
def test_a_masked_round_survives_its_server_in_every_phase(field: Field, phase: str) -> None:
    """Killed when one of three has said its keys, or has been asked; the questions to the fleet are masked, too."""
    field.hold(f"ask.{phase}")
    if phase == "keys":
        field.agents["pi-c"].process.send_signal(signal.SIGSTOP)
    field.serve()
    federation_id = field.begin(rounds=1, secure=MASKS)
    if phase == "keys":
        until(lambda: field.updates(federation_id) == 2, "two devices' keys")
    else:
        field.reach(f"ask.{phase}")
    field.kill_server()
    field.let_go(f"ask.{phase}")
    field.agents["pi-c"].process.send_signal(signal.SIGCONT)
    field.serve()
    record = field.end(federation_id)
    assert record.state == "SUCCEEDED", record.detail
    assert [(done.state, done.participants, dict(done.refused)) for done in record.rounds] == [("closed", NAMES, {})]
    rows = [learned(rows_of(seed, 200)) for seed in range(3)]
    held = 600 - sum(len(one["target"]) for one in rows)
    assert record.detail == f"better after 1 rounds, asked 3 devices with {held} rows"
    released = graph.initializers(OnnxModel(field.released, "test"))
    for name, expected in fedavg(rows).items():
        np.testing.assert_allclose(released[name], expected, atol=2e-6)


@pytest.mark.slow
def test_a_masked_round_survives_a_server_that_dies_in_all_its_phases(field: Field) -> None:
    for phase in PHASES[1:]:
        field.hold(f"ask.{phase}")
    field.serve()
    federation_id = field.begin(rounds=1, secure=MASKS)
    for phase in PHASES[1:]:
        field.reach(f"ask.{phase}")
        field.kill_server()
        field.let_go(f"ask.{phase}")
        field.serve()
    record = field.end(federation_id)
    assert record.state == "SUCCEEDED", record.detail
    assert [(done.state, done.participants) for done in record.rounds] == [("closed", NAMES)]


def before_its_update(field: Field, federation_id: str) -> None:
    until(lambda: field.updates(federation_id) == 2, "the others")


def while_it_trains(field: Field, federation_id: str) -> None:
    agent = field.agents["pi-c"]

    def trains() -> bool:
        at = agent.status["round"]
        return bool(at and at["round"] == f"{federation_id}-1" and at["phase"] == "TRAINING")

    until(trains, "pi-c to train")


def after_its_update(field: Field, federation_id: str) -> None:
    until(lambda: field.updates(federation_id) >= 1, "its update")


MOMENTS: dict[str, tuple[Callable[[Field, str], None], tuple[str, ...]]] = {  # when, and who is stopped until then
    "before": (before_its_update, ("pi-c",)),
    "during": (while_it_trains, ()),
    "after": (after_its_update, ("pi-a", "pi-b")),
}


@pytest.mark.parametrize("moment", often(MOMENTS))
def test_an_agent_killed_before_during_or_after_its_update_takes_part_all_the_same(field: Field, moment: str) -> None:
    mortal, (reached, stopped) = field.agents["pi-c"], MOMENTS[moment]
    for name in stopped:
        field.agents[name].process.send_signal(signal.SIGSTOP)
    field.serve()
    federation_id = field.begin(rounds=1, local_epochs=400 if moment == "during" else 1)
    reached(field, federation_id)
    os.kill(mortal.process.pid, signal.SIGKILL)
    mortal.process.wait()
    mortal.start()
    for name in stopped:
        field.agents[name].process.send_signal(signal.SIGCONT)
    record = field.end(federation_id)
    assert record.state == "SUCCEEDED", record.detail
    assert [done.participants for done in record.rounds] == [NAMES]


def test_an_asynchronous_federation_survives_its_server_too(field: Field) -> None:
    """pi-c is slow, the server dies while it scores the first step, and then pi-b is away: pi-c's update is needed."""
    field.agents["pi-c"].process.send_signal(signal.SIGSTOP)
    field.hold("evaluating")
    field.serve()
    federation_id = field.begin(mode="async", buffer={"size": 2}, min_devices=2, rounds=2)
    field.reach("evaluating")
    field.kill_server()
    field.let_go("evaluating")
    field.agents["pi-b"].process.send_signal(signal.SIGSTOP)
    field.agents["pi-c"].process.send_signal(signal.SIGCONT)
    field.serve()
    until(lambda: len(field.registry.federation(federation_id).rounds) == 2, "the second step")
    field.agents["pi-b"].process.send_signal(signal.SIGCONT)  # it is asked about the candidate, too
    record = field.end(federation_id)
    assert record.state == "SUCCEEDED", record.detail
    assert [(done.round, dict(done.staleness)) for done in record.rounds] == [
        (1, {"pi-a": 0, "pi-b": 0}),
        (2, {"pi-a": 0, "pi-c": 1}),
    ]
