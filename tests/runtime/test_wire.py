"""The contract between server and device: what is sent is what is read, and nothing else is read."""

from __future__ import annotations

import dataclasses
import itertools
import json
import typing
from collections.abc import Mapping
from typing import Any, Literal

import cbor2
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from edgeml_runtime.errors import BadSignature, MalformedMessage
from edgeml_runtime.wire import blocks, messages, tensors, topics
from edgeml_runtime.wire.manifest import (
    MAX_THREADS,
    Blob,
    Bounds,
    Feature,
    Manifest,
    ReleaseVariant,
    Settings,
    TensorSpec,
    blob_of,
    read_manifest,
)
from edgeml_runtime.wire.messages import MAX_BYTES, Metrics, Reported
from edgeml_runtime.wire.plain import from_plain, to_plain
from edgeml_runtime.wire.signed import canonical, public_hex, sign, unverified, verify

KINDS = sorted(MAX_BYTES, key=lambda kind: kind.__name__)
KEY, OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(32))), Ed25519PrivateKey.from_private_bytes(bytes(32))
TRUSTED = [public_hex(KEY)]
DIGEST = blocks.digest_of(b"a blob")
INTEGERS = st.integers(-(2**53), 2**53)
JSON = st.recursive(
    st.none() | st.booleans() | INTEGERS | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for anything a field of this type may hold."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Settings:  # the only message part with a rule of its own
        return st.builds(Settings, threads=st.integers(1, MAX_THREADS), spinning=st.booleans(), arena=st.booleans())
    if dataclasses.is_dataclass(kind):
        return instances(typing.cast(type, kind))
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if origin is Mapping or origin is typing.get_origin(Mapping[str, int]):
        return st.dictionaries(st.text(max_size=5), values(arguments[1]), max_size=3)
    if type(None) in arguments:
        return st.none() | values(next(a for a in arguments if a is not type(None)))
    simple = {str: st.text(max_size=20), int: INTEGERS, float: st.floats(allow_nan=False, allow_infinity=False)}
    return typing.cast("st.SearchStrategy[Any]", {**simple, bool: st.booleans(), bytes: st.binary(max_size=20)}[kind])


def instances(kind: type) -> st.SearchStrategy[Any]:
    """Return a strategy for instances of the dataclass `kind`, of the schema this side reads."""
    hints = typing.get_type_hints(kind)
    fields = {f.name: values(hints[f.name]) for f in dataclasses.fields(kind) if f.name != "schema"}
    return st.builds(kind, **fields)


# messages


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_every_message_arrives_as_it_was_sent(kind: Any, data: st.DataObject) -> None:
    message = data.draw(instances(kind))
    assert messages.decode(kind, messages.encode(message)) == message


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(payload=st.binary(max_size=300))
def test_no_bytes_make_a_decoder_fail_in_another_way(kind: Any, payload: bytes) -> None:
    with pytest.raises(MalformedMessage):
        messages.decode(kind, payload)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(document=JSON)
def test_no_document_makes_a_decoder_fail_in_another_way(kind: Any, document: Any) -> None:
    for payload in (json.dumps(document).encode(), cbor2.dumps(document)):
        with pytest.raises(MalformedMessage):
            messages.decode(kind, payload)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_message_beyond_its_limit_is_not_even_parsed(kind: Any) -> None:
    with pytest.raises(MalformedMessage, match=f"{kind.__name__} of .* bytes; the limit is {MAX_BYTES[kind]:,}"):
        messages.decode(kind, b" " * (MAX_BYTES[kind] + 1))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_a_message_of_another_schema_is_refused_by_its_number(kind: Any, data: st.DataObject) -> None:
    message = dataclasses.replace(data.draw(instances(kind)), schema=2)
    with pytest.raises(MalformedMessage, match=f"{kind.__name__} of schema 2: this side reads 1"):
        messages.decode(kind, messages.encode(message))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("opening", [b"[", b'{"a":', b"\x81", b"\xa1\x61a"], ids=["list", "object", "array", "map"])
def test_a_message_nested_without_end_is_refused(kind: Any, opening: bytes) -> None:
    with pytest.raises(MalformedMessage):
        messages.decode(kind, opening * (MAX_BYTES[kind] // len(opening)))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"colour": 1}, "Reported: unknown field 'colour'"),
        ({"seq": "7"}, "Reported.seq: expected int, got str '7'"),
        ({"seq": True}, "Reported.seq: expected int, got bool True"),
        ({"seq": 1.5}, "Reported.seq: expected int, got float 1.5"),
        ({"job": {"job": "j", "state": "HAPPY"}}, "Reported.job.state: expected one of QUEUED, .*, got 'HAPPY'"),
        ({"job": {"state": "QUEUED"}}, "Reported.job: field 'job' is missing"),
        ({"running": []}, r"Reported.running: expected dict, got list \[\]"),
        ({"hardware": {"cores": 4}}, r"Reported.hardware\['cores'\]: expected str, got int 4"),
    ],
)
def test_what_is_wrong_with_a_message_is_named(change: dict[str, Any], why: str) -> None:
    good = to_plain(Reported(boot_id="b", seq=1, agent="0.1", board="pi"))
    with pytest.raises(MalformedMessage, match=why):
        messages.decode(Reported, json.dumps(good | change).encode())


def test_a_whole_number_is_a_float_too() -> None:
    message = Metrics(boot_id="b", seq=1, uptime_s=2)
    assert messages.decode(Metrics, messages.encode(message)).uptime_s == 2.0


@given(document=JSON)
def test_reading_plain_values_only_ever_refuses(document: Any) -> None:
    with pytest.raises(MalformedMessage):
        from_plain(Manifest, document)


# blocks


@given(data=st.binary(min_size=1, max_size=3 * blocks.BLOCK_BYTES // 16), index=st.integers(0, 2**32 - 1))
def test_a_block_arrives_as_it_was_sent(data: bytes, index: int) -> None:
    payload = blocks.encode(DIGEST, index, data)
    assert blocks.is_block(payload)
    assert blocks.decode(payload) == (bytes.fromhex(DIGEST[:16]), index, data)


@pytest.mark.parametrize("size", [1, blocks.BLOCK_BYTES - 1, blocks.BLOCK_BYTES, blocks.BLOCK_BYTES + 1, 200_001])
def test_blocks_join_to_the_blob_and_fit_the_strictest_broker(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    parts = blocks.split(data[:size])
    assert b"".join(parts) == data[:size]
    assert len(parts) == blocks.count(size)
    assert all(len(blocks.encode(DIGEST, i, part)) < 65536 for i, part in enumerate(parts))


@given(payload=st.binary(max_size=100))
def test_bytes_that_are_no_block_are_refused(payload: bytes) -> None:
    with pytest.raises(MalformedMessage):
        blocks.decode(payload)


def test_a_block_that_is_too_long_or_of_another_version_is_refused() -> None:
    with pytest.raises(MalformedMessage, match="a block of 49173 bytes"):
        blocks.decode(blocks.encode(DIGEST, 0, bytes(blocks.BLOCK_BYTES + 1)))
    payload = bytearray(blocks.encode(DIGEST, 0, b"data"))
    payload[4] = 2
    with pytest.raises(MalformedMessage, match="version 2"):
        blocks.decode(bytes(payload))


@given(st.sets(st.integers(0, 500)))
def test_ranges_are_the_indices_sorted_and_joined(indices: set[int]) -> None:
    ranges = blocks.to_ranges(indices)
    assert [i for first, end in ranges for i in range(first, end)] == sorted(indices)
    assert all(end < first for (_, end), (first, _) in itertools.pairwise(ranges))


# topics

DEVICES = st.from_regex(topics.DEVICE_ID, fullmatch=True)
BUILDERS = {
    "desired": topics.desired,
    "reported": topics.reported,
    "online": topics.online,
    "req": topics.request,
    "blk": topics.block,
    "bench": topics.bench,
}


@pytest.mark.parametrize("kind", BUILDERS)
@given(device=DEVICES)
def test_topics_of_a_device_are_read_as_they_were_built(kind: str, device: str) -> None:
    name = BUILDERS[kind](device)
    assert topics.parse(name) == (kind, device, "")
    assert name.count("/") <= 7


@given(device=DEVICES, round_id=DEVICES)
def test_topics_with_a_detail_are_read_as_they_were_built(device: str, round_id: str) -> None:
    assert topics.parse(topics.update(device, round_id)) == ("up", device, round_id)
    assert topics.parse(topics.telemetry(device, "metrics")) == ("tel", device, "metrics")
    assert topics.parse(topics.task(round_id)) == ("task", "", round_id)
    assert topics.parse(topics.shared_block(DIGEST)) == ("blk", "", DIGEST)


@given(st.text(max_size=60) | st.from_regex(r"edgeml/v1/[dfl/a-z+#]{0,30}", fullmatch=True))
def test_a_foreign_topic_is_refused_or_is_exactly_one_of_ours(name: str) -> None:
    try:
        kind, device, detail = topics.parse(name)
    except MalformedMessage:
        return
    rebuilt = {"up": topics.update, "tel": topics.telemetry, "say": topics.say, "ask": topics.ask}.get(kind)
    if rebuilt:
        assert rebuilt(device, detail) == name
    else:
        assert (BUILDERS[kind](device) if device else topics.task(detail)) == name


@pytest.mark.parametrize("device", ["", "a b", "a/b", "+", "#", "ü", "x" * 65, "pi\n"])
def test_a_device_id_that_could_reach_other_topics_is_refused(device: str) -> None:
    with pytest.raises(MalformedMessage, match="device id"):
        topics.check_device_id(device)


def test_the_server_does_not_subscribe_to_what_it_publishes() -> None:
    sent = {topics.desired("+"), topics.block("+"), topics.bench("+"), topics.task("+"), topics.ask("+", "+")}
    assert not sent & set(topics.for_server())
    assert sent == {name.replace("/pi/", "/+/") for name in topics.for_device("pi")} - {topics.online("+")}


# signatures


@given(document=st.dictionaries(st.text(max_size=8), JSON, max_size=4))
def test_a_signed_document_is_read_by_those_who_trust_its_key(document: dict[str, Any]) -> None:
    envelope = sign(document, KEY)
    assert verify(envelope, TRUSTED) == document
    assert verify(envelope, [public_hex(OTHER), *TRUSTED]) == document
    assert unverified(envelope) == document
    for trusted in ([public_hex(OTHER)], []):
        with pytest.raises(BadSignature, match="this side trusts"):
            verify(envelope, trusted)


@given(data=st.data())
def test_any_flipped_bit_is_noticed(data: st.DataObject) -> None:
    document = {"model": "digits", "seq": 7, "nested": [1.5, None, {"ü": True}]}
    envelope = bytearray(sign(document, KEY))
    bit = data.draw(st.integers(0, 8 * len(envelope) - 1))
    envelope[bit // 8] ^= 1 << (bit % 8)
    try:
        assert verify(bytes(envelope), TRUSTED) == document  # the case of a hexadecimal digit says nothing
    except (BadSignature, MalformedMessage):
        return


def test_a_signature_of_another_document_is_refused() -> None:
    good, other = json.loads(sign({"seq": 1}, KEY)), json.loads(sign({"seq": 2}, KEY))
    forged = canonical({"signatures": good["signatures"], "signed": other["signed"]})
    with pytest.raises(BadSignature):
        verify(forged, TRUSTED)


def test_the_key_id_of_a_trusted_key_does_not_help_a_forger() -> None:
    forged, good = json.loads(sign({"seq": 1}, OTHER)), json.loads(sign({"seq": 1}, KEY))
    forged["signatures"][0]["keyid"] = good["signatures"][0]["keyid"]
    with pytest.raises(BadSignature):
        verify(canonical(forged), TRUSTED)


@given(envelope=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_what_is_no_envelope_is_refused(envelope: bytes) -> None:
    with pytest.raises(MalformedMessage, match="not a signed document"):
        verify(envelope, TRUSTED)


def test_an_envelope_beyond_the_limit_is_not_parsed() -> None:
    with pytest.raises(MalformedMessage, match="the limit is 4,194,304"):
        verify(b"[" * (5 << 20), TRUSTED)


@given(st.dictionaries(st.text(max_size=5), INTEGERS))
def test_canonical_bytes_do_not_depend_on_the_order(document: dict[str, int]) -> None:
    assert canonical(dict(reversed(document.items()))) == canonical(document)


# tensors


@given(
    array=st.sampled_from(["float32", "float64", "int64", "int8", "uint8", "bool"]).flatmap(
        lambda dtype: arrays(dtype, array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    ),
    words=st.lists(st.lists(st.text(max_size=5), min_size=2, max_size=2), min_size=1, max_size=4),
)
def test_arrays_of_numbers_and_words_arrive_bit_for_bit(array: np.ndarray, words: list[list[str]]) -> None:
    sent = {"input.numeric": array, "int8.label": np.array(words, dtype=object)}
    got = tensors.unpack(tensors.pack(sent))
    assert got.keys() == sent.keys()
    assert (got["input.numeric"].dtype, got["input.numeric"].shape) == (array.dtype, array.shape)
    assert got["input.numeric"].tobytes() == array.tobytes()
    assert got["int8.label"].tolist() == words


def test_arrays_that_are_not_contiguous_keep_their_values() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)[::-1, ::2].T
    assert np.array_equal(tensors.unpack(tensors.pack({"w": array}))["w"], array)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_tensors_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessage, match="not safetensors"):
        tensors.unpack(data)


@pytest.mark.parametrize("cut", [1, 7, 8, 9, 60, -1])
def test_cut_tensors_are_refused(cut: int) -> None:
    data = tensors.pack({"w": np.ones((4, 4), np.float32), "words": np.array([["a"]], object)})
    with pytest.raises(MalformedMessage, match="not safetensors"):
        tensors.unpack(data[:cut])


# manifest


def a_manifest(**changes: Any) -> Manifest:
    bounds = Bounds(max_abs=0.1, label_flips=1)
    graphs = [ReleaseVariant(name=name, graph=blob_of(name.encode()), bounds=bounds) for name in "ab"]
    fields = {
        "model": "digits",
        "release": "0123456789ab",
        "task": "classification",
        "created": "2030-01-01T00:00:00Z",
        "inputs": (TensorSpec(name="numeric", dtype="float32", shape=(-1, 64)),),
        "outputs": (TensorSpec(name="label", dtype="int64", shape=(-1,)),),
        "features": (Feature(name="pixel", kind="numeric"),),
        "classes": ("0", "1"),
        "variants": tuple(graphs),
        "default_variant": "a",
        "boards": {"raspberry-pi-4": "b"},
        "goldens": blob_of(b"goldens"),
    }
    return Manifest(**{**fields, **changes})


def test_a_manifest_survives_signing_and_reading() -> None:
    manifest = a_manifest()
    assert read_manifest(verify(sign(manifest.to_document(), KEY), TRUSTED)) == manifest


def test_a_board_nobody_chose_for_gets_the_default_variant() -> None:
    manifest = a_manifest()
    assert manifest.variant_for("raspberry-pi-4").name == "b"
    assert manifest.variant_for("toaster").name == "a"
    assert manifest.blobs_for("toaster") == (blob_of(b"a"), blob_of(b"goldens"))


@pytest.mark.parametrize("change", [{"default_variant": "c"}, {"boards": {"pi": "c"}}], ids=["default", "board"])
def test_a_variant_that_is_named_must_be_listed(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedMessage, match="variant 'c' is named but not listed"):
        read_manifest(a_manifest(**change).to_document())


def test_a_manifest_of_another_schema_is_refused() -> None:
    with pytest.raises(MalformedMessage, match="manifest schema 9: this side reads 1"):
        read_manifest(a_manifest(schema=9).to_document())


@pytest.mark.parametrize(("size", "count"), [(0, 0), (-1, 0), (10, 0), (10, 2), ((2 << 30) + 1, 43_691)])
def test_a_blob_must_have_a_size_and_the_blocks_of_that_size(size: int, count: int) -> None:
    with pytest.raises(MalformedMessage, match="cannot have"):
        Blob(digest=DIGEST, size=size, blocks=(DIGEST,) * count)


@given(st.binary(min_size=1, max_size=200_000))
def test_a_blob_describes_its_bytes(data: bytes) -> None:
    blob = blob_of(data)
    assert (blob.digest, blob.size) == (blocks.digest_of(data), len(data))
    assert list(blob.blocks) == [blocks.digest_of(part) for part in blocks.split(data)]
