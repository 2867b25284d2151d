"""A server that dies at any moment of a masked round, and comes back: it asks the same again, and gets the same sum."""

from __future__ import annotations

import json
from collections import defaultdict, deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml.federated import SecureRound, State
from edgeml.federated.journal import SecureState, resume_secure, secure_state
from edgeml.federated.layouts import Mean
from edgeml.federated.secagg import Phase
from edgeml.registry import Upload
from edgeml.server.open_round import OpenRound
from edgeml_runtime import secagg
from edgeml_runtime.wire import secure, topics
from edgeml_runtime.wire.plain import from_plain, to_plain
from edgeml_runtime.wire.secure import Ask, Say
from tests.federated.masked_fleet import ROUND, SERVER, SHAPES, TRUSTED
from tests.server.test_masked_round import Wire

AGREE = {Phase.SHARES: "shares", Phase.MASKED: "mask", Phase.AGREED: "agree", Phase.UNMASK: "unmask"}


class Death(Exception):
    """The server is gone."""


class Mortal(Wire):
    """A wire whose server keeps a journal as `Rounds` does, and dies before the steps that `deaths` names.

    `dies[device]` is the phase in which that device goes away for good. `ahead=False` sends before it writes.
    """

    def __init__(self, count: int, *, deaths: set[int], flushes: set[int], dies: dict[str, Phase]) -> None:
        super().__init__(count)
        self.deaths, self.flushes, self.dies = deaths, flushes, dies
        self.steps, self.now, self.ahead = 0, 0.0, True
        self.asked: dict[tuple[str, str], set[bytes]] = defaultdict(set)
        self.said: list[Say] = []
        self.rows: dict[tuple[str, str], Upload] = {}
        self.page = ""
        self.write()

    def write(self) -> None:
        self.page = json.dumps(to_plain(secure_state(self.machine, self.now)))
        self.rows |= {(one.round, one.device): one for one in self.open.kept()}

    def reborn(self) -> None:
        """What a new process makes of the journal; devices are told as `Synchronous.resume` tells them."""
        state = from_plain(SecureState, json.loads(self.page))
        self.machine: SecureRound = resume_secure(state, Mean(SHAPES), now=self.now)
        self.open = OpenRound(self.machine, self.offer, envelope=b"x", key_of=lambda d: self.keys.get(d, ""))
        self.open.replay(self.rows.values(), self.now)
        if not self.open.remind_all():
            for name in self.maskers:
                self.ready(name)  # the offer is there again, and they have answered it

    def run(self) -> None:
        for name in self.fleet.names:
            if self.dies.get(name) == Phase.KEYS:
                del self.maskers[name]  # for good: an offer that comes again finds nobody
            else:
                self.ready(name)
        while self.machine.state is State.OPEN:
            try:
                self.carry()
            except Death:
                self.reborn()

    def written_at(self, phase: Phase) -> None:
        """Let every device begin, and write the round down once it is in `phase`."""
        for name in self.fleet.names:
            self.ready(name)
        while self.machine.phase is not phase:
            self.ask()
            self.take(*self.up.popleft())
        self.write()

    def carry(self) -> None:
        """Carry what is on the way, as far as the server lives; when there is nothing, let time pass."""
        self.ask()
        while self.up:
            self.step()
            device, topic, payload = self.up.popleft()
            if topics.parse(topic).kind == "say":
                self.said.append(secure.decode_say(payload, self.keys[device]))
            self.take(device, topic, payload)
            if self.steps in self.flushes:
                self.write()
            self.ask()
        self.now += 100.0
        self.machine.tick(self.now)

    def take(self, device: str, topic: str, payload: bytes) -> None:
        if topics.parse(topic).kind == "say":
            self.open.said(device, payload, now=self.now)
        else:
            self.open.take(device, payload, now=self.now)

    def ask(self) -> None:
        if not self.open.asking:
            return
        if self.ahead:
            self.write()
        for topic, payload in self.open.asks(SERVER):
            self.step()
            ask = secure.decode_ask(payload, TRUSTED)
            self.asked[ask.device, ask.phase].add(repr(canonical(ask)).encode())
            gone = self.dies.get(ask.device)
            if gone is not None and AGREE.get(gone) == ask.phase:
                self.maskers.pop(ask.device, None)
            if ask.device in self.maskers:
                assert topics.parse(topic).device == ask.device
                self.maskers[ask.device].asked(payload, ROUND, 0.0)

    def step(self) -> None:
        self.steps += 1
        if self.steps in self.deaths:
            raise Death


def canonical(ask: Ask) -> list[object]:
    return [ask.phase, *(sorted(part.items()) for part in (ask.keys, ask.shares, ask.signatures)), ask.devices]


def check_nothing_was_asked_twice_and_differently(wire: Mortal) -> None:
    assert all(len(asks) == 1 for asks in wire.asked.values())
    seeds = {name for say in wire.said for name in say.seeds}
    assert not seeds & {name for say in wire.said for name in say.masks}, "never both shares of one device"
    phases = {name: one.member.phase for name, one in wire.maskers.items() if one.member}
    assert secagg.Phase.REFUSED not in phases.values()


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 6), st.sets(st.integers(1, 60), max_size=8), st.sets(st.integers(1, 60)), st.data())
def test_whenever_the_server_dies_it_asks_the_same_again_and_the_sum_is_right(
    count: int, deaths: set[int], flushes: set[int], data: st.DataObject
) -> None:
    names = [f"d{number:02}" for number in range(count)]
    drawn = {n: data.draw(st.sampled_from([None, None, None, *Phase]), label=n) for n in names}
    wire = Mortal(count, deaths=deaths, flushes=flushes, dies={n: p for n, p in drawn.items() if p is not None})
    wire.run()
    check_nothing_was_asked_twice_and_differently(wire)
    outcome, order = wire.machine.outcome, list(Phase)
    assert outcome is not None
    left = [sum(p is None or order.index(p) > i for p in drawn.values()) for i in range(len(order))]
    if min(left) < wire.fleet.asked.threshold:
        assert outcome.state is State.ABANDONED and outcome.change is None
        return
    assert outcome.state is State.CLOSED, outcome.why
    there = [n for n in names if drawn[n] in (None, Phase.AGREED, Phase.UNMASK)]
    assert [update.device for update in outcome.updates] == there
    assert outcome.change is not None
    for name, expected in wire.fleet.mean(there).items():
        np.testing.assert_allclose(outcome.change[name], expected, atol=1e-7)


def test_a_server_that_asks_before_it_writes_would_ask_about_other_survivors() -> None:
    """What the journal is written ahead for: here it is not, the late update of d04 changes the set, and all refuse."""
    wire = Mortal(5, deaths=set(), flushes=set(), dies={})
    for name in wire.fleet.names:
        wire.ready(name)
    while wire.machine.phase is not Phase.MASKED:
        wire.take(*wire.up.popleft())
        wire.ask()
    late = deque(one for one in wire.up if one[0] == "d04")
    while wire.up:
        if (one := wire.up.popleft())[0] != "d04":
            wire.take(*one)
    wire.write()
    wire.ahead, wire.now = False, 100.0
    wire.machine.tick(wire.now)
    wire.ask()
    wire.reborn()
    wire.up.extend(late)
    while wire.up:
        wire.take(*wire.up.popleft())
        wire.ask()
    assert any(len(asks) == 2 for asks in wire.asked.values())
    assert wire.machine.state is State.ABANDONED and "twice, and differently" in wire.machine.refused["d00"]


def test_a_journal_that_lacks_what_others_were_told_of_ends_the_round_with_the_reason() -> None:
    wire = Mortal(4, deaths=set(), flushes=set(), dies={})
    wire.written_at(Phase.AGREED)
    del wire.rows[ROUND, "d02"]
    wire.reborn()
    assert wire.machine.state is State.ABANDONED
    assert wire.machine.why == "the server was started again, and its journal lacks the masked of d02"


@pytest.mark.parametrize("away", [10.0, 1e6])
def test_time_without_a_server_does_not_count_and_devices_that_gave_up_say_so(away: float) -> None:
    wire = Mortal(3, deaths=set(), flushes=set(), dies={})
    wire.written_at(Phase.MASKED)
    wire.now = away
    for masker in wire.maskers.values():
        masker.tick(away)
    wire.up.clear()
    wire.reborn()
    assert wire.machine.tick(away) is State.OPEN
    wire.carry()
    outcome = wire.machine.outcome
    assert outcome is not None and (outcome.state is State.CLOSED) == (away < 1e3)
    assert all("silent for too long" in why for why in outcome.refused.values())
