"""A model that is damaged anywhere is refused in one line or loads: found by changing sound ones at random."""

from __future__ import annotations

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeml import convert
from edgeml.errors import EdgeMLError
from edgeml_runtime.session import Session
from tests import networks
from tests.convert.test_bad_models import called, looped, with_sparse, within

SOUND = {
    "network": networks.an_mlp().data,
    "images": networks.a_conv_net().data,
    "loops": looped(3, 2).SerializeToString(),
    "branches": within(3).SerializeToString(),
    "functions": called(3).SerializeToString(),
    "sparse": with_sparse([4, 4], [0, 5]).SerializeToString(),
}
SLOW_OR_SHARED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
NUMBERS = (0, -1, 1, 2, 7, 31, 2**31 - 1, 2**31, 2**40, 2**63 - 1, -(2**63))
TEXTS = ("", "x", "y", "numeric", "Loop", "Reshape", "Expand", "ai.onnx.ml", "com.microsoft", "a\nb")


def parts(message) -> list:
    """Return `message` and every message within it."""
    found = [message]
    for field, content in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            found += [inner for one in (content if field.is_repeated else [content]) for inner in parts(one)]
    return found


def changed(draw, field, old):
    """Return another value for a field that holds `old`."""
    if field.type == field.TYPE_STRING:
        return draw(st.sampled_from(TEXTS))
    if field.type == field.TYPE_BYTES:
        return old[: draw(st.integers(0, len(old)))] + draw(st.binary(max_size=4))
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return draw(st.sampled_from([0.0, -1.0, 1e30, float("nan"), float("inf")]))
    if field.type == field.TYPE_ENUM:
        return draw(st.sampled_from([entry.number for entry in field.enum_type.values]))
    number = draw(st.sampled_from([*NUMBERS, old + 1, -old]))
    return max(-(2**31), min(2**31 - 1, number)) if field.type == field.TYPE_INT32 else number % 2**63


def change(draw, proto) -> None:
    """Change, drop, double or shuffle one field somewhere in `proto`."""
    part = draw(st.sampled_from(parts(proto)))
    if not (fields := part.ListFields()):
        return
    field, old = draw(st.sampled_from(fields))
    how = draw(st.sampled_from(["change", "drop", "double", "shuffle"]))
    if field.is_repeated:
        index = draw(st.integers(0, len(old) - 1))
        if how == "drop":
            del old[index]
        elif how == "double":
            old.append(old[index])
        elif how == "shuffle" and field.type == field.TYPE_MESSAGE:
            mixed = draw(st.permutations(list(old)))
            del old[:]
            old.extend(mixed)
        elif field.type != field.TYPE_MESSAGE:
            old[index] = changed(draw, field, old[index])
    elif how == "drop" or field.type == field.TYPE_MESSAGE:
        part.ClearField(field.name)
    else:
        setattr(part, field.name, changed(draw, field, old))


@st.composite
def damaged(draw) -> bytes:
    """Return a sound model with a few fields or bytes of it changed."""
    data = draw(st.sampled_from([SOUND[name] for name in sorted(SOUND)]))
    if draw(st.booleans()):
        proto = onnx.load_from_string(data)
        for _ in range(draw(st.integers(1, 3))):
            change(draw, proto)
        return proto.SerializeToString()
    spoilt = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        spoilt[draw(st.integers(0, len(spoilt) - 1))] = draw(st.integers(0, 255))
    return bytes(spoilt)


def refused_in_one_line_or_loads(data, path):
    path.write_bytes(data)
    try:
        model = convert.read_model(path)
    except EdgeMLError as error:
        assert str(error).isprintable() and len(str(error)) < 700
    else:
        assert Session(model.data).outputs


@settings(max_examples=80, suppress_health_check=SLOW_OR_SHARED)
@given(data=damaged())
def test_a_damaged_model_is_refused_in_one_line_or_loads(data, tmp_path):
    refused_in_one_line_or_loads(data, tmp_path / "m.onnx")


@pytest.mark.slow
@settings(max_examples=1000, suppress_health_check=SLOW_OR_SHARED)
@given(data=damaged())
def test_so_is_a_model_damaged_in_a_thousand_ways(data, tmp_path):
    refused_in_one_line_or_loads(data, tmp_path / "m.onnx")


@pytest.mark.parametrize("name", SOUND)
def test_what_is_damaged_above_is_sound_before(name, tmp_path):
    (tmp_path / "m.onnx").write_bytes(SOUND[name])
    assert "agrees with the file" in " ".join(convert.read_model(tmp_path / "m.onnx").notes)
