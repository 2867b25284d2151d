"""Secure aggregation among liars: servers that ask for too much, devices that send what is not theirs or not true."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml.federated import State, Update
from edgeml.federated.secagg import Phase
from edgeml_runtime import secagg
from edgeml_runtime.secagg import Masked, Member
from edgeml_runtime.wire import masking
from edgeml_runtime.wire.secure import Ask, Say
from tests.federated.masked_fleet import ROUND, Fleet, an_offer, changed

ORDER = list(Phase)


def after(fleet: Fleet, phase: Phase) -> None:
    """Run the honest protocol until the round waits for `phase`."""
    for name in fleet.names:
        fleet.send(name, fleet.members[name].begin(fleet.updates[name], rows=10, now=0.0))
    while fleet.round.phase is not phase:
        asks = fleet.round.asks()
        assert asks
        for ask in asks:
            fleet.ask(ask)


def test_a_server_that_asks_for_both_shares_of_a_device_is_refused() -> None:
    """First d03 is gone, so its mask key is asked for; then it is there, so its seed is."""
    fleet = Fleet(5)
    after(fleet, Phase.MASKED)
    asks = fleet.round.asks()
    for ask in asks:
        fleet.ask(ask)
    everybody, without = tuple(fleet.names), tuple(name for name in fleet.names if name != "d03")
    victim = fleet.members["d00"]
    one = Ask(round=ROUND, device="d00", phase="agree", devices=without)
    agreed = victim.asked(one, 0.0)[0]
    assert isinstance(agreed, Say) and agreed.phase == "agreed"
    assert victim.asked(one, 0.0) == [agreed], "the same ask has the same answer"
    refused = victim.asked(dataclasses.replace(one, devices=everybody), 0.0)[0]
    assert isinstance(refused, Say) and refused.phase == "refused" and "twice, and differently" in refused.reason
    assert victim.phase is secagg.Phase.REFUSED
    unmask = Ask(round=ROUND, device="d00", phase="unmask", signatures={})
    assert victim.asked(unmask, 0.0) == [refused], "and nothing more comes from it"


def test_a_server_that_tells_devices_of_different_sums_gets_no_shares() -> None:
    """Two of six are told of one sum and four of another: neither has a threshold of signatures."""
    fleet = Fleet(6)
    after(fleet, Phase.AGREED)
    fleet.round.asks()
    everybody = tuple(fleet.names)
    views = {name: everybody if name < "d02" else tuple(n for n in everybody if n != "d00") for name in everybody[1:]}
    signatures = {}
    for name, devices in views.items():
        said = fleet.members[name].asked(Ask(round=ROUND, device=name, phase="agree", devices=devices), 0.0)[0]
        assert isinstance(said, Say)
        signatures[name] = said.signature
    for name in views:
        said = fleet.members[name].asked(Ask(round=ROUND, device=name, phase="unmask", signatures=signatures), 0.0)[0]
        assert isinstance(said, Say) and said.phase == "refused" and "agreed to the same sum" in said.reason


def keys_of(fleet: Fleet) -> dict[str, bytes]:
    said = {n: fleet.members[n].begin(fleet.updates[n], rows=10, now=0.0) for n in fleet.names}
    return {name: say.keys + say.signature for name, say in said.items()}


LIES: dict[str, tuple[Callable[[dict[str, bytes]], dict[str, bytes]], str]] = {
    "a key that its device did not sign": (lambda keys: {**keys, "d01": bytes(32) + keys["d01"][32:]}, "not signed by"),
    "the keys of one device as another's": (lambda keys: {**keys, "d01": keys["d02"]}, "not signed by d01"),
    "a stranger": (lambda keys: {**keys, "zz": keys["d02"]}, "not signed by zz"),
    "too few devices": (lambda keys: {n: keys[n] for n in ("d00", "d01")}, "only 2 devices"),
    "without the device itself": (lambda keys: {n: k for n, k in keys.items() if n != "d00"}, "not this device's"),
    "half a key": (lambda keys: {**keys, "d01": keys["d01"][:-1]}, "not signed by"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_device_takes_only_the_keys_that_devices_signed(lie: str) -> None:
    fleet = Fleet(5)
    forge, words = LIES[lie]
    said = fleet.members["d00"].asked(Ask(round=ROUND, device="d00", phase="shares", keys=forge(keys_of(fleet))), 0.0)[
        0
    ]
    assert isinstance(said, Say) and said.phase == "refused" and words in said.reason


def test_signatures_of_a_round_are_void_when_it_is_offered_again() -> None:
    """The server has everybody sign a sum without d04, starts the round anew, and shows those signatures once more."""
    fleet, signatures = Fleet(5), dict[str, bytes]()
    for turn in (1, 2):
        fleet.members = {n: Member(an_offer(fleet.asked), n, fleet.identities[n]) for n in fleet.names}
        keys, said = keys_of(fleet), dict[str, Say]()
        for name, member in fleet.members.items():
            first = member.asked(Ask(round=ROUND, device=name, phase="shares", keys=keys), 0.0)[0]
            assert isinstance(first, Say)
            said[name] = first
        without = tuple(fleet.names[:4])
        for name, member in fleet.members.items():
            shares = {other: say.shares[name] for other, say in said.items() if other != name}
            member.asked(Ask(round=ROUND, device=name, phase="mask", shares=shares), 0.0)
            devices = without if turn == 1 or name == "d00" else tuple(fleet.names)
            agreed = member.asked(Ask(round=ROUND, device=name, phase="agree", devices=devices), 0.0)[0]
            if turn == 1 and isinstance(agreed, Say):
                signatures[name] = agreed.signature
    ask = Ask(round=ROUND, device="d00", phase="unmask", signatures={n: signatures[n] for n in without})
    answer = fleet.members["d00"].asked(ask, 0.0)[0]
    assert isinstance(answer, Say) and answer.phase == "refused" and "only 0 devices agreed" in answer.reason


@pytest.mark.parametrize("half", ["no key", "another's for shares", "another's for masks"])
def test_a_device_that_signs_keys_that_are_not_its_own_is_left_out(half: str) -> None:
    """The others would refuse them all: one device could end every round, and nobody would say which."""
    fleet = Fleet(6)
    first: list[bytes] = []

    def forge(say: Say) -> Say:
        if say.phase != "keys" or say.device not in ("d00", "d01"):
            return say
        first.append(say.keys)
        keys = {"no key": bytes(32) + say.keys[32:]}.get(half, first[0][:32] + say.keys[32:])
        keys = say.keys[:32] + first[0][32:] if half == "another's for masks" else keys
        if say.device == "d00":
            return say
        signature = fleet.identities["d01"].sign(masking.keys_document(ROUND, "d01", keys))
        return changed(say, keys=keys, signature=signature)

    fleet.forge = forge
    fleet.run()
    outcome = fleet.round.outcome
    assert outcome is not None and outcome.state is State.CLOSED
    assert [update.device for update in outcome.updates] == [n for n in fleet.names if n != "d01"]
    assert "d01" in outcome.refused


@pytest.mark.parametrize("part", [slice(0, 32), slice(32, 64)])
def test_a_device_takes_no_half_of_a_key_twice(part: slice) -> None:
    """One member signs another's key for masks as its own: two masks of a device could cancel."""
    fleet = Fleet(5)
    keys = keys_of(fleet)
    copied = bytearray(keys["d01"][:64])
    copied[part] = keys["d02"][part]
    signature = fleet.identities["d01"].sign(masking.keys_document(ROUND, "d01", bytes(copied)))
    ask = Ask(round=ROUND, device="d00", phase="shares", keys={**keys, "d01": bytes(copied) + signature})
    said = fleet.members["d00"].asked(ask, 0.0)[0]
    assert isinstance(said, Say) and said.phase == "refused" and "two devices have the same" in said.reason


def test_a_device_waits_for_others_that_train_until_the_round_s_deadline() -> None:
    fleet = Fleet(4)
    offer = dataclasses.replace(an_offer(fleet.asked), deadline_s=3600.0)
    member = Member(offer, "d00", fleet.identities["d00"])
    member.begin(fleet.updates["d00"], rows=10, now=0.0)
    member.tick(3600.0)
    assert member.active
    member.tick(3600.0 + 9 * fleet.asked.phase_s)
    assert not member.active


def test_keys_of_another_round_are_not_taken() -> None:
    fleet = Fleet(5)
    keys = keys_of(fleet)
    offer = dataclasses.replace(an_offer(fleet.asked), round="run-2")
    other = Member(offer, "d01", fleet.identities["d01"]).begin(fleet.updates["d01"], rows=10, now=0.0)
    said = fleet.members["d00"].asked(
        Ask(round=ROUND, device="d00", phase="shares", keys={**keys, "d01": other.keys + other.signature}), 0.0
    )[0]
    assert isinstance(said, Say) and said.phase == "refused"


ASKS = [
    ({"phase": "mask", "shares": {"zz": bytes(82)}}, Phase.SHARES, "which gave no keys"),
    ({"phase": "mask", "shares": {"d01": bytes(82)}}, Phase.SHARES, "only 2 devices"),
    ({"phase": "agree", "devices": ("d01", "d02", "d03", "d04")}, Phase.MASKED, "not this device's"),
    ({"phase": "agree", "devices": ("d00", "d01")}, Phase.MASKED, "only 2 devices"),
    ({"phase": "agree", "devices": ("d00", "d01", "d02", "zz")}, Phase.MASKED, "gave no shares"),
    ({"phase": "unmask", "signatures": {}}, Phase.AGREED, "only 0 devices"),
]


@pytest.mark.parametrize(("parts", "phase", "words"), ASKS)
def test_an_ask_that_would_open_too_much_ends_the_device_s_part(
    parts: dict[str, Any], phase: Phase, words: str
) -> None:
    fleet = Fleet(5)
    after(fleet, phase)
    for ask in fleet.round.asks():
        fleet.ask(ask)
    said = fleet.members["d00"].asked(Ask(round=ROUND, device="d00", **parts), 0.0)[0]
    assert isinstance(said, Say)
    assert said.phase == "refused" and words in said.reason


STEPS = ("shares", "mask", "agree", "unmask")


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 4),
    st.integers(0, 4),
    st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 4)), max_size=6),
)
def test_no_order_of_asks_gives_both_shares_of_a_device(honest: int, gone: int, more: list[tuple[str, int]]) -> None:
    """So many true asks, of a sum without one device; then asks with any one left out, in any order."""
    script = [(phase, gone if phase in ("agree", "unmask") else 0) for phase in STEPS[:honest]] + more
    fleet = Fleet(5)
    keys = keys_of(fleet)
    public = {name: signed_keys[: 2 * masking.KEY_BYTES] for name, signed_keys in keys.items()}
    shares: dict[str, dict[str, bytes]] = {}
    for name in fleet.names:
        said = fleet.members[name].asked(Ask(round=ROUND, device=name, phase="shares", keys=keys), 0.0)[0]
        assert isinstance(said, Say)
        shares[name] = dict(said.shares)
    victim, seeds, masks = fleet.members["d00"], set[str](), set[str]()
    for phase, left_out in script:
        names = [name for name in fleet.names if name != f"d0{left_out}" or left_out == 0]
        document = masking.survivors_document(ROUND, tuple(names), public)
        parts: dict[str, Any] = {
            "shares": {"keys": {name: keys[name] for name in names}},
            "mask": {"shares": {name: shares[name]["d00"] for name in names if name != "d00"}},
            "agree": {"devices": tuple(names)},
            "unmask": {"signatures": {name: fleet.identities[name].sign(document) for name in names}},
        }  # all others are the server's
        ask = Ask(round=ROUND, device="d00", phase=phase, **parts[phase])  # type: ignore[arg-type]
        for said in victim.asked(ask, 0.0):
            if isinstance(said, Say):
                seeds |= said.seeds.keys()
                masks |= said.masks.keys()
    assert not seeds & masks
    assert len(seeds | masks) <= 5
    assert honest < len(STEPS) or (masks == ({f"d0{gone}"} if gone else set()) and len(seeds | masks) == 5)


def test_a_late_masked_update_stays_masked_though_its_pairs_are_open() -> None:
    """d04's update comes after the others were unmasked without it: its own seed still covers it."""
    fleet = Fleet(5, dies={"d04": Phase.MASKED}, shapes={"w": (5_000,)})
    late: list[np.ndarray] = []
    send = fleet.send

    def keep(name: str, effect: Say | Masked) -> None:
        if name == "d04" and isinstance(effect, Masked):
            late.append(effect.array)
        send(name, effect)

    fleet.send = keep  # type: ignore[method-assign]
    fleet.run()
    outcome = fleet.round.outcome
    assert outcome is not None and outcome.state is State.CLOSED
    assert fleet.round.receive("d04", Update("d04", 10, {masking.MASKED: late[0]}), fleet.now) == "late"
    shares = {u: say.masks for u, say in fleet.round._said[Phase.UNMASK].items()}
    assert all("d04" in given for given in shares.values())
    assert not any("d04" in say.seeds for say in fleet.round._said[Phase.UNMASK].values())


def a_lie(name: str, phase: str, **parts: Any) -> Callable[[Say], Say]:
    return lambda say: changed(say, **parts) if (say.device, say.phase) == (name, phase) else say


FORGERIES = [
    a_lie("d01", "keys", keys=bytes(64)),
    a_lie("d01", "keys", signature=bytes(64)),
    a_lie("d01", "shares", shares={}),
    a_lie("d01", "shares", commitment=b""),
    a_lie("d01", "agreed", signature=bytes(64)),
    a_lie("d01", "unmask", seeds={"d00": b"short"}),
    a_lie("d01", "unmask", seeds={}),
    a_lie("d01", "unmask", seeds=dict.fromkeys(("d00", "d01", "d02", "d03", "d04"), b"\x00" * 33)),
    a_lie("d01", "unmask", seeds=dict.fromkeys(("d00", "d01", "d02", "d03", "d04"), b"\xff" * 33)),
]


@pytest.mark.parametrize("number", range(len(FORGERIES)))
def test_one_device_that_lies_does_not_spoil_the_sum_of_the_others(number: int) -> None:
    fleet = Fleet(6)
    fleet.forge = FORGERIES[number]
    fleet.run()
    outcome = fleet.round.outcome
    assert outcome is not None and outcome.state is State.CLOSED, outcome and outcome.why
    names = [update.device for update in outcome.updates]
    assert set(fleet.names) - set(names) <= {"d01"}
    for name, expected in fleet.mean(names).items():
        np.testing.assert_allclose(outcome.change[name], expected, atol=1e-6)  # type: ignore[index]


def test_shares_that_nobody_can_read_end_the_round_and_say_whose() -> None:
    fleet = Fleet(5)
    fleet.forge = lambda say: (
        changed(say, shares={name: bytes(82) for name in say.shares})
        if (say.device, say.phase) == ("d02", "shares")
        else say
    )
    fleet.run()
    outcome = fleet.round.outcome
    assert outcome is not None and outcome.state is State.ABANDONED and "d02's own mask" in outcome.why
    assert fleet.round.culprit == "d02"


def test_a_device_that_sends_no_masked_update_is_noticed_by_the_sum() -> None:
    """Whatever it sends, the sum of weights is not that of the rows: nothing is learned of it."""
    fleet = Fleet(5)
    after(fleet, Phase.MASKED)
    for ask in fleet.round.asks():
        effect = fleet.members[ask.device].asked(ask, 0.0)[0]
        if ask.device == "d03" and isinstance(effect, Masked):
            effect = Masked(np.arange(effect.array.size).astype(effect.array.dtype))
        fleet.send(ask.device, effect)
    while asks := fleet.round.asks():
        for ask in asks:
            fleet.ask(ask)
    outcome = fleet.round.outcome
    assert outcome is not None and outcome.state is State.ABANDONED and "masks do not cancel" in outcome.why


def test_a_round_counts_what_comes_twice_late_or_from_strangers() -> None:
    fleet = Fleet(4)
    say = fleet.members["d00"].begin(fleet.updates["d00"], rows=10, now=0.0)
    assert fleet.round.said("d00", say, 1.0) == ""
    assert fleet.round.said("d00", say, 1.0) == "duplicate"
    assert fleet.round.said("zz", changed(say, device="zz"), 1.0) == "stranger"
    assert fleet.round.said("d01", changed(say, device="d01", phase="shares"), 1.0) == "late"
    assert fleet.round.said("d01", say, 1.0) == "replayed" and not fleet.round.refused, "said by d00"
    assert fleet.round.tick(60.0) is State.ABANDONED
    assert fleet.round.said("d02", changed(say, device="d02"), 61.0) == "late"
    assert fleet.round.rejected["*"] == {"stranger": 1}
    assert "keys" in fleet.round.why and fleet.round.outcome is not None and fleet.round.outcome.error is not None


def test_a_device_that_comes_back_is_asked_again_and_answers_the_same() -> None:
    fleet = Fleet(4)
    after(fleet, Phase.SHARES)
    assert len(fleet.round.asks()) == 4
    fleet.round.lost("d02", 0.0)
    fleet.round.back("d02", 0.0)
    fleet.round.remind("d02")
    (ask,) = fleet.round.asks()
    assert (ask.device, ask.phase) == ("d02", "shares")
    first = fleet.members["d02"].asked(ask, 0.0)
    assert fleet.members["d02"].asked(ask, 0.0) == first == fleet.members["d02"].again()
