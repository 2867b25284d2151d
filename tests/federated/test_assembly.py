"""An upload put together from its header and blocks, whatever their order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml.federated import Assembly, check_update
from edgeml_runtime.wire import BadDigest, MalformedMessage, blocks, tensors
from edgeml_runtime.wire.messages import UpdateHeader

PARAMETERS = {"w": np.arange(40_000, dtype=np.float32).reshape(200, 200), "b": np.ones(3, np.float32)}
DATA = tensors.pack({f"delta.{name}": value for name, value in PARAMETERS.items()})


def a_header(data: bytes = DATA, **changes: Any) -> UpdateHeader:
    given: dict[str, Any] = {"round": "run-1", "device": "pi", "boot_id": "boot", "rows": 30}
    return UpdateHeader(**{**given, "digest": blocks.digest_of(data), "size": len(data), **changes})


def the_blocks(data: bytes = DATA) -> list[blocks.Block]:
    prefix = bytes.fromhex(blocks.digest_of(data)[:16])
    return [blocks.Block(prefix, i, part) for i, part in enumerate(blocks.split(data))]


def an_assembly(limit: int = len(DATA) + 1000) -> Assembly:
    return Assembly(round="run-1", device="pi", max_update_bytes=limit)


@given(st.permutations(range(len(the_blocks()) + 1)))
@settings(max_examples=30, deadline=None)
def test_header_and_blocks_may_come_in_any_order(order: list[int]) -> None:
    assembly, parts = an_assembly(), the_blocks()
    for i in order:
        assert not assembly.complete
        if i == len(parts):
            assembly.open(a_header())
        else:
            assert assembly.add(parts[i])
            assert not assembly.add(parts[i]), "twice is once"
    assert assembly.complete
    deltas = check_update(assembly.arrays(), PARAMETERS)
    assert all(np.array_equal(deltas[name], PARAMETERS[name]) for name in PARAMETERS)


def test_blocks_of_something_else_are_no_part_of_it() -> None:
    assembly = an_assembly()
    other = the_blocks(DATA[::-1])
    assert assembly.add(other[0])
    assembly.open(a_header())
    assert not assembly.add(other[1])
    for block in the_blocks():
        assert assembly.add(block)
    assert assembly.complete and len(assembly.arrays()) == 2


def test_a_flipped_bit_is_found_and_the_upload_can_be_sent_again() -> None:
    assembly = an_assembly()
    assembly.open(a_header())
    first, *rest = the_blocks()
    assembly.add(first._replace(data=first.data[:-1] + bytes([first.data[-1] ^ 1])))
    for block in rest:
        assembly.add(block)
    with pytest.raises(BadDigest, match=f"{len(DATA):,} bytes of pi are not the promised"):
        assembly.arrays()
    for block in the_blocks():
        assembly.add(block)
    assert set(assembly.arrays()) == {"delta.w", "delta.b"}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (a_header(size=10**9), "announces 1,000,000,000 bytes.*takes 1 to"),
        (a_header(size=0), "announces 0 bytes"),
        (a_header(refused="no rows"), "'no rows'"),
        (a_header(round="run-2"), "round run-2 by pi; expected run-1"),
        (a_header(device="other"), "by other"),
        (a_header(digest="zz" * 32), "expected 64 hex digits"),
    ],
)
def test_a_header_that_cannot_be_believed_is_refused(header: UpdateHeader, message: str) -> None:
    with pytest.raises(MalformedMessage, match=message):
        an_assembly().open(header)


def test_memory_is_bounded_before_a_header_is_known() -> None:
    assembly = an_assembly(limit=100_000)
    prefix = bytes(8)
    assembly.add(blocks.Block(prefix, 0, bytes(blocks.BLOCK_BYTES)))
    assembly.add(blocks.Block(prefix, 1, bytes(blocks.BLOCK_BYTES)))
    with pytest.raises(MalformedMessage, match="sent 147,456 bytes; round run-1 takes 100,000"):
        assembly.add(blocks.Block(prefix, 2, bytes(blocks.BLOCK_BYTES)))
    with pytest.raises(MalformedMessage, match="pi sent"):
        for i in range(10, 1000):
            assembly.add(blocks.Block(prefix, i, b""))


@pytest.mark.parametrize("index", [0, 99, 2**32 - 1])
def test_a_block_that_cannot_be_part_of_the_upload_is_refused(index: int) -> None:
    assembly = an_assembly()
    assembly.open(a_header())
    with pytest.raises(MalformedMessage, match=f"block {index} of pi has 5 bytes"):
        assembly.add(blocks.Block(the_blocks()[0].prefix, index, b"short"))


def test_an_incomplete_upload_and_one_that_holds_no_tensors_say_so() -> None:
    assembly = an_assembly()
    with pytest.raises(MalformedMessage, match="not complete: 0 blocks"):
        assembly.arrays()
    junk = b"no tensors at all"
    assembly.open(a_header(junk))
    assembly.add(the_blocks(junk)[0])
    with pytest.raises(MalformedMessage, match="not safetensors"):
        assembly.arrays()


@given(st.lists(st.tuples(st.binary(min_size=8, max_size=8), st.integers(0, 2**32 - 1), st.binary(max_size=64))))
@settings(max_examples=50, deadline=None)
def test_no_blocks_make_it_hold_more_than_it_may(parts: list[tuple[bytes, int, bytes]]) -> None:
    assembly, held = an_assembly(limit=200), 0
    for part in parts:
        try:
            held += len(part[2]) if assembly.add(blocks.Block(*part)) else 0
        except MalformedMessage:
            continue
    assert held <= 200 and not assembly.complete


def test_what_a_task_sends_beside_the_changes_is_not_taken_for_a_parameter() -> None:
    arrays = {f"delta.{name}": value for name, value in PARAMETERS.items()}
    beside = {"loss.before": np.array(1.0, np.float32), "rows": np.array(3)}
    assert check_update({**arrays, **beside}, PARAMETERS).keys() == PARAMETERS.keys()
