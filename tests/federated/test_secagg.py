"""Secure aggregation: the sum is right whoever dies when, and nobody who asks for more gets it."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml.errors import UserError
from edgeml.federated import State, Update
from edgeml.federated.masks import Masks, terms
from edgeml.federated.secagg import Phase
from edgeml_runtime import secagg
from edgeml_runtime.errors import BadSignature, MalformedMessage
from edgeml_runtime.wire import masking, shamir, signed
from edgeml_runtime.wire.secure import Ask, decode_ask, decode_say, encode_ask
from tests.federated.masked_fleet import ROUND, SERVER, SHAPES, TRUSTED, Fleet, an_offer

ORDER = list(Phase)


def in_the_sum(fleet: Fleet) -> list[str]:
    gone_before = {Phase.KEYS, Phase.SHARES, Phase.MASKED}
    return [name for name in fleet.names if fleet.dies.get(name) not in gone_before]


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 9), st.data(), st.sampled_from([16, 32, 64]), st.sampled_from([0, 30, 1000]))
def test_the_sum_is_of_those_that_sent_an_update_whoever_dies_when(
    count: int, data: st.DataObject, bits: Any, rows: int
) -> None:
    names = [f"d{number:02}" for number in range(count)]
    dies = {n: p for n in names if (p := data.draw(st.sampled_from([None, None, None, *Phase]), label=n)) is not None}
    fleet = Fleet(count, dies=dies, bits=bits, rows=rows)
    fleet.run()
    outcome = fleet.round.outcome
    assert outcome is not None, "no round is open for ever"
    left = {phase: sum(n not in dies or ORDER.index(dies[n]) > i for n in names) for i, phase in enumerate(ORDER)}
    if min(left.values()) < fleet.asked.threshold:
        assert (outcome.state, outcome.change) == (State.ABANDONED, None)
        return
    assert outcome.state is State.CLOSED, outcome.why
    assert [update.device for update in outcome.updates] == in_the_sum(fleet)
    step = fleet.asked.bound / masking.whole(fleet.asked)
    lightest = 10 / rows if rows else 1.0  # a light device has fewer steps
    assert outcome.change is not None
    for name, expected in fleet.mean(in_the_sum(fleet)).items():
        assert outcome.change[name].shape == SHAPES[name]
        np.testing.assert_allclose(outcome.change[name], expected, atol=2.1 * step / lightest + 1e-14)


def test_a_masked_update_says_nothing_by_itself() -> None:
    """The bits of two devices with very different updates look alike, and neither is there in the open."""
    fleet = Fleet(5, shapes={"w": (20_000,)})
    fleet.updates["d00"]["w"][:] = 0
    seen: dict[str, np.ndarray] = {}
    receive = fleet.round.receive

    def look(device: str, update: Update, now: float) -> str:
        seen[device] = update.delta[masking.MASKED]
        return receive(device, update, now)

    fleet.round.receive = look  # type: ignore[method-assign]
    for name in fleet.names:
        fleet.send(name, fleet.members[name].begin(fleet.updates[name], rows=10, now=0.0))
    for _ in range(2):
        for ask in fleet.round.asks():
            fleet.ask(ask)
    assert list(seen) == fleet.names
    for array in seen.values():
        assert abs(np.unpackbits(array.view(np.uint8)).mean() - 0.5) < 0.003
        assert np.unique(array).size > 19_900


def test_secrets_are_forgotten_in_the_end() -> None:
    fleet = Fleet(4)
    member = fleet.members["d01"]
    fleet.run()
    assert not member.active and member._seed == b"" and member._vector.size == 0
    other = Fleet(4).members["d01"]
    other.begin(fleet.updates["d01"], rows=10, now=0.0)
    other.tick(1e6)
    assert other.phase is secagg.Phase.REFUSED and other._seed == b""


OBJECTIONS = [
    ({}, ""),
    ({"threshold": 2}, "more than half must stay"),
    ({"threshold": 5}, "more than half must stay"),
    ({"bound": 0.0}, "bound 0"),
    ({"bound": float("nan")}, "bound nan"),
    ({"phase_s": 0.0}, "phase_s 0"),
    ({"rows": -1}, "rows -1"),
    ({"keys": {}}, "one key of each device"),
    ({"ranges": {"loss": 1.0}, "bits": 64}, "1 ranges: training cannot be summed so"),
]


@pytest.mark.parametrize(("parts", "words"), OBJECTIONS)
def test_a_device_does_not_take_part_in_what_would_not_hide_it(parts: dict[str, Any], words: str) -> None:
    fleet = Fleet(4)
    offer, keys = an_offer(fleet.asked), fleet.asked.keys
    offer = dataclasses.replace(offer, secure=dataclasses.replace(fleet.asked, **parts))
    found = secagg.objection(offer, "d00", fleet.asked.keys["d00"])
    assert words in found and bool(words) == bool(found)
    peers = [fleet.asked.keys[name] for name in ("d01", "d02")]
    assert "2 peers, and d03 is none" in secagg.objection(an_offer(fleet.asked), "d00", keys["d00"], peers=peers)
    assert secagg.objection(an_offer(fleet.asked), "d00", keys["d00"], peers=[*peers, keys["d03"]]) == ""
    assert "another" in secagg.objection(an_offer(fleet.asked), "d00", "ab" * 32)


SUMS = [
    ({}, ""),
    ({"ranges": {}}, "0 ranges: evaluation cannot"),
    ({"bits": 32}, "masks of 32 bits"),
    ({"ranges": {"loss": float("nan")}}, "a range of nan for 'loss'"),
    ({"ranges": {"loss": 2.0**101}}, "from above 0 to 2^100"),
]


@pytest.mark.parametrize(("parts", "words"), SUMS)
def test_a_device_adds_up_outputs_only_within_ranges_that_were_agreed(parts: dict[str, Any], words: str) -> None:
    fleet = Fleet(4)
    asked = dataclasses.replace(fleet.asked, **{"bits": 64, "ranges": {"loss": 8.0}, **parts})
    offer = dataclasses.replace(an_offer(asked), kind="evaluation")
    found = secagg.objection(offer, "d00", asked.keys["d00"])
    assert words in found and bool(words) == bool(found)


@pytest.mark.parametrize(
    ("value", "phase"), [(7.9, "keys"), (8.0, "refused"), (np.nan, "refused"), (-np.inf, "refused")]
)
def test_a_device_whose_sum_is_beyond_the_range_says_so_and_takes_no_part(value: float, phase: str) -> None:
    fleet = Fleet(4)
    asked = dataclasses.replace(fleet.asked, bits=64, ranges={"loss": 8.0})
    member = secagg.Member(dataclasses.replace(an_offer(asked), kind="evaluation"), "d00", fleet.identities["d00"])
    say = member.begin({"loss": np.array([0.5, value])}, rows=9, now=0.0)
    assert say.phase == phase and ("'loss'" in say.reason) == (phase == "refused")
    assert member.active == (phase == "keys")


def test_terms_are_bounded_by_what_fits_one_message() -> None:
    keys = {f"d{number}": f"{number:064x}" for number in range(300)}
    with pytest.raises(UserError, match="300 devices: it takes 2 to 256"):
        terms(Masks(), keys, least=2, rows=0)
    asked = terms(Masks(), dict(list(keys.items())[:256]), least=2, rows=0)
    full = {name: bytes(128) for name in asked.keys}
    assert len(encode_ask(Ask(round="r" * 64, device="d" * 64, phase="shares", keys=full), SERVER)) < 64 << 10
    assert asked.threshold == 172
    with pytest.raises(UserError, match="more than half"):
        Masks(share=0.5)


def test_an_ask_of_another_server_is_not_read() -> None:
    ask = Ask(round=ROUND, device="d00", phase="agree", devices=("d00",))
    payload = encode_ask(ask, SERVER)
    assert decode_ask(payload, TRUSTED) == ask
    with pytest.raises(BadSignature):
        decode_ask(payload, (signed.public_hex(Fleet(2).identities["d00"]),))
    with pytest.raises(BadSignature):
        decode_ask(payload[:-1] + b"\x00", TRUSTED)
    with pytest.raises(BadSignature):
        decode_say(payload, TRUSTED[0])
    with pytest.raises(MalformedMessage, match="limit is 65,536"):
        decode_ask(SERVER.sign(b"edgeml secure aggregation v1 ask\0" + bytes(1 << 17)) + bytes(1 << 17), TRUSTED)
    with pytest.raises(BadSignature):
        decode_ask(bytes(1 << 17), TRUSTED)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_noise_on_the_wire_is_no_message(noise: bytes) -> None:
    with pytest.raises(BadSignature):
        decode_ask(noise, TRUSTED)
    with pytest.raises(BadSignature):
        decode_say(noise, TRUSTED[0])
    signature = SERVER.sign(b"edgeml secure aggregation v1 say\0" + noise)
    with pytest.raises(MalformedMessage):
        decode_say(signature + noise, TRUSTED[0])


@settings(deadline=None, max_examples=50)
@given(st.binary(min_size=32, max_size=32), st.integers(1, 12), st.data())
def test_any_threshold_of_shares_is_the_secret(secret: bytes, count: int, data: st.DataObject) -> None:
    threshold = data.draw(st.integers(1, count))
    shares = dict(enumerate(shamir.split(secret, count=count, threshold=threshold)))
    chosen = tuple(data.draw(st.permutations(range(count)))[:threshold])
    assert shamir.combine(shares, shamir.weights(chosen)) == secret
    if threshold > 1:
        with contextlib.suppress(MalformedMessage):  # a number above 2^256 is no secret
            assert shamir.combine(shares, shamir.weights(chosen[:-1])) != secret


def test_a_public_key_of_small_order_is_refused() -> None:
    with pytest.raises(MalformedMessage, match="nothing can be agreed"):
        masking.exchange(secagg.X25519PrivateKey.generate(), bytes(32))
